"""What a fleet takes of its machine: memory, descriptors, listeners and disk, process by process."""

import contextlib
from dataclasses import dataclass
from pathlib import Path

MIB = 1024 * 1024
MORE_BYTES = 160 * MIB
"""By so much a process may have grown: what it read of the largest requests, and keeps for the next ones."""
MORE_DESCRIPTORS = 400
"""Connections that are kept for the next requests: 128 of each process to Redis, which has all of them."""
MORE_DISK = 256 * MIB


def family(pid: int) -> set[int]:
    """Return a process and all of its descendants."""
    parents: dict[int, int] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            parents[int(stat.parent.name)] = int(stat.read_text().rpartition(")")[2].split()[1])
    found = {pid}
    while more := {child for child, parent in parents.items() if parent in found} - found:
        found |= more
    return found


def listening(pids: set[int]) -> set[str]:
    """Return the addresses that these processes listen on, as in /proc/net."""
    inodes = set()
    for pid in pids:
        for descriptor in Path(f"/proc/{pid}/fd").glob("*"):
            with contextlib.suppress(OSError):
                inodes.add(str(descriptor.readlink()).removeprefix("socket:[").removesuffix("]"))
    rows = [
        line.split()
        for table in ("/proc/net/tcp", "/proc/net/tcp6", "/proc/net/udp", "/proc/net/udp6")
        for line in Path(table).read_text().splitlines()[1:]
    ]
    return {row[1] for row in rows if row[9] in inodes and row[3] in ("0A", "07")}


@dataclass(frozen=True)
class Footprint:
    """What a fleet takes.

    Attributes:
        memory: Resident bytes by pid.
        descriptors: Open file descriptors by pid.
        listeners: Addresses that are listened on.
        disk: Bytes of its files.
    """

    memory: dict[int, int]
    descriptors: dict[int, int]
    listeners: frozenset[str]
    disk: int

    def grown(self, before: "Footprint") -> list[str]:
        """Return in words what has grown by more than it may."""
        found = [f"listens on {address}" for address in self.listeners - before.listeners]
        for pid, size in self.memory.items():
            if size > (was := before.memory.get(pid, size)) + MORE_BYTES:
                found.append(f"{_name(pid)}: {was // MIB} MiB of memory, now {size // MIB}")
        for pid, count in self.descriptors.items():
            if count > (had := before.descriptors.get(pid, count)) + MORE_DESCRIPTORS:
                found.append(f"{_name(pid)}: {had} file descriptors, now {count}")
        if self.disk > before.disk + MORE_DISK:
            found.append(f"{before.disk // MIB} MiB on the disk, now {self.disk // MIB}")
        return found


def footprint(pid: int, data: Path) -> Footprint:
    """Measure the fleet of a process, whose files are in a folder."""
    memory, descriptors = {}, {}
    pids = family(pid)
    for one in pids:
        with contextlib.suppress(OSError, ValueError, StopIteration):  # it has ended meanwhile
            lines = Path(f"/proc/{one}/status").read_text().splitlines()
            memory[one] = 1024 * int(next(line.split()[1] for line in lines if line.startswith("VmRSS:")))
            descriptors[one] = sum(1 for _ in Path(f"/proc/{one}/fd").iterdir())
    disk = 0
    for path in data.rglob("*"):
        with contextlib.suppress(OSError):
            disk += path.lstat().st_blocks * 512
    return Footprint(memory, descriptors, frozenset(listening(pids)), disk)


def _name(pid: int) -> str:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")[-80:]
    return str(pid)
