"""The real binding, over a stand-in of NVIDIA's library that is compiled here.

The last tests read this machine's own GPU, if it has one.
"""

import base64
import ctypes
import json
import os
import pickle
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from comfy_fleet.adapters.nvml import NvmlReader
from comfy_fleet.domain.nodes.agent_state import Readiness
from comfy_fleet.domain.nodes.gpu import GpuProcess, Gpus, Memory, Nvml, Recovery, Throttle
from comfy_fleet.domain.nodes.gpu_assessment import State, assess
from comfy_fleet.domain.nodes.vram import MIB, MemoryClaim, Source, usage

ROOT = Path(__file__).parents[2]
CARD = "gpu 0\nset total 24576\nset reserved 400\nset used 9000\n"
UUID = "GPU-00000000-1111-2222-3333-444444444444"


class Watcher:
    """A process that looks at the stand-in's GPUs."""

    def __init__(self, library: Path, scenario: Path) -> None:
        self._scenario = scenario
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.nvml_child"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env={**os.environ, "LD_LIBRARY_PATH": str(library), "NVML_STANDIN": str(scenario)},
        )

    def set(self, text: str) -> None:
        """Change what the library tells, in one step."""
        fresh = self._scenario.with_suffix(".new")
        fresh.write_text(text)
        fresh.rename(self._scenario)

    def ask(self, order: str) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{order}\n")
        self._process.stdin.flush()
        return pickle.loads(base64.b64decode(self._process.stdout.readline()))

    def look(self, text: str | None = None) -> Gpus:
        """Look once, after a change if one is given."""
        if text is not None:
            self.set(text)
        found = self.ask("look")
        assert isinstance(found, Gpus)
        return found

    def stop(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(10)
        assert self._process.stdout is not None
        self._process.stdout.close()


@pytest.fixture
def watch(build: Callable[[str], Path], tmp_path: Path) -> Iterator[Callable[..., Watcher]]:
    """Start a process that looks at the stand-in."""
    watchers = []

    def start(option: str = "-DNEW_DRIVER") -> Watcher:
        watcher = Watcher(build(option), tmp_path / "scenario")
        watchers.append(watcher)
        return watcher

    yield start
    for watcher in watchers:
        watcher.stop()


@pytest.mark.parametrize("count", [0, 1, 8])
def test_every_gpu_is_seen(watch: Callable[..., Watcher], count: int) -> None:
    found = watch().look("".join(CARD.replace("gpu 0", f"gpu {index}") for index in range(count)) or "\n")
    assert found.why is (Nvml.OK if count else Nvml.NO_DEVICE)
    assert [gpu.index for gpu in found.gpus] == list(range(count))
    assert len({gpu.uuid for gpu in found.gpus}) == count
    assert found.driver == "580.95.05"


def test_memory_by_process_each_process_once(watch: Callable[..., Watcher]) -> None:
    processes = "proc c 1000001 6000\nproc g 1000001 6000\nproc g 1000002 300\nproc m 1000003 700\n"
    (gpu,) = watch().look(CARD + processes).gpus
    assert (gpu.uuid, gpu.name) == (UUID, "NVIDIA Stand-in")
    assert gpu.memory == Memory(total=24576 * MIB, used=9000 * MIB, free=15176 * MIB, reserved=400 * MIB)
    assert gpu.processes == (
        GpuProcess(pid=1000001, used=6000 * MIB),
        GpuProcess(pid=1000002, used=300 * MIB),
        GpuProcess(pid=1000003, used=700 * MIB),
    )


def test_hidden_bytes_and_hidden_processes_are_told_apart(watch: Callable[..., Watcher]) -> None:
    watcher = watch()
    (gpu,) = watcher.look(CARD + "proc c 1000001 -1\n").gpus
    assert gpu.processes == (GpuProcess(pid=1000001, used=None),)
    (gpu,) = watcher.look(CARD).gpus
    assert gpu.processes == ()
    (gpu,) = watcher.look(CARD + "fail procs 4\n").gpus
    assert gpu.processes is None
    assert gpu.memory is not None


def test_a_process_of_this_machine_is_named(watch: Callable[..., Watcher]) -> None:
    (gpu,) = watch().look(CARD + f"proc c {os.getpid()} 100\n").gpus
    comm = Path("/proc/self/comm").read_text().strip()
    host = str(Path("/proc/self/ns/pid").readlink()) == "pid:[4026531836]"
    assert gpu.processes == (GpuProcess(pid=os.getpid(), used=100 * MIB, name=comm if host else ""),)


READINGS = """set util 97
set temp 83
set power 250500
set ecc 2
set throttle 96
set retired 0
set remap_pending 1
set remap_failed 0
set recovery 1
"""


def test_all_that_a_card_tells(watch: Callable[..., Watcher]) -> None:
    (gpu,) = watch().look(CARD + READINGS).gpus
    assert (gpu.utilisation, gpu.temperature_c, gpu.power_w, gpu.ecc_uncorrected) == (97, 83, 250.5, 2)
    assert gpu.throttles == frozenset({Throttle.SOFT_THERMAL, Throttle.HARD_THERMAL})
    assert (gpu.reset_pending, gpu.remap_failed, gpu.recovery) == (True, False, Recovery.RESET)
    assert (gpu.xids, gpu.lost, gpu.mig) == ((), False, False)


@pytest.mark.parametrize("code", [3, 4, 999])
@pytest.mark.parametrize(
    ("key", "field"),
    [
        ("util", "utilisation"),
        ("temp", "temperature_c"),
        ("power", "power_w"),
        ("ecc", "ecc_uncorrected"),
        ("throttle", "throttles"),
        ("recovery", "recovery"),
        ("remap_failed", "remap_failed"),
        ("total", "memory"),
        ("procs", "processes"),
    ],
)
def test_any_reading_may_be_missing_alone(
    watch: Callable[..., Watcher], key: str, field: str, code: int
) -> None:
    lines = [line for line in (CARD + READINGS).splitlines() if f" {key} " not in line]
    found = watch().look("\n".join([*lines, f"fail {key} {code}", ""]))
    (gpu,) = found.gpus
    assert found.why is Nvml.OK
    fields = ("utilisation", "temperature_c", "power_w", "ecc_uncorrected", "throttles", "recovery")
    missing = [
        name for name in (*fields, "remap_failed", "memory", "processes") if getattr(gpu, name) is None
    ]
    assert missing == [field]


def test_an_old_driver_tells_what_it_can(watch: Callable[..., Watcher]) -> None:
    (gpu,) = watch("-DOLD_DRIVER").look(CARD + READINGS + "proc c 1000001 6000\n").gpus
    assert gpu.memory == Memory(total=24576 * MIB, used=9400 * MIB, free=15176 * MIB)
    assert gpu.processes == (GpuProcess(pid=1000001, used=6000 * MIB),)
    assert gpu.temperature_c == 83
    assert (gpu.recovery, gpu.remap_failed) == (None, None)
    assert gpu.reset_pending is False  # by retired pages alone


@pytest.mark.parametrize(
    ("code", "why"),
    [
        (3, Nvml.NOT_SUPPORTED),
        (4, Nvml.NO_PERMISSION),
        (9, Nvml.NO_DRIVER),
        (15, Nvml.LOST_DEVICE),
        (18, Nvml.VERSION_MISMATCH),
        (999, Nvml.UNKNOWN),
    ],
)
def test_why_nothing_can_be_read(watch: Callable[..., Watcher], code: int, why: Nvml) -> None:
    watcher = watch()
    found = watcher.look(f"init {code}\n{CARD}")
    assert (found.why, found.gpus) == (why, ())
    assert found.error
    assert watcher.look(CARD).why is Nvml.OK  # and it recovers by itself


def test_gpus_that_may_not_be_touched(watch: Callable[..., Watcher]) -> None:
    watcher = watch()
    assert watcher.look(CARD + "fail open 4\n").why is Nvml.NO_PERMISSION
    found = watcher.look(CARD + "fail open 4\n" + CARD.replace("gpu 0", "gpu 1"))
    assert [gpu.index for gpu in found.gpus] == [1]


def test_without_a_library_or_a_binding() -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "pynvml", None)
        assert NvmlReader().read().why is Nvml.NO_BINDING
    try:
        ctypes.CDLL("libnvidia-ml.so.1")
    except OSError:
        assert NvmlReader().read().why is Nvml.NO_LIBRARY


def test_a_gpu_that_is_lost_on_the_way_and_comes_back(watch: Callable[..., Watcher]) -> None:
    watcher = watch()
    two = CARD + "proc c 1000001 6000\n" + CARD.replace("gpu 0", "gpu 1")
    assert not any(gpu.lost for gpu in watcher.look(two).gpus)
    found = watcher.look(two.replace("gpu 1", "gpu 1\nfail device 15"))
    assert found.why is Nvml.OK
    assert [gpu.lost for gpu in found.gpus] == [False, True]
    assert found.gpus[0].processes
    assert (found.gpus[1].memory, found.gpus[1].name) == (None, "NVIDIA Stand-in")
    found = watcher.look(CARD)  # the driver has struck it off its list
    assert [(gpu.uuid[:5], gpu.lost) for gpu in found.gpus] == [("GPU-0", False), ("GPU-1", True)]
    found = watcher.look("init 999\n")
    assert [(gpu.uuid[:5], gpu.lost) for gpu in found.gpus] == [("GPU-1", True)]
    watcher.look(two)
    found = watcher.look(two)
    assert [gpu.lost for gpu in found.gpus] == [False, False]
    assert watcher.look(two.replace("set total", "fail device 16\nset total")).why is Nvml.LOST_DEVICE


def test_the_driver_is_restarted(watch: Callable[..., Watcher]) -> None:
    watcher = watch()
    assert watcher.look(CARD).why is Nvml.OK
    assert watcher.look("init 9\n").why is Nvml.NO_DRIVER
    found = watcher.look(CARD)
    assert (found.why, [gpu.lost for gpu in found.gpus]) == (Nvml.OK, [False])
    watcher.ask("close")
    assert watcher.look().why is Nvml.OK


def test_mig_instances_have_memory_and_processes_of_their_own(watch: Callable[..., Watcher]) -> None:
    first = "mig 0\nset total 12000\nset used 500\nproc c 1000001 400\n"
    third = "mig 2\nset total 6000\nset used 0\n"
    found = watch().look(CARD + READINGS + "set mig 1\n" + first + third)
    (gpu,) = found.gpus
    assert (gpu.mig, gpu.processes) == (True, None)
    one, two = found.usable()
    assert one.uuid.startswith("MIG-00")
    assert one.memory is not None
    assert one.memory.total == 12000 * MIB
    assert one.processes == (GpuProcess(pid=1000001, used=400 * MIB),)
    assert (two.index, two.processes) == (2, ())
    assert one.parent == gpu.uuid
    assert (one.temperature_c, one.utilisation) == (83, None)  # heat is the whole card's
    assert found.find(one.uuid) == one


def test_xids_are_heard_and_kept(watch: Callable[..., Watcher]) -> None:
    watcher = watch()
    assert watcher.look(CARD).gpus[0].xids == ()
    assert watcher.look(CARD + "xid 31\nxid 79\nxid 31\n").gpus[0].xids == (31, 79)
    (gpu,) = watcher.look().gpus
    assert gpu.xids == (31, 79)
    told, _ = assess(gpu, usage(gpu, []), State(), now_s=0)
    assert told.readiness is Readiness.DRAIN
    assert "Xid 79" in told.reason
    two = CARD + "xid 79\n" + CARD.replace("gpu 0", "gpu 1")
    for text in (
        two,
        two + "fail device 15\n",
        CARD + "xid 79\n",
    ):  # each look opens NVML again, for the lost one
        assert 79 in (watcher.look(text).gpus[0].xids or ())
    watcher.look("init 9\n")
    assert watcher.look(CARD).gpus[0].xids == ()  # a driver that was restarted begins anew


def test_a_driver_that_hangs_holds_nothing_up(watch: Callable[..., Watcher]) -> None:
    watcher = watch()
    watcher.set(CARD + "hang 1\n")
    found, ticks = watcher.ask("probe")
    assert found.why is Nvml.SILENT
    assert ticks >= 2, "the event loop stood still"  # one that does may still be woken once
    assert watcher.ask("probe")[0].why is Nvml.SILENT
    watcher.set(CARD)
    deadline = time.monotonic() + 60
    while watcher.ask("probe")[0].why is not Nvml.OK:
        assert time.monotonic() < deadline
    watcher.ask("close")


def test_a_foreign_process_drains_the_node_at_the_next_look(watch: Callable[..., Watcher]) -> None:
    watcher = watch()
    claim = MemoryClaim(node="g1", pids=frozenset({1000001}))
    warm = CARD.replace("9000", "20000") + "proc c 1000001 19800\n"
    state = State()
    told = []
    crowded = CARD.replace("9000", "24100") + "proc c 1000001 14500\nproc c 1000002 9536\n"
    for now, text in enumerate([warm, crowded, warm]):
        (gpu,) = watcher.look(text).gpus
        use = usage(gpu, [claim])
        assert use.source is Source.PROCESSES
        judgement, state = assess(gpu, use, state, now_s=now)
        told.append(judgement.readiness)
    assert told == [Readiness.READY, Readiness.DRAIN, Readiness.DRAIN]


def test_the_cost_of_a_look(watch: Callable[..., Watcher]) -> None:
    watcher = watch()
    text = "".join(
        CARD.replace("gpu 0", f"gpu {index}") + READINGS + "proc c 1000001 6000\nproc c 1000002 9\n"
        for index in range(8)
    )
    watcher.look(text)
    assert (
        statistics.median(watcher.ask("costs")) < 0.05
    )  # a few ms of Python for 8 GPUs; the driver's own extra


def test_the_doctor_sees_the_gpus(build: Callable[[str], Path], tmp_path: Path) -> None:
    scenario = tmp_path / "scenario"
    scenario.write_text(CARD)
    told = subprocess.run(
        [sys.executable, "-m", "comfy_fleet", "doctor", "--json", "--data", str(tmp_path / "data")],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        cwd=ROOT,
        env={**os.environ, "LD_LIBRARY_PATH": str(build("-DNEW_DRIVER")), "NVML_STANDIN": str(scenario)},
    )
    (found,) = [one for one in json.loads(told.stdout) if one["check"] == "NVML"]
    assert found["verdict"] == "OK"
    assert "driver 580.95.05: NVIDIA Stand-in, 24 GiB" in found["found"]


# A real GPU


@pytest.fixture
def real() -> Iterator[NvmlReader]:
    """A reader of this machine's own GPUs; the test is skipped without one."""
    reader = NvmlReader(slow_every_s=0)
    found = reader.read()
    if found.why is not Nvml.OK:
        pytest.skip(f"no real GPU: {found.why}")
    yield reader
    reader.close()


HOLD = """
import ctypes, sys
cuda = ctypes.CDLL("libcuda.so.1")
device, context, memory = ctypes.c_int(), ctypes.c_void_p(), ctypes.c_void_p()
assert cuda.cuInit(0) == 0
assert cuda.cuDeviceGet(ctypes.byref(device), 0) == 0
assert cuda.cuCtxCreate_v2(ctypes.byref(context), 0, device) == 0
assert cuda.cuMemAlloc_v2(ctypes.byref(memory), ctypes.c_size_t(1 << 30)) == 0
print("held", flush=True)
sys.stdin.read()
"""


def test_a_real_gpu_tells_its_memory(real: NvmlReader) -> None:
    found = real.read()
    assert found.driver
    for gpu in found.usable():
        assert gpu.uuid.startswith(("GPU-", "MIG-"))
        assert gpu.memory is not None
        assert 0 <= gpu.memory.used <= gpu.memory.total
        assert not gpu.lost
    times = [real.read().took_s for _ in range(20)]
    sys.stdout.write(f"a look takes {statistics.median(times) * 1000:.2f} ms: {found}\n")
    assert statistics.median(times) < 0.5


def test_a_real_process_is_foreign_until_it_is_claimed(real: NvmlReader) -> None:
    gpu = next(iter(real.read().usable()))
    assert gpu.memory is not None
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD],
        env=os.environ | {"CUDA_VISIBLE_DEVICES": gpu.uuid},  # CUDA may count the GPUs in another order
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert holder.stdin is not None
    assert holder.stdout is not None
    try:
        assert holder.stdout.readline() == "held\n"
        (after,) = (one for one in real.read().usable() if one.uuid == gpu.uuid)
        foreign, claimed = (
            usage(after, []),
            usage(after, [MemoryClaim(node="g1", pids=frozenset({holder.pid}))]),
        )
        assert foreign.foreign is not None
        assert foreign.foreign >= gpu.memory.used + 2**30
        if claimed.source is Source.PROCESSES:
            assert claimed.foreign is not None
            assert claimed.foreign <= foreign.foreign - 2**30
        else:
            assert claimed.source is Source.BOUNDS  # the driver hides processes here
    finally:
        holder.stdin.close()
        holder.wait(30)
        holder.stdout.close()
