"""Processes as ``/proc`` shows them. Where that is missing (macOS), nothing can be told."""

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_TICKS = os.sysconf("SC_CLK_TCK")
_LISTEN = "0A"  # TCP_LISTEN in the `st` column of /proc/net/tcp


@dataclass(frozen=True, kw_only=True)
class Used:
    """What a process and all of its children use.

    Attributes:
        pids: All of them.
        cpu_s: Seconds of processor time.
        read_bytes: Bytes read from disks.
        own_bytes: Host memory of their own: files that they map don't count.
        blocked: Whether one of them waits for a disk right now.
    """

    pids: frozenset[int] = frozenset()
    cpu_s: float = 0.0
    read_bytes: int = 0
    own_bytes: int | None = None
    blocked: bool = False


def used(pid: int, proc: Path = Path("/proc")) -> Used:
    """Add up what a process and its children use. Never raises: a process may end while it is looked at."""
    pids = family(pid, proc)
    cpu_s, read_bytes, own, blocked = 0.0, 0, None, False
    for one in pids:
        folder = proc / str(one)
        try:
            state, *numbers = _stat(folder)
            cpu_s += (int(numbers[10]) + int(numbers[11])) / _TICKS
            blocked = blocked or state == "D"
            fields = _fields(folder / "status")
            own = (own or 0) + 1024 * (_number(fields, "RssAnon") + _number(fields, "RssShmem"))
            read_bytes += _number(_fields(folder / "io"), "read_bytes")
        except (OSError, ValueError, IndexError):
            continue
    return Used(pids=pids, cpu_s=cpu_s, read_bytes=read_bytes, own_bytes=own, blocked=blocked)


def family(pid: int, proc: Path = Path("/proc")) -> frozenset[int]:
    """Return a process and all that it has started, as far as they are still its children."""
    found: set[int] = set()
    wanted = [pid]
    while wanted:
        one = wanted.pop()
        if one in found or not (proc / str(one)).is_dir():
            continue
        found.add(one)
        try:
            for task in (proc / str(one) / "task").iterdir():
                wanted += [int(word) for word in (task / "children").read_text().split()]
        except (OSError, ValueError):
            continue
    return frozenset(found)


def listener(port: int, proc: Path = Path("/proc")) -> int | None:
    """Return the process that listens on a TCP port; None if there is none, or it can't be seen.

    Another user's processes hide their descriptors from anybody but root.
    """
    sockets = {f"socket:[{inode}]" for inode in _listening(port, proc)}
    if not sockets:
        return None
    for folder in sorted(proc.glob("[0-9]*"), key=lambda path: int(path.name)):
        if not sockets.isdisjoint(_links(folder / "fd")):
            return int(folder.name)
    return None


def alive(pid: int, proc: Path = Path("/proc")) -> bool:
    """Return whether a process runs; one that has ended and only waits to be collected does not."""
    try:
        return _stat(proc / str(pid))[0] not in "ZX"
    except (OSError, IndexError):
        return False


def argv(pid: int, proc: Path = Path("/proc")) -> list[str]:
    """Return a process's program and arguments; empty if it is gone or can't be seen."""
    try:
        words = (proc / str(pid) / "cmdline").read_bytes().split(b"\0")
    except OSError:
        return []
    return [os.fsdecode(word) for word in words if word]


def _listening(port: int, proc: Path) -> Iterator[str]:
    """Yield the inodes of the sockets that listen on a port."""
    for table in ("net/tcp", "net/tcp6"):
        try:
            rows = [row.split() for row in (proc / table).read_text().splitlines()[1:]]
        except OSError:
            continue
        for row in rows:
            if row[3] == _LISTEN and int(row[1].rpartition(":")[2], 16) == port:
                yield row[9]


def _links(folder: Path) -> Iterator[str]:
    """Yield where a folder's links lead; nothing of what this user may not see."""
    try:
        entries = list(folder.iterdir())
    except OSError:
        return
    for entry in entries:
        with contextlib.suppress(OSError):
            yield str(entry.readlink())


def _stat(folder: Path) -> list[str]:
    # The name stands in brackets and may hold anything; the rest begins behind the last one.
    return (folder / "stat").read_text().rpartition(")")[2].split()


def _fields(path: Path) -> dict[str, str]:
    rows = (line.partition(":") for line in path.read_text().splitlines())
    return {name: value.strip() for name, _, value in rows}


def _number(fields: dict[str, str], name: str) -> int:
    return int(fields.get(name, "0").split()[0])
