"""Processes as ``/proc`` shows them. Without it (macOS), nothing is known."""

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_TICKS = os.sysconf("SC_CLK_TCK")
_LISTEN = "0A"  # TCP_LISTEN in the `st` column of /proc/net/tcp


@dataclass(frozen=True, kw_only=True)
class Used:
    """The resources that a process and all of its children use.

    Attributes:
        pids: All of them.
        cpu_s: Seconds of processor time.
        read_bytes: Bytes read from disks.
        own_bytes: Their own host memory; mapped files don't count.
        blocked: Whether one of them is waiting for a disk.
    """

    pids: frozenset[int] = frozenset()
    cpu_s: float = 0.0
    read_bytes: int = 0
    own_bytes: int | None = None
    blocked: bool = False


def used(pid: int, proc: Path = Path("/proc")) -> Used:
    """Add up the resources of a process and its children. Never raises: processes may end meanwhile."""
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
    """Return a process and its present descendants."""
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
    """Return the process that listens on a TCP port; None if there is none, or it is hidden.

    Only root can see the descriptors of other users' processes.
    """
    sockets = {f"socket:[{inode}]" for inode in _listening(port, proc)}
    if not sockets:
        return None
    for folder in sorted(proc.glob("[0-9]*"), key=lambda path: int(path.name)):
        if not sockets.isdisjoint(_links(folder / "fd")):
            return int(folder.name)
    return None


def listening(port: int, proc: Path = Path("/proc")) -> frozenset[str] | None:
    """Return the inodes of the sockets that listen on a TCP port: others after a restart; None if hidden."""
    if not (proc / "net/tcp").exists():
        return None
    return frozenset(_listening(port, proc))


def alive(pid: int, proc: Path = Path("/proc")) -> bool:
    """Return whether a process runs; a zombie does not."""
    try:
        return _stat(proc / str(pid))[0] not in "ZX"
    except (OSError, IndexError):
        return False


def argv(pid: int, proc: Path = Path("/proc")) -> list[str]:
    """Return a process's program and arguments; empty if it is gone or hidden."""
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
    """Yield the targets of a folder's links; those that this user may not see are left out."""
    try:
        entries = list(folder.iterdir())
    except OSError:
        return
    for entry in entries:
        with contextlib.suppress(OSError):
            yield str(entry.readlink())


def _stat(folder: Path) -> list[str]:
    # The name is in brackets and may contain anything; the rest begins after the last bracket.
    return (folder / "stat").read_text().rpartition(")")[2].split()


def _fields(path: Path) -> dict[str, str]:
    rows = (line.partition(":") for line in path.read_text().splitlines())
    return {name: value.strip() for name, _, value in rows}


def _number(fields: dict[str, str], name: str) -> int:
    return int(fields.get(name, "0").split()[0])
