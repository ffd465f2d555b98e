"""CPU time of processes, as the kernel counts it (proc(5))."""

import contextlib
import os
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path

_TICK_S = 1 / os.sysconf("SC_CLK_TCK")


def _stat(pid: int) -> list[str]:
    text = Path(f"/proc/{pid}/stat").read_text()
    # The name stands in brackets and may hold anything; after the last bracket the fields are plain.
    return text[text.rindex(")") + 2 :].split()


def cpu_seconds(pid: int) -> float:
    """Return user and system time of a process with all its threads; 0 if it is gone."""
    try:
        fields = _stat(pid)
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) * _TICK_S


def user_seconds(pid: int) -> float:
    """Return the time that a process has computed outside of the kernel; 0 if it is gone."""
    try:
        return int(_stat(pid)[11]) * _TICK_S
    except OSError:
        return 0.0


def command(pid: int) -> str:
    """Return a process's command line, blank if it is gone."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        return ""


def descendants(pid: int) -> list[int]:
    """Return children, their children and so on."""
    children: defaultdict[int, list[int]] = defaultdict(list)
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError, ValueError, IndexError):
                children[int(_stat(int(entry.name))[1])].append(int(entry.name))
    found: list[int] = []
    todo = [pid]
    while todo:
        more = children[todo.pop()]
        found += more
        todo += more
    return found


class CpuMeter:
    """How much CPU time groups of processes use between two moments.

    Args:
        groups: Process ids by what the group is called.
    """

    def __init__(self, groups: Mapping[str, Iterable[int]]) -> None:
        self._groups = {name: tuple(pids) for name, pids in groups.items()}
        self._start = self._read()

    def _read(self) -> dict[str, float]:
        return {name: sum(map(cpu_seconds, pids)) for name, pids in self._groups.items()}

    def seconds(self) -> dict[str, float]:
        """Return CPU seconds by group since the meter was made."""
        now = self._read()
        return {name: now[name] - self._start[name] for name in now}
