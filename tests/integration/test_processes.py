"""Child processes: output, end, and the promise that none outlives its parent."""

import asyncio
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from comfy_fleet.adapters.system import child_processes
from comfy_fleet.adapters.system.child_processes import Child, LogFile
from comfy_fleet.domain.backoff import Backoff
from comfy_fleet.domain.errors import ConfigError
from comfy_fleet.domain.nodes.process_end import end_of


def python(code: str) -> list[str]:
    return [sys.executable, "-u", "-c", code]


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):  # it may end while it is read
        return False


async def until_dead(pid: int) -> None:
    async with asyncio.timeout(60):
        while alive(pid):
            await asyncio.sleep(0.01)


async def test_lines_of_both_streams_arrive_and_the_status_is_told() -> None:
    lines: list[str] = []
    child = Child(
        "talker",
        python("import sys; print('out'); print('err', file=sys.stderr); print('x' * 70000); sys.exit(3)"),
        on_line=lines.append,
    )
    await child.start()
    assert await child.wait() == 3
    assert lines[:2] == ["out", "err"]
    assert "".join(lines[2:]) == "x" * 70000
    assert not child.running
    assert child.returncode == 3
    assert list(child.last_lines) == lines


async def test_environment_adds_to_the_parents() -> None:
    lines: list[str] = []
    code = "import os; print(os.environ['FLEET_TEST_A'], bool(os.environ['PATH']))"
    child = Child("env", python(code), env={"FLEET_TEST_A": "1"}, on_line=lines.append)
    await child.start()
    await child.wait()
    assert lines == ["1 True"]


async def test_stop_kills_a_child_that_does_not_listen_and_what_it_started() -> None:
    lines: list[str] = []
    code = (
        "import signal, subprocess, sys, time\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "grandchild = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n"
        "print(grandchild.pid)\n"
        "time.sleep(60)\n"
    )
    child = Child("deaf", python(code), on_line=lines.append, stop_timeout_s=0.2)
    await child.start()
    async with asyncio.timeout(60):
        while not lines:
            await asyncio.sleep(0.01)
    assert await child.stop() == -signal.SIGKILL
    await until_dead(int(lines[0]))


PARENT = """
import subprocess, sys, time
deaf = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(0); time.sleep(60)"
grandchild = subprocess.Popen([sys.executable, "-u", "-c", deaf])
print(grandchild.pid)
time.sleep(60)
"""


async def parent() -> tuple[Child, int]:
    """Start a child whose own child is deaf and writes into the same pipe."""
    lines: list[str] = []
    child = Child("parent", python(PARENT), on_line=lines.append)
    await child.start()
    async with asyncio.timeout(60):
        while len(lines) < 2:
            await asyncio.sleep(0.01)
    return child, max(map(int, lines))


async def test_what_an_obedient_child_leaves_behind_is_killed_too() -> None:
    child, grandchild = await parent()
    async with asyncio.timeout(8):  # less than a deaf one gets
        assert await child.stop() == -signal.SIGTERM
    await until_dead(grandchild)


async def test_an_end_is_noticed_though_somebody_else_holds_the_pipe() -> None:
    child, grandchild = await parent()
    waiting = asyncio.create_task(child.wait())
    await asyncio.sleep(0)
    assert child.pid is not None
    os.kill(child.pid, signal.SIGKILL)
    async with asyncio.timeout(30):  # the pipe is closed after 60 s
        assert await waiting == -signal.SIGKILL
    await child.stop()
    await until_dead(grandchild)


async def test_a_long_wait_is_one_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    waits, wait = 0, asyncio.subprocess.Process.wait
    monkeypatch.setattr(child_processes, "_LOOK_S", 0.001)

    async def counted(process: asyncio.subprocess.Process) -> int:
        nonlocal waits
        waits += 1  # the transport keeps each of them until the end
        return await wait(process)

    monkeypatch.setattr(asyncio.subprocess.Process, "wait", counted)
    child = Child("sleeper", python("import time; time.sleep(0.5)"))
    await child.start()
    assert await child.wait() == 0
    assert waits == 1


async def test_a_child_can_be_started_again_but_not_twice() -> None:
    child = Child("again", python("import time; time.sleep(60)"))
    await child.start()
    first = child.pid
    with pytest.raises(RuntimeError):
        await child.start()
    await child.stop()
    await child.start()
    assert child.running
    assert child.pid != first
    await child.stop()


async def test_a_missing_program_is_a_config_error_that_names_it() -> None:
    with pytest.raises(ConfigError, match="no-such-program"):
        await Child("ghost", ["no-such-program"]).start()


async def test_stop_and_wait_before_start() -> None:
    child = Child("idle", ["true"])
    assert await child.stop() is None
    with pytest.raises(RuntimeError):
        await child.wait()


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's parent-death signal is Linux's own")
async def test_a_killed_parent_takes_its_children_along() -> None:
    code = (
        "import asyncio, sys\n"
        "from comfy_fleet.adapters.system.child_processes import Child\n"
        "async def main():\n"
        "    child = Child('c', [sys.executable, '-c', 'import time; time.sleep(60)'])\n"
        "    await child.start()\n"
        "    print(child.pid, flush=True)\n"
        "    await child.wait()\n"
        "asyncio.run(main())\n"
    )
    with subprocess.Popen(python(code), stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        assert alive(pid)
        os.kill(parent.pid, signal.SIGKILL)
        parent.wait(10)
    deadline = time.monotonic() + 60
    while alive(pid) and time.monotonic() < deadline:
        await asyncio.sleep(0.01)
    assert not alive(pid)


@pytest.mark.parametrize(
    ("status", "words"), [(0, "exit 0"), (3, "exit 3"), (-9, "SIGKILL"), (-65, "signal 65")]
)
def test_an_end_is_said_in_words(status: int, words: str) -> None:
    assert end_of(status) == words


def test_a_log_file_is_there_from_the_first_line_on(tmp_path: Path) -> None:
    log = LogFile(tmp_path / "child.log")
    assert not (tmp_path / "child.log").exists()
    for line in ("50 % of {all}", "that's all"):
        log.write(line)
    log.close()
    assert (tmp_path / "child.log").read_text() == "50 % of {all}\nthat's all\n"


def test_a_log_file_keeps_so_much_and_one_older_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(child_processes, "LOG_BYTES", 20)
    path, older = tmp_path / "child.log", tmp_path / "child.log.1"
    for start in range(2):  # what an earlier process wrote is counted
        log = LogFile(path)
        for number in range(3):
            log.write(f"line {start}{number}\udcff"[:7])
        log.close()
    assert (older.read_text(), path.read_text()) == ("line 02\nline 10\n", "line 11\nline 12\n")
    path.unlink()  # somebody tidies up while it is written
    log = LogFile(path)
    log.write("x" * 15)
    path.unlink()
    log.write("y" * 15)
    log.close()
    assert path.read_text() == "y" * 15 + "\n"


def test_a_log_on_a_full_disk_loses_whole_lines(tmp_path: Path) -> None:
    told: list[str] = []
    log = LogFile(tmp_path / "child.log", on_trouble=lambda error: told.append(str(error or "")))
    log.write("first")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:  # as a disk that has room for three bytes of the next line
        resource.setrlimit(resource.RLIMIT_FSIZE, (9, hard))
        log.write("second")
        log.write("third")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, before)
    log.write("fourth")
    log.close()
    assert (tmp_path / "child.log").read_text() == "first\nfourth\n"
    assert [bool(words) for words in told] == [True, True, False]


async def test_a_child_is_kept_through_ends_and_refused_starts() -> None:
    child = Child("short", [sys.executable, "-c", "raise SystemExit(3)"])
    ends: list[tuple[int, int, float]] = []
    refusals: list[str] = []
    enough = asyncio.Event()
    starts = 0

    async def restart() -> None:
        nonlocal starts
        starts += 1
        if starts % 2:
            raise ConfigError("its program is being replaced")
        await child.start()

    def ended(status: int, crashes: int, pause_s: float) -> None:
        ends.append((status, crashes, pause_s))
        if len(ends) == 3:
            enough.set()

    await child.start()
    kept = asyncio.create_task(
        child.keep(
            restart,
            backoff=Backoff(first_s=0.01, longest_s=0.02),
            steady_s=3600,
            on_end=ended,
            on_refused=lambda error: refusals.append(error.message),
        )
    )
    await asyncio.wait_for(enough.wait(), 30)
    kept.cancel()
    await asyncio.gather(kept, return_exceptions=True)
    await child.stop()
    assert ends == [(3, 1, 0.01), (3, 2, 0.02), (3, 3, 0.02)]
    assert refusals == ["its program is being replaced"] * 2
