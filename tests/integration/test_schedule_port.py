"""The scripts choose the same jobs as the rules in Python, by the same rules, whatever happens before."""

from dataclasses import asdict, dataclass, field
from random import Random
from typing import Any

import orjson
import pytest

from comfy_fleet.adapters.redis.client import FleetRedis
from comfy_fleet.adapters.redis.estimates import load_standing
from comfy_fleet.domain.schedule.backlog import MAX_HEADS, card_class
from comfy_fleet.domain.schedule.chooser import FairChooser
from comfy_fleet.domain.schedule.model_set import NO_MODELS
from comfy_fleet.domain.schedule.policy import JobChoice
from comfy_fleet.domain.schedule.read_standing import QUEUES
from comfy_fleet.domain.schedule.scheduled_node import GIB, ScheduledNode
from comfy_fleet.domain.schedule.waiting_job import BATCH, EDITOR, SINGLE, WaitingJob
from tests.integration.schedule_port_kit import Port, everything
from tests.unit.schedule.kit import job, models, node

PATIENCE_S = 5.0
TICK_S = 1 / 64  # so that no sum of times is rounded
WEIGHTS = {"o0": 2.0, "o1": 0.5}
TENANTS = {"o0": "", "o1": "ta", "o2": "ta", "o3": "tb", "o4": ""}
"""Of those fleets that have tenants; jobs of the default one alone come first."""
TENANT_WEIGHTS = {"ta": 2.0, "": 0.5}
KEPT = {"node", "holders", "pools", "set", "used", "left", "clock", "count", "tenanted"}
"""What is left when nothing waits or runs: what nodes have, and owners that are ahead of a queue."""
MOST_MORE = 20
"""Commands for telling where a job stands beside those for why it waits; one more for each further pool."""
SETS = [
    NO_MODELS,
    *(models(f"m{i}") for i in range(4)),
    models("m1", "lora1"),
    models("m1", "lora2", "lora3"),
    models("s0", gib=5),
    models("s1", "s0", gib=7),
    models("small", gib=0.25),
]
POOLS = {  # two nodes each, all alike
    "a": [node(f"a{i}", "image", vram_gib=24, ram_gib=40) for i in range(2)],
    "b": [node(f"b{i}", "image", "video", vram_gib=48, ram_gib=64, speed=2.0) for i in range(2)],
}
NODES = {each.name: (pool, each) for pool, nodes in POOLS.items() for each in nodes}


def served(pool: str, place: str, card: int) -> bool:
    """Whether the nodes of a pool serve a queue."""
    first = POOLS[pool][0]
    return place in first.places and card <= card_class(first.vram_bytes)


def placement_of(each: WaitingJob) -> str:
    """Return the placement class that stands for a job's queue."""
    card = card_class(each.memory)
    return ">".join(pool for pool in POOLS if served(pool, each.place, card)) + f":{each.place}{card}"


def record(each: WaitingJob) -> dict[str, str]:
    """Return a job's record in Redis."""
    numbers = {
        "rank": each.rank,
        "created": each.submitted,
        "run_s": each.run_s,
        "tier": each.tier,
        "memory": each.memory,
        "start_by": each.start_by,
        "finish_by": each.finish_by,
    }
    return {
        "owner": each.owner,
        **({"tenant": each.tenant} if each.tenant else {}),
        "placement": placement_of(each),
        "status": "queued",
        **({"set": each.models.key} if each.models.files else {}),
        **{name: repr(value) for name, value in numbers.items() if value is not None},
    }


@dataclass
class Both:
    """Both implementations, to which the same happens.

    Args:
        port: The rules in Redis.
        chance: What happens.
        tenants: Whether owners are in several tenants.
        rehearsed: Whether each choice is rehearsed first, which has to come to the same and to write nothing.
    """

    port: Port
    chance: Random
    tenants: bool = False
    rehearsed: bool = False
    now: float = 1000.0
    rules: list[str] = field(default_factory=list)
    most_commands: int = 0

    def __post_init__(self) -> None:
        self.fair = FairChooser(patience_s=PATIENCE_S, weights=WEIGHTS, tenant_weights=TENANT_WEIGHTS)
        self.waiting: dict[str, WaitingJob] = {}
        self.queues: dict[str, int] = {}  # in the order in which they got their first job
        self.up: dict[str, ScheduledNode] = {}
        self.running: dict[str, tuple[JobChoice, str, float, dict[str, Any]]] = {}  # by node
        self.lost: list[tuple[JobChoice, str, float, str]] = []  # their nodes are gone
        self.runs = 0
        self.naming = Random(0)
        for name in NODES:
            self.come(name)

    def come(self, name: str) -> None:
        self.up[name] = NODES[name][1]
        self.fair.node_up(NODES[name][1], self.now)

    async def go(self, name: str) -> None:
        if self.chance.random() < 0.5 and name in self.running:
            choice, run, since, _ = self.running.pop(name)
            self.lost.append((choice, run, since, name))
        elif name in self.running:
            return
        del self.up[name]
        self.fair.node_down(name, self.now)
        await self.port.call("cold", node=name)

    async def submit(self, each: WaitingJob) -> None:
        placement = placement_of(each)
        self.waiting[each.id] = each
        self.queues[placement] = self.queues.get(placement, 0) + 1
        self.fair.submitted(each, self.now)
        pools = placement.partition(":")[0].split(">")
        await self.port.call(
            "add",
            id=each.id,
            at=self.now,
            able=[name for name, (pool, _) in NODES.items() if pool in pools],
            record=record(each),
            files=orjson.dumps(each.models.files).decode() if each.models.files else None,
            weight=WEIGHTS.get(each.owner),
            tenant_weights=TENANT_WEIGHTS,
        )

    def gone(self, each: WaitingJob) -> None:
        del self.waiting[each.id]
        placement = placement_of(each)
        self.queues[placement] -= 1
        if not self.queues[placement]:
            del self.queues[placement]

    async def cancel(self, each: WaitingJob) -> None:
        self.gone(each)
        self.fair.withdrawn(each.id, self.now)
        await self.port.call("remove", id=each.id)

    async def ask(self, name: str) -> None:
        pool, facts = NODES[name]
        self.runs += 1
        run = f"run{self.runs}"
        queues = [each for each in self.queues if pool in each.partition(":")[0].split(">")]
        expected = self.fair.next_for(name, self.now)
        look = {
            "node": name,
            "pool": pool,
            "queues": queues,
            "peers": sum(1 for each in self.up if NODES[each][0] == pool),
            "speed": facts.speed,
            "vram": facts.vram_bytes,
            "ram": facts.ram_bytes,
            "patience": PATIENCE_S,
            "at": self.now,
            "run": run,
            **self.named(queues),
        }
        if not self.rehearsed:
            got = await self.port.call("choose", **look)
        else:
            before = await everything(self.port.redis)
            foreseen = await self.port.rehearse("choose", **look)
            assert await everything(self.port.redis) == before
            got = await self.port.call("choose", **look)
            assert foreseen == {**got, "commands": foreseen["commands"]}  # it has looked at the same jobs
        self.most_commands = max(self.most_commands, got["commands"])
        if isinstance(expected, JobChoice):
            assert (got.get("id"), got.get("rule")) == (expected.job.id, expected.reason)
            assert float(got["load_s"]) == expected.load_s
            self.rules.append(expected.reason)
            self.gone(expected.job)
            self.running[name] = expected, run, self.now, got
        else:
            assert got.get("id") is None
            again = expected.look_again_at
            assert (again is None) == ("again_s" not in got)
            if again is not None:
                assert float(got["again_s"]) == pytest.approx(again - self.now)
        assert got["heads"] == self.fair.heads_read <= MAX_HEADS

    def named(self, queues: list[str]) -> dict[str, dict[str, list[str]]]:
        """Name the nodes that can run each queue's jobs, or those that can't, or nobody: it is the same."""
        can = {each: each.partition(":")[0].split(">") for each in queues}
        found: dict[str, dict[str, list[str]]] = {"able": {}, "unable": {}}
        for each in queues:
            if kind := self.naming.choice(["", "able", "unable"]):
                found[kind][each] = [
                    name for name, (pool, _) in NODES.items() if (pool in can[each]) == (kind == "able")
                ]
        return {kind: names for kind, names in found.items() if names}

    async def end(self, name: str) -> None:
        choice, run, since, got = self.running.pop(name)
        used = self.now - since
        load_s = min(used, round(self.chance.choice([0.0, 0.5, 1.0, 2.0]) * choice.load_s / TICK_S) * TICK_S)
        ok = self.chance.random() < 0.8
        self.fair.ended(choice.job.id, name, load_s=load_s, run_s=used - load_s, ok=ok, now=self.now)
        await self.port.call(
            "left",
            run=run,
            at=self.now,
            node=name,
            load_s=load_s if ok else None,
            disk=got["missing_disk"],
            memory=got["missing_memory"],
        )
        if not ok and self.chance.random() < 0.5:
            await self.submit(choice.job)
        await self.ask(name)

    async def end_lost(self) -> None:
        choice, run, since, name = self.lost.pop()
        used = self.now - since
        self.fair.ended(choice.job.id, name, load_s=0.0, run_s=used, ok=False, now=self.now)
        await self.port.call("left", run=run, at=self.now)
        await self.submit(choice.job)

    def some_job(self, number: int) -> WaitingJob:
        chance, now = self.chance, self.now
        owner = f"o{chance.randrange(5 if self.tenants else 3)}"
        if self.tenants and number < 100:
            owner = "o0"
        return job(
            f"j{number:04}",
            chance.choice(SETS),
            at=now,
            owner=owner,
            tenant=TENANTS[owner] if self.tenants else "",
            place=chance.choice(["image", "image", "video"]),
            tier=chance.choice([EDITOR, SINGLE, SINGLE, SINGLE, BATCH]),
            priority_s=chance.choice([0.0, 0.0, 60.0]),
            run_s=chance.choice([0.3, 1.0, 4.0]),
            memory=chance.choice([0, 0, 0, 10, 20, 30]) * GIB,
            start_by=now + 8.0 if chance.random() < 0.05 else None,
            finish_by=now + chance.uniform(1, 3700) if chance.random() < 0.15 else None,
        )

    async def step(self, number: int) -> None:
        chance = self.chance
        self.now += TICK_S * chance.choice([1, 1, 2, 16, 64, 256])
        idle = [name for name in self.up if name not in self.running]
        match chance.choice(["submit"] * 8 + ["ask"] * 8 + ["end"] * 6 + ["cancel", "go", "come", "lost"]):
            case "submit":
                for i in range(chance.choice([1, 1, 5])):
                    await self.submit(self.some_job(number * 10 + i))
            case "ask" if idle:
                await self.ask(chance.choice(idle))
            case "end" if self.running:
                await self.end(chance.choice(list(self.running)))
            case "cancel" if self.waiting:
                await self.cancel(chance.choice(list(self.waiting.values())))
            case "go" if idle:
                name = chance.choice(list(self.up))
                if sum(1 for each in self.up if NODES[each][0] == NODES[name][0]) > 1:
                    await self.go(name)
            case "come":
                for name in [each for each in NODES if each not in self.up]:
                    self.come(name)
            case "lost" if self.lost:
                await self.end_lost()

    async def compare_standing(self, each: WaitingJob, redis: Any) -> None:
        """Compare what both say of where a job stands."""
        expected = self.fair.standing(each.id, self.now)
        assert expected is not None
        pools = placement_of(each).partition(":")[0].split(">")
        idle = [name for name in self.up if NODES[name][0] in pools and name not in self.running]
        node_name = idle[0] if len(idle) == 1 else None
        got = await self.port.call("standing", id=each.id, at=self.now, node=node_name, counts=self.queues)
        assert got["commands"] - got["before"] <= MOST_MORE + len(pools) - 1
        found = load_standing(orjson.dumps(got["standing"]))
        assert found is not None
        account: dict[bytes, bytes] = await redis.hgetall(f"fleet:sched:used:{each.owner}")
        places = [name for name in account if name.startswith(b"=")]  # also some where it waits no more
        unknown = {"others", "tenants"}
        if node_name is None:
            unknown.add("load_s")
        if len(places) > 1 + QUEUES:
            unknown |= {"beside", "foreign"}
        for what, value in asdict(expected).items():
            if what not in unknown:
                its = asdict(found.tenant) if what == "tenant" else getattr(found, what)
                assert its == pytest.approx(value, abs=1e-6), what
        shares = [sorted((one.tag, one.weight) for one in of.tenants) for of in (found, expected)]
        assert len(shares[0]) == len(shares[1])
        for a_share, other_share in zip(*shares, strict=True):
            assert a_share == pytest.approx(other_share)
        both = [sorted((one.jobs, one.tag, one.weight) for one in of.others) for of in (found, expected)]
        assert len(both[0]) == len(both[1])
        for one, other in zip(*both, strict=True):
            assert one == pytest.approx(other)

    async def drain(self) -> None:
        """Cancel what waits, and end what runs."""
        while self.waiting or self.running or self.lost:
            self.now += 1.0
            for each in list(self.waiting.values()):
                await self.cancel(each)
            for name in list(self.running)[:1]:
                await self.end(name)
            if self.lost:
                await self.end_lost()


@pytest.mark.parametrize("some", range(5))
async def test_both_choose_the_same(redis: FleetRedis, some: int) -> None:
    rules: set[str] = set()
    for seed in range(20 * some, 20 * some + 20):
        await redis.flushall()
        both = Both(Port(redis), Random(seed), tenants=seed % 2 == 1)
        for number in range(60):
            try:
                await both.step(number)
            except AssertionError as error:
                error.add_note(f"seed {seed}, step {number}, {both.now} s")
                raise
        await both.drain()
        rules.update(both.rules)
        client: Any = redis
        left = {key.decode().split(":")[2] for key in await client.keys("fleet:sched:*")}
        assert left <= KEPT
        accounts = await redis.keys("fleet:sched:used:*")
        bases = [await redis.zcard(key) for key in await redis.keys("fleet:sched:left:*")]
        assert len(accounts) + sum(bases) == both.fair.snapshot().owners
    assert rules >= {"overdue", "turn", "warm", "order", "unheld", "share"}


@pytest.mark.parametrize("some", range(3))
async def test_a_rehearsal_comes_to_the_same_and_writes_nothing(redis: FleetRedis, some: int) -> None:
    rules: set[str] = set()
    for seed in range(1000 + 10 * some, 1012 + 10 * some):
        await redis.flushall()
        both = Both(Port(redis), Random(seed), tenants=seed >= 1010 + 10 * some, rehearsed=True)
        for number in range(60):
            try:
                await both.step(number)
            except AssertionError as error:
                error.add_note(f"seed {seed}, step {number}, {both.now} s")
                raise
        rules.update(both.rules)
    assert rules >= {"overdue", "turn", "warm", "unheld", "share"}


@pytest.mark.parametrize("some", range(2))
async def test_both_say_where_jobs_stand(redis: FleetRedis, some: int) -> None:
    compared = 0
    for seed in range(1000 + 8 * some, 1000 + 8 * some + 8):
        await redis.flushall()
        both = Both(Port(redis), Random(seed), tenants=seed % 2 == 1)
        for number in range(60):
            await both.step(number)
            for each in both.chance.sample(list(both.waiting.values()), min(2, len(both.waiting))):
                try:
                    await both.compare_standing(each, redis)
                except AssertionError as error:
                    error.add_note(f"seed {seed}, step {number}, {each.id}, {both.now} s")
                    raise
                compared += 1
    assert compared > 200
