"""What counts as work of a process that does not answer."""

import itertools
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from comfy_fleet.adapters.comfyui.direct_node import NodeSession
from comfy_fleet.adapters.system.procfs import Used
from comfy_fleet.agent import comfyui_process
from comfy_fleet.agent.comfyui_process import ComfyUIProcess, ProcessSpec
from comfy_fleet.agent.node_poller import NodePoller
from comfy_fleet.domain.nodes.process_supervision import IDLE_RATE

PID = 7


class Child:
    """A process that runs."""

    running = True
    pid = PID
    returncode = None


@pytest.mark.parametrize(
    ("a_second", "percent", "works"),
    [
        (Used(cpu_s=1.0), None, True),
        (Used(read_bytes=20 * 2**20), None, True),  # from a disk, without any computing
        (Used(blocked=True), None, True),  # in the kernel, waiting for a disk
        (Used(), 5, True),
        (Used(), 4, False),
        (Used(cpu_s=0.01, read_bytes=2**10), None, False),
    ],
)
async def test_computing_reading_and_a_busy_gpu_are_progress(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, a_second: Used, percent: int | None, works: bool
) -> None:
    now = 0.0

    def used(pid: int) -> Used:
        assert pid == PID
        return replace(a_second, cpu_s=a_second.cpu_s * now, read_bytes=int(a_second.read_bytes * now))

    monkeypatch.setattr(comfyui_process, "used", used)
    monkeypatch.setattr(comfyui_process, "Child", lambda *_, **__: Child())
    async with NodeSession() as session:
        made = ComfyUIProcess(
            ProcessSpec(name="g1", argv=(sys.executable,), log=tmp_path / "log"),
            NodePoller("g1", "http://127.0.0.1:1", session),
            client_id="c",
            gpu_busy=lambda: percent,
            clock=lambda: now,
        )
        efforts = []
        for second in range(4):
            now = float(second)
            efforts.append(made.look(ready=False).effort)
    steps = [after - before for before, after in itertools.pairwise(efforts)]
    assert steps == pytest.approx([1.0] * 3) if works else max(steps) < IDLE_RATE
