"""What a host's agent makes of its GPUs and of the nodes on them."""

from dataclasses import replace

import pytest

from comfy_fleet.agent.gpu_assessor import CPU, GpuAssessor, NodeOnGpu
from comfy_fleet.domain.nodes.agent_state import Readiness
from comfy_fleet.domain.nodes.gpu import Gpu, GpuProcess, Gpus, Memory, Nvml
from comfy_fleet.domain.nodes.gpu_assessment import Assessment, Policy
from comfy_fleet.domain.nodes.vram import GIB, Counted, Device, MemoryClaim

NONE = Gpus(why=Nvml.NO_LIBRARY)


def claim(node: str, pid: int) -> MemoryClaim:
    return MemoryClaim(node=node, pids=frozenset({pid}))


def card(used: float, *processes: GpuProcess) -> Gpus:
    memory = Memory(total=24 * GIB, used=int(used * GIB), free=int((24 - used) * GIB))
    return Gpus(why=Nvml.OK, gpus=(Gpu(index=0, uuid="GPU-aa", memory=memory, processes=processes),))


def process(pid: int, gib: float) -> GpuProcess:
    return GpuProcess(pid=pid, used=int(gib * GIB))


def said(judge: GpuAssessor, node: str) -> Assessment:
    judgement = judge.of(node)
    assert judgement is not None
    return judgement


def test_nodes_on_one_gpu_share_its_budget() -> None:
    judge = GpuAssessor()
    allocations = [NodeOnGpu(gpu="GPU-aa", claim=claim("a", 1)), NodeOnGpu(gpu="0", claim=claim("b", 2))]
    judge.look(card(20, process(1, 12), process(2, 8)), allocations, now_s=0)
    for name, own in (("a", 12), ("b", 8)):
        assert (said(judge, name).readiness, said(judge, name).foreign_bytes) == (Readiness.READY, 0)
        facts = judge.facts(name)
        assert (facts["own"], facts["own_all"]) == (own * GIB, 20 * GIB)
        assert facts["available"] == 24 * GIB - Policy().reserve(24 * GIB, 2)
    assert judge.of("nobody") is None
    assert judge.facts("nobody") == {}


def test_who_else_is_on_a_gpu_is_told_up_to_eight() -> None:
    judge = GpuAssessor()
    others = [process(pid, 0.1) for pid in range(10, 30)]
    judge.look(card(4, process(1, 2), *others), [NodeOnGpu(gpu="0", claim=claim("a", 1))], now_s=0)
    assert len(judge.facts("a")["others"]) == 8


@pytest.mark.parametrize("why", [Nvml.OK, Nvml.LOST_DEVICE])
def test_a_gpu_that_vanished_takes_its_node_down(why: Nvml) -> None:
    judge = GpuAssessor()
    judge.look(replace(card(0), why=why), [NodeOnGpu(gpu="GPU-cc", claim=claim("a", 1))], now_s=0)
    assert said(judge, "a").readiness is Readiness.DOWN


def test_without_nvml_no_gpu_has_vanished() -> None:
    counted = Counted(total=24 * GIB, used=2 * GIB, own=GIB)
    judge = GpuAssessor()
    judge.look(NONE, [NodeOnGpu(gpu="GPU-cc", claim=MemoryClaim(node="a", counted=counted))], now_s=0)
    assert said(judge, "a").readiness is Readiness.READY


def test_nodes_of_which_nobody_knows_the_gpu_are_judged_one_by_one() -> None:
    free = MemoryClaim(node="free", counted=Counted(total=24 * GIB, used=2 * GIB, own=GIB))
    full = MemoryClaim(node="full", counted=Counted(total=24 * GIB, used=23 * GIB, own=GIB))
    judge = GpuAssessor()
    judge.look(NONE, [NodeOnGpu(gpu=None, claim=free), NodeOnGpu(gpu=None, claim=full)], now_s=0)
    assert (said(judge, "free").readiness, said(judge, "full").readiness) == (
        Readiness.READY,
        Readiness.DRAIN,
    )


def test_a_drained_gpu_stays_so_for_the_dwell_time_from_one_look_to_the_next() -> None:
    judge = GpuAssessor(Policy(dwell_s=10))
    allocations = [NodeOnGpu(gpu="0", claim=claim("a", 1))]
    told = []
    for now, used in ((0, 23), (1, 1), (10.9, 1), (11.1, 1)):
        judge.look(card(used, process(1, 1)), allocations, now_s=now)
        told.append(said(judge, "a").readiness)
    assert told == [Readiness.DRAIN, Readiness.DRAIN, Readiness.DRAIN, Readiness.READY]


def test_a_node_s_weight_follows_its_speed_and_not_its_neighbour_s() -> None:
    judge = GpuAssessor()
    slow, other = (
        NodeOnGpu(gpu="0", claim=claim("slow", 1), speed=0.5),
        NodeOnGpu(gpu="0", claim=claim("b", 2)),
    )
    judge.look(card(0), [slow, other], now_s=0)
    assert (said(judge, "slow").weight, said(judge, "b").weight) == (50, 100)


def test_what_cuda_takes_for_a_node_is_its_own() -> None:
    judge = GpuAssessor(Policy(context_bytes=2 * GIB))
    counted = Counted(total=24 * GIB, used=10 * GIB, own=8 * GIB)
    judge.look(card(10), [NodeOnGpu(gpu="0", claim=MemoryClaim(node="a", counted=counted))], now_s=0)
    assert (judge.facts("a")["own"], judge.facts("a")["foreign"]) == (10 * GIB, 0)


@pytest.mark.parametrize(("used", "word"), [(10, Readiness.READY), (15.5, Readiness.DRAIN)])
def test_a_node_on_the_cpu_needs_little_of_the_host_s_memory(used: float, word: Readiness) -> None:
    counted = Counted(device=Device.HOST, total=16 * GIB, used=int(used * GIB), own=GIB // 4)
    judge = GpuAssessor(Policy(need_bytes=12 * GIB, reserve_bytes=8 * GIB))  # what is meant for cards
    judge.look(NONE, [NodeOnGpu(gpu=CPU, claim=MemoryClaim(node="a", counted=counted))], now_s=0)
    assert said(judge, "a").readiness is word
    assert judge.facts("a")["available"] == (16 * GIB - (int(used * GIB) - GIB // 4))


def test_a_neighbour_that_starts_takes_nobody_out() -> None:
    counted = Counted(device=Device.HOST, total=16 * GIB, used=10 * GIB, own=GIB // 4)
    judge = GpuAssessor()
    allocations = [
        NodeOnGpu(gpu=CPU, claim=MemoryClaim(node="a", counted=counted)),
        NodeOnGpu(gpu=CPU, claim=MemoryClaim(node="b")),
    ]
    for now_s in (0, 600):
        judge.look(Gpus(why=Nvml.NO_LIBRARY), allocations, now_s=now_s)
        assert said(judge, "a").readiness is Readiness.READY


def test_a_card_is_judged_as_a_card_whatever_one_of_its_nodes_computes_on() -> None:
    counted = Counted(total=24 * GIB, used=10 * GIB, own=0)
    judge = GpuAssessor(Policy(need_bytes=12 * GIB, reserve_bytes=8 * GIB))
    allocations = [
        NodeOnGpu(gpu="0", claim=MemoryClaim(node="card", counted=counted)),
        NodeOnGpu(gpu="0", claim=MemoryClaim(node="host", counted=replace(counted, device=Device.HOST))),
    ]
    judge.look(NONE, allocations, now_s=0)
    assert said(judge, "card").readiness is Readiness.DRAIN
