"""What happens to a fleet in ``scripts/chaos``: kills, freezes, cuts, full disks, a Redis that refuses."""

import asyncio
import contextlib
import os
import random
import signal
import time
from collections import Counter
from collections.abc import Awaitable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from redis.asyncio import Redis
from redis.exceptions import RedisError

from benchmarks.cuts import Way
from benchmarks.operations import kill
from benchmarks.outages import Outages
from benchmarks.small_disks import SmallDisk
from benchmarks.stage import Fleet, Served

FREEZE_S = (1.0, 9.0)  # a dispatcher's leases last 5 s
SHORT_S = (1.0, 5.0)
ORDER_S = 1.0
CONTROLLER = "HAProxy controller"
PARTS = {"redis": ("redis",), "HAProxy edge": ("edge",), "HAProxy broker": ("broker",)}
KINDS: Mapping[str, int] = {
    "kill": 8,
    "freeze": 6,
    "cut": 5,
    "Redis full": 1,
    "Redis read-only": 1,
    "Redis without replicas": 1,
    "Redis' disk full": 1,
    "fleet's disk full": 1,
    "fleet's disk read-only": 1,
}
"""How often each happens, compared with the others; of the first rounds, each is one."""


@dataclass(kw_only=True)
class Target:
    """What can be hurt.

    Attributes:
        fleet: The fleet.
        sims: Its nodes.
        ways: Ways to Redis and to nodes, each the process's or node's that uses it.
        data_disk: The disk of the fleet's data; None: it has none of its own.
        redis_disk: That of Redis.
        outages: Is told which parts are down.
    """

    fleet: Fleet
    sims: Sequence[Served]
    ways: Sequence[Way]
    data_disk: SmallDisk | None
    redis_disk: SmallDisk | None
    outages: Outages

    def processes(self) -> dict[str, list[int]]:
        """Return the processes that run now, by name; whatever is being started again is not there."""
        fleet = self.fleet
        found = {
            child.spec.name: [child.pid]
            for child in (*(sim.child for sim in self.sims), *fleet.dispatchers, fleet.redis)
            if child and child.pid
        }
        for name, child in (("api", fleet.api), ("agent", fleet.agent), (CONTROLLER, fleet.haproxy)):
            if child and child.pid:
                found[name] = [child.pid]
        if CONTROLLER in found:
            below = fleet.haproxy_pids(found[CONTROLLER][0])
            found |= {name: pids for name, pids in below.items() if pids}
        return found


@dataclass(kw_only=True)
class Faults:
    """Hurts a fleet.

    Attributes:
        target: What.
        rng: Chooses.
        done: What has happened, by kind and victim.
        log: The same in order, each with its time (monotonic seconds).
    """

    target: Target
    rng: random.Random
    done: Counter[str] = field(default_factory=Counter)
    log: list[tuple[float, str]] = field(default_factory=list)
    _first: list[str] = field(default_factory=list)
    _going: dict[str, asyncio.Task[None]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._first = sorted(KINDS)
        self.rng.shuffle(self._first)

    def strike(self) -> None:
        """Let one thing happen, which is over by itself after a while."""
        names = sorted(KINDS)
        drawn = self.rng.choices(names, [KINDS[name] for name in names])[0]
        kind = self._first.pop() if self._first else drawn
        # The same numbers are drawn whatever is possible, so that a seed chooses the same again.
        chance, short_s, long_s = self.rng.random(), self.rng.uniform(*SHORT_S), self.rng.uniform(*FREEZE_S)
        match kind:
            case "kill":
                self._kill(chance)
            case "freeze":
                self._freeze(chance, short_s, long_s)
            case "cut":
                self._cut(chance, short_s)
            case "Redis full":
                self._ordered(kind, ("CONFIG SET maxmemory 1", "CONFIG SET maxmemory 0"), short_s)
            case "Redis read-only":
                self._ordered(kind, ("REPLICAOF 127.0.0.1 1", "REPLICAOF NO ONE"), short_s)
            case "Redis without replicas":
                setting = "CONFIG SET min-replicas-to-write"
                self._ordered(kind, (f"{setting} 1", f"{setting} 0"), short_s)
            case "Redis' disk full":
                self._disk(kind, self.target.redis_disk, "redis", short_s)
            case "fleet's disk full":
                self._disk(kind, self.target.data_disk, "disk", short_s)
            case _:
                self._protected(kind, short_s)

    async def over(self) -> None:
        """Wait until everything that goes on is over."""
        while self._going:
            await asyncio.gather(*self._going.values())

    def _begin(self, name: str, what: str, parts: Sequence[str], work: Awaitable[None]) -> None:
        """Count a fault, and let it go on beside others; its parts are down meanwhile."""
        outages = self.target.outages
        outages.begin(*parts)
        self.done[what] += 1
        self.log.append((time.monotonic(), what))

        async def go_on() -> None:
            try:
                await work
            finally:
                outages.lift(*parts)
                self._going.pop(name, None)

        self._going[name] = asyncio.create_task(go_on())

    # -- processes ------------------------------------------------------------------------------------

    def _victim(self, chance: float) -> tuple[str, list[int]]:
        processes = self.target.processes()
        names = sorted(processes)
        name = names[int(chance * len(names))]
        return name, processes[name]

    def _kill(self, chance: float) -> None:
        name, pids = self._victim(chance)
        if name == "redis" and "Redis' disk full" in self._going:
            # What it has taken and could not write is in its memory only: two faults at once lose it.
            return
        parts = ("edge", "broker") if name == CONTROLLER else PARTS.get(name, ())

        async def nothing() -> None:
            """The process is started again by who started it."""

        # Of a master and its worker the first is the master; the worker dies with it.
        with contextlib.suppress(ProcessLookupError):
            kill(pids[0])
            self._begin(f"kill {time.monotonic()}", f"kill -9 {_plain(name)}", parts, nothing())

    def _freeze(self, chance: float, short_s: float, long_s: float) -> None:
        name, pids = self._victim(chance)
        going = f"freeze {name}"
        if going in self._going:
            return

        async def thaw() -> None:
            try:
                await asyncio.sleep(long_s if name.startswith("dispatch") else short_s)
            finally:
                _signal(pids, signal.SIGCONT)

        _signal(pids, signal.SIGSTOP)
        self._begin(going, f"freeze {_plain(name)}", PARTS.get(name, ()), thaw())

    # -- connections ----------------------------------------------------------------------------------

    def _cut(self, chance: float, short_s: float) -> None:
        ways = self.target.ways
        place = chance * len(ways)
        way, rest = ways[int(place)], place % 1
        going = f"cut {way.name}"
        if going in self._going:
            return
        if rest < 1 / 3:
            how, begin, lasts_s = "cut", way.cut, 0.0
        elif rest < 2 / 3:
            how, begin, lasts_s = "refuse", way.refuse, short_s
        else:
            how, begin, lasts_s = "stall", way.stall, short_s

        async def mend() -> None:
            try:
                await asyncio.sleep(lasts_s)
            finally:
                way.mend()

        begin()
        # For the API, Redis is down while it can't be reached.
        parts = ("redis",) if way.name == "api to Redis" else ()
        self._begin(going, f"{how} {_plain(way.name)}", parts, mend())

    # -- Redis and disks ------------------------------------------------------------------------------

    def _ordered(self, kind: str, orders: tuple[str, str], lasts_s: float) -> None:
        if kind in self._going:
            return

        async def work() -> None:
            await self._order(orders[0])
            try:
                await asyncio.sleep(lasts_s)
            finally:
                await self._order(orders[1])

        self._begin(kind, kind, ("redis",), work())

    async def _order(self, order: str) -> None:
        """Tell Redis, as soon as it listens."""
        while True:
            client: Any = Redis.from_url(self.target.fleet.settings.redis_url, socket_timeout=ORDER_S)
            try:
                async with client:
                    await client.execute_command(*order.split())
            except (RedisError, OSError):
                await asyncio.sleep(0.1)
            else:
                return

    def _disk(self, kind: str, disk: SmallDisk | None, part: str, lasts_s: float) -> None:
        if disk is None or kind in self._going:
            return

        async def work() -> None:
            try:
                end = time.monotonic() + lasts_s
                while time.monotonic() < end:  # whatever becomes free is taken
                    disk.fill()
                    await asyncio.sleep(0.05)
            finally:
                disk.free()

        self._begin(kind, kind, (part,), work())

    def _protected(self, kind: str, lasts_s: float) -> None:
        disk = self.target.data_disk
        if disk is None or kind in self._going or "fleet's disk full" in self._going:
            return
        if not disk.write_protect(True):  # a file is being written just now
            return

        async def work() -> None:
            try:
                await asyncio.sleep(lasts_s)
            finally:
                disk.write_protect(False)

        self._begin(kind, kind, ("disk",), work())


def _signal(pids: Sequence[int], number: signal.Signals) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):  # it was killed meanwhile
            os.kill(pid, number)


def _plain(name: str) -> str:
    """Return a victim's name without its number: one node is like another."""
    for kind, plain in (("sim-", "a node"), ("dispatch-", "a dispatcher"), ("node-", "a node's way")):
        if name.startswith(kind):
            return plain + (" to Redis" if name.endswith("to Redis") else "")
    return name
