"""Who holds a GPU's memory?"""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from comfy_fleet.domain.nodes.gpu import Gpu, GpuProcess, Gpus, Memory, Nvml
from comfy_fleet.domain.nodes.vram import (
    CONTEXT_BYTES,
    GIB,
    Counted,
    Device,
    MemoryClaim,
    Source,
    Usage,
    usage,
)

NODE = MemoryClaim(node="g1", pids=frozenset({100, 101}))
SIZES = st.integers(0, 24 * GIB)


def card(used: float, *processes: GpuProcess, listed: bool = True, total: float = 24) -> Gpu:
    memory = Memory(total=int(total * GIB), used=int(used * GIB), free=int((total - used) * GIB))
    return Gpu(index=0, memory=memory, processes=processes if listed else None)


def process(pid: int, gib: float | None, name: str = "") -> GpuProcess:
    return GpuProcess(pid=pid, used=None if gib is None else int(gib * GIB), name=name)


def told(own: float, used: float, *, age_s: float = 0.1, total: float = 23.5) -> Counted:
    return Counted(total=int(total * GIB), used=int(used * GIB), own=int(own * GIB), age_s=age_s)


def test_a_warm_node_has_no_foreign_memory() -> None:
    found = usage(card(22, process(100, 20), process(101, 2)), [NODE])
    assert (found.foreign, found.source, found.certain) == (0, Source.PROCESSES, True)
    assert found.own == {"g1": 22 * GIB}


def test_what_others_hold_is_foreign_also_when_nobody_lists_them() -> None:
    found = usage(card(18, process(100, 6), process(7, 2, "blender"), process(8, 3, "python3")), [NODE])
    assert found.foreign == 12 * GIB  # 5 GiB are listed
    assert found.others == ((8, "python3", 3 * GIB), (7, "blender", 2 * GIB))


def test_nodes_on_one_gpu_are_not_foreign_to_each_other() -> None:
    other = MemoryClaim(node="g2", pids=frozenset({200}))
    found = usage(card(17, process(100, 6), process(200, 8), process(7, 3)), [NODE, other])
    assert found.foreign == 3 * GIB
    assert found.own == {"g1": 6 * GIB, "g2": 8 * GIB}
    assert usage(card(17, process(100, 6), process(200, 8), process(7, 3)), [NODE]).foreign == 11 * GIB


@pytest.mark.parametrize(
    "gpu",
    [
        card(14, listed=False),
        card(14),  # a container: nothing listed
        card(14, process(54321, 9), process(54322, 5)),  # a container: the host's numbers
        card(14, process(100, None), process(7, None)),  # Windows: no bytes
        card(14, process(100, 0)),  # drivers of 2024 in containers: the inner number, no bytes
        card(14, process(100, 0.4)),  # a number that is another process's
    ],
    ids=["no list", "empty", "host pids", "windows", "zero bytes", "collision"],
)
def test_hidden_processes_are_counted_by_comfyui(gpu: Gpu) -> None:
    found = usage(gpu, [replace(NODE, counted=told(own=8, used=13.5))])
    assert found.source is Source.COUNTED
    assert found.own == {"g1": 8 * GIB + CONTEXT_BYTES}
    assert found.foreign == int(13.5 * GIB) - 8 * GIB - CONTEXT_BYTES
    assert found.others == ()  # any of them may be the node


def test_a_model_that_is_loaded_between_two_readings_is_not_foreign() -> None:
    # The node told 2 GiB; by the time of NVML's look it has loaded 10 more.
    found = usage(card(12.5), [replace(NODE, counted=told(own=2, used=2.5, age_s=0.4))])
    assert found.foreign == 0


def test_a_node_of_another_agent_is_not_foreign_by_process_or_by_its_count() -> None:
    mine = replace(NODE, counted=told(own=6, used=17))
    theirs = MemoryClaim(node="g2", pids=frozenset({200}), counted=told(own=8, used=16), late=True)
    listed = card(17, process(100, 6.5), process(200, 8.5))
    assert usage(listed, [mine, theirs]).foreign == 2 * GIB
    found = usage(card(17), [mine, theirs])
    assert (found.source, found.foreign) == (Source.COUNTED, 16 * GIB - 14 * GIB - 2 * CONTEXT_BYTES)
    stopped = replace(theirs, counted=None, running=False)
    assert usage(card(17), [mine, stopped]).foreign == 11 * GIB - CONTEXT_BYTES
    silent = replace(theirs, counted=told(own=8, used=17, age_s=30))
    assert usage(card(17), [mine, silent]).certain is False


def test_what_another_agent_s_node_has_just_loaded_is_not_foreign() -> None:
    # It told 2 GiB; ten more have come since, and only our own node's answer shows them.
    theirs = MemoryClaim(node="g2", counted=told(own=2, used=9, age_s=1.8), late=True)
    mine = replace(NODE, counted=told(own=6, used=19, age_s=0.1))
    assert usage(card(19), [mine, theirs]).foreign == 0
    # A stranger is seen once both have told.
    known = replace(theirs, counted=told(own=2, used=19, age_s=0.5))
    assert usage(card(19), [mine, known]).foreign == 11 * GIB - 2 * CONTEXT_BYTES


def test_without_any_count_only_bounds_are_known() -> None:
    for counted in (None, told(own=8, used=9, age_s=30)):
        found = usage(card(14), [replace(NODE, counted=counted)])
        assert (found.source, found.foreign, found.certain) == (Source.BOUNDS, 14 * GIB, False)
    sibling = MemoryClaim(node="g2", pids=frozenset({200}))
    found = usage(card(14, process(200, 13.5)), [MemoryClaim(node="g1"), sibling])
    assert (found.source, found.foreign) == (Source.BOUNDS, GIB // 2)


def test_who_does_not_run_or_is_not_listed_beside_others_holds_nothing() -> None:
    gone = replace(NODE, running=False, counted=told(own=8, used=9))
    found = usage(card(14), [gone])
    assert (found.source, found.foreign, found.own) == (Source.PROCESSES, 14 * GIB, {"g1": 0})
    host = Counted(device=Device.HOST, total=64 * GIB, used=40 * GIB, own=30 * GIB)
    assert usage(card(14), [MemoryClaim(node="g1", counted=host)]).foreign == 14 * GIB
    sibling = MemoryClaim(node="g2", pids=frozenset({200}))
    for starting in (NODE, replace(NODE, counted=told(own=0, used=3))):
        found = usage(card(14, process(200, 4)), [starting, sibling])
        assert (found.source, found.foreign) == (Source.PROCESSES, 10 * GIB)
    counts = replace(NODE, counted=told(own=6, used=14))
    assert usage(card(14, process(200, 4)), [counts, sibling]).source is Source.COUNTED


def test_one_node_by_process_and_one_by_its_own_count() -> None:
    hidden = MemoryClaim(node="g2", counted=told(own=4, used=16))
    found = usage(card(16, process(100, 6)), [NODE, hidden])
    assert found.source is Source.COUNTED
    assert found.foreign == 6 * GIB - CONTEXT_BYTES


def test_without_nvml_the_node_tells() -> None:
    found = usage(None, [MemoryClaim(node="g1", counted=told(own=10, used=14, total=16))])
    assert (found.source, found.total) == (Source.STATS, 16 * GIB)
    assert found.foreign == 4 * GIB - CONTEXT_BYTES
    assert usage(Gpu(index=0), [MemoryClaim(node="g1", counted=told(own=1, used=2))]).source is Source.STATS


def test_old_or_missing_answers_tell_nothing() -> None:
    assert usage(None, []) == Usage()
    assert usage(None, [NODE]) == Usage()
    assert usage(None, [MemoryClaim(node="g1", counted=told(own=1, used=2, age_s=60))]) == Usage()
    both = [MemoryClaim(node="g1", counted=told(own=1, used=2)), MemoryClaim(node="g2")]
    assert usage(None, [both[0], replace(both[1], running=False)]).source is Source.STATS
    assert usage(None, [replace(both[1], running=False)]).source is Source.NONE


def test_a_neighbour_that_starts_may_hold_what_the_others_don_t() -> None:
    both = [MemoryClaim(node="g1", counted=told(own=4, used=10, total=16)), MemoryClaim(node="g2")]
    found = usage(None, both)
    assert (found.source, found.foreign, found.certain) == (Source.BOUNDS, 6 * GIB - CONTEXT_BYTES, False)


def test_a_host_s_memory_needs_the_process_s_own() -> None:
    host = Counted(device=Device.HOST, total=64 * GIB, used=40 * GIB, own=30 * GIB)
    found = usage(None, [MemoryClaim(node="g1", counted=host)])
    assert (found.source, found.foreign) == (Source.HOST, 10 * GIB)  # no CUDA, no allowance
    unseen = replace(host, device=Device.UNSEEN, own=None)
    found = usage(None, [MemoryClaim(node="g1", counted=unseen)])
    assert (found.source, found.foreign, found.total) == (Source.UNSEEN, 0, 64 * GIB)


@given(total=SIZES, used=SIZES, own=SIZES, other=SIZES, count=st.none() | SIZES, age=st.floats(0, 10))
def test_figures_stay_within_the_card(
    total: int, used: int, own: int, other: int, count: int | None, age: float
) -> None:
    gpu = Gpu(
        index=0,
        memory=Memory(total=total, used=used, free=max(0, total - used)),
        processes=(GpuProcess(pid=100, used=own), GpuProcess(pid=7, used=other)),
    )
    counted = None if count is None else Counted(total=total, used=used, own=count, age_s=age)
    for seen in (gpu, replace(gpu, processes=None), None):
        found = usage(seen, [replace(NODE, counted=counted)])
        if found.foreign is not None and found.total is not None:
            assert 0 <= found.foreign <= found.total
        assert found.certain == (found.foreign is not None and found.source is not Source.BOUNDS)


@given(own=st.integers(1, 12 * GIB), foreign=st.integers(0, 12 * GIB))
def test_by_process_foreign_memory_is_exact(own: int, foreign: int) -> None:
    gpu = Gpu(
        index=0,
        memory=Memory(total=24 * GIB, used=own + foreign, free=24 * GIB - own - foreign),
        processes=(GpuProcess(pid=100, used=own),),
    )
    assert usage(gpu, [NODE]).foreign == foreign


def test_gpus_are_found_as_cuda_names_them() -> None:
    part = Gpu(index=0, uuid="MIG-77", parent="GPU-bb")
    gpus = Gpus(
        why=Nvml.OK,
        gpus=(Gpu(index=0, uuid="GPU-aa"), Gpu(index=1, uuid="GPU-bb", mig=True, instances=(part,))),
    )
    assert [gpu.uuid for gpu in gpus.usable()] == ["GPU-aa", "MIG-77"]
    assert gpus.find("0") is gpus.gpus[0]
    assert gpus.find("1") is part
    assert gpus.find("GPU-bb") is gpus.gpus[1]
    assert gpus.find("MIG-77") is part
    assert gpus.find("GPU-a") is gpus.gpus[0]
    assert gpus.find("GPU-") is None  # not clear
    assert gpus.find("") is gpus.find("2") is None


@pytest.mark.parametrize("why", list(Nvml))
def test_every_reason_says_what_to_do(why: Nvml) -> None:
    assert bool(why.what_to_do) == (why is not Nvml.OK)
