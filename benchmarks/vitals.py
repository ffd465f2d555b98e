"""What a fleet holds while it works: memory, handles, keys, sessions, files. Looked at every few seconds."""

import asyncio
import contextlib
import os
import re
import time
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from redis.asyncio import Redis

from benchmarks.growth import Point, Tolerance
from benchmarks.stage import BenchError, Fleet
from comfy_fleet.adapters.haproxy.config_render import files
from comfy_fleet.adapters.haproxy.runtime import Runtime
from comfy_fleet.adapters.redis.keys import Keyspace
from comfy_fleet.domain.errors import BrokerError

MIB = 1024.0 * 1024.0
TOLERANCES: Mapping[str, Tolerance] = {
    "RSS": Tolerance(share=0.05, least=8 * MIB),
    "PSS": Tolerance(share=0.05, least=8 * MIB),
    "files": Tolerance(share=0.1, least=16),
    "threads": Tolerance(share=0, least=2),
    "clients": Tolerance(share=0.1, least=8),
    "connections": Tolerance(share=0.1, least=16),
    "sessions": Tolerance(share=0.1, least=16),
    "queued": Tolerance(share=0.1, least=50),
    "kept": Tolerance(share=0.1, least=0.5),
    "each": Tolerance(share=0.1, least=1024),
}
"""By the first word of a series' name. Other series are only told: how many jobs are kept, and so how much
there is of anything, depends on how many end a second. Judged is instead what there is for each kept job
(``kept``, and ``each`` in bytes)."""
BYTES = frozenset({"RSS", "PSS", "memory", "bytes", "each"})
KEPT: Mapping[str, str] = {
    "idempotency": "for a day",
    "replay": "for a day",
    "fetched": "for a day",
    "flight_of": "for a day",
    "editor": "for a day",
    "webhook": "the newest 1,000 of each owner, for 30 days",
    "sched_set": "for 30 days, one for each set of models",
    "missing": "the newest of each owner, for 30 days",
    "saved_counts": "for ever, one for each owner",
}
"""Kinds of keys that are meant to outlive jobs, and for how long."""
FEWEST_KEPT = 100
"""With fewer kept jobs, what there is for each of them says nothing."""
_PAGE = os.sysconf("SC_PAGE_SIZE")
_WORD = re.compile(r"[A-Z]+")


def _patterns(keyspace: Keyspace, anything: str) -> list[tuple[str, re.Pattern[str]]]:
    """Return what every kind of key looks like, by the name that it has in the table of keys."""
    found = []
    for name, one in vars(Keyspace).items():
        if pattern := getattr(one, "pattern", None):
            parts = map(re.escape, _WORD.split(keyspace.whole(pattern)))
            found.append((name, re.compile(anything.join(parts), re.DOTALL)))
    return sorted(found, key=lambda one: -len(one[1].pattern))


class KeyKinds:
    """Counts keys by their kind."""

    def __init__(self, keyspace: Keyspace) -> None:
        # Few names have colons of their own; those that might be of another kind then are looked at last.
        self._patterns = [*_patterns(keyspace, "[^:]+"), *_patterns(keyspace, ".+")]

    def of(self, key: str) -> str:
        """Return a key's name in the table of keys; the key itself if there is none."""
        return next((name for name, pattern in self._patterns if pattern.fullmatch(key)), key)

    async def count(self, store: Any) -> Counter[str]:
        """Return how many keys there are of each kind."""
        counted: Counter[str] = Counter()
        known: dict[str, str] = {}
        async for key in store.scan_iter(count=2000):
            text = key.decode(errors="replace")
            # Most keys differ in an id alone.
            shape = re.sub(r"[0-9a-f-]{8,}", "x", text)
            if shape not in known:
                known[shape] = self.of(text)
            counted[known[shape]] += 1
        return counted


def process_vitals(pid: int) -> dict[str, float]:
    """Return memory in bytes, open files and threads of a process; nothing if it is gone."""
    folder = Path(f"/proc/{pid}")
    try:
        resident = int((folder / "statm").read_text().split()[1]) * _PAGE
        shares = (folder / "smaps_rollup").read_text()
        threads = (folder / "status").read_text().split("Threads:")[1].split()[0]
        return {
            "RSS": resident,
            "PSS": int(shares.split("\nPss:")[1].split()[0]) * 1024,
            "files": sum(1 for _ in (folder / "fd").iterdir()),
            "threads": int(threads),
        }
    except (OSError, IndexError, ValueError):
        return {}


def folder_vitals(folder: Path) -> tuple[int, int]:
    """Return how many files a folder has at any depth, and their bytes."""
    count, size = 0, 0
    for place, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(OSError):  # it was deleted meanwhile
                size += (Path(place) / name).lstat().st_size
                count += 1
    return count, size


class Vitals:
    """A record of what a fleet held, by series; times are seconds since it was made.

    Args:
        fleet: The fleet.
        every_s: How often everything that is cheap to look at is.
        slow_s: How often keys and files are counted.
    """

    def __init__(self, fleet: Fleet, *, every_s: float = 2.0, slow_s: float = 10.0) -> None:
        self.series: dict[str, list[Point]] = defaultdict(list)
        self.kinds: list[tuple[float, Counter[str]]] = []
        """How many keys there were of each kind."""
        self._fleet = fleet
        self._every_s = every_s
        self._slow_s = slow_s
        self._began = time.monotonic()
        self._slow_at = 0.0
        self._at_rest: dict[str, float] = {}
        places = files(fleet.settings)
        self._haproxy = {"edge": Runtime(places.edge_socket), "broker": Runtime(places.broker_socket)}
        keyspace = Keyspace(fleet.settings.namespace)
        self._key_kinds = KeyKinds(keyspace)
        self._keyspace = keyspace

    @property
    def now(self) -> float:
        """Seconds since the record was begun."""
        return time.monotonic() - self._began

    @asynccontextmanager
    async def watching(self, tell: Callable[[], None] = lambda: None) -> AsyncIterator[None]:
        """Look again and again while the block runs, and once more at its end."""
        task = asyncio.create_task(self._run(tell))
        try:
            yield
        finally:
            task.cancel()
            (ended,) = await asyncio.gather(task, return_exceptions=True)
            if isinstance(ended, Exception):
                raise ended

    async def _run(self, tell: Callable[[], None]) -> None:
        async with Redis.from_url(self._fleet.settings.redis_url) as store:
            while True:
                started = time.monotonic()
                await self.look(store)
                tell()
                await asyncio.sleep(max(0.2, started + self._every_s - time.monotonic()))

    async def look(self, store: Any) -> None:
        """Look once."""
        with contextlib.suppress(BenchError):  # a process is being started again
            for part, pids in self._fleet.pids().items():
                # Of HAProxy's master and its worker the worker is the one that may grow.
                self._note(part, await asyncio.to_thread(process_vitals, pids[-1]) if pids else {})
        with contextlib.suppress(OSError):
            memory, clients = await store.info("memory"), await store.info("clients")
            self._note("Redis", {"memory": memory["used_memory"], "clients": clients["connected_clients"]})
            queued, kept = await store.zcard(self._keyspace.queued), await store.zcard(self._keyspace.jobs)
            self._note("", {"queued": queued, "keys": await store.dbsize(), "jobs": kept})
            self.note_each("Redis for a kept job", "each", memory["used_memory"], kept)
        for name, haproxy in self._haproxy.items():
            with contextlib.suppress(BrokerError):
                about = await haproxy.ask("show info")
                (current,) = re.findall(r"^CurrConns: (\d+)", about, re.MULTILINE)
                sessions = await haproxy.ask("show sess")
                self._note(
                    f"HAProxy {name}", {"connections": int(current), "sessions": len(sessions.splitlines())}
                )
        if self.now >= self._slow_at:
            self._slow_at = self.now + self._slow_s
            counts = await self._key_kinds.count(store)
            self.kinds.append((self.now, counts))
            count, size = await asyncio.to_thread(folder_vitals, self._fleet.settings.files_dir)
            self._note("files", {"stored": count, "bytes": size})
            kept = counts["job"]
            theirs = sum(number for kind, number in counts.items() if kind not in KEPT)
            self.note_each("keys for a kept job", "kept", theirs, kept)
            self.note_each("files for a kept job", "kept", count, kept)

    def note_each(self, what: str, name: str, value: float, kept: int) -> None:
        """Note what there is for each kept job, beside what was there before there were any.

        What is there anyway would look like more for each when fewer are kept.
        """
        if kept >= FEWEST_KEPT:
            self._note(what, {name: max(0.0, value - self._at_rest.get(what, 0.0)) / kept})
        elif what not in self.series:
            self._at_rest.setdefault(what, value)

    def _note(self, what: str, found: Mapping[str, float]) -> None:
        for name, value in found.items():
            self.series[f"{name} {what}".strip()].append((self.now, value))


def shown(name: str, value: float) -> str:
    """Write a value of a series."""
    word = name.partition(" ")[0]
    if word in BYTES:
        return f"{value / 1024:.1f} KiB" if word == "each" else f"{value / MIB:.1f} MiB"
    return f"{value:.1f}" if word == "kept" else f"{value:.0f}"
