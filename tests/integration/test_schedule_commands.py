"""How many commands a choice gives to Redis: nothing else is done there meanwhile."""

from random import Random
from typing import Any

import orjson
import pytest

from comfy_fleet.adapters.redis.client import FleetRedis
from comfy_fleet.domain.schedule.backlog import MAX_HEADS
from comfy_fleet.domain.schedule.scheduled_node import GIB
from tests.integration.schedule_port_kit import Port

COMMON, MOST = 45, 250
POOL_MORE = 12
"""Commands for each pool beyond the first: of families, who holds them there."""


async def add(port: Port, name: str, placement: str, model: int, at: float, **fields: Any) -> int:
    """Let a job wait that loads two files; return how many commands that took."""
    files = [[f"m{model // 4}", 6 * GIB], [f"l{model}", GIB // 8]]
    record = {
        "placement": placement,
        "rank": repr(at),
        "created": repr(at),
        "set": f"s{model}",
        "run_s": "1.0",
        **fields,
    }
    got = await port.call(
        "add", id=name, at=at, able=["n0"], files=orjson.dumps(files).decode(), record=record
    )
    return int(got["commands"])


async def look(
    port: Port, node: str, placements: list[str], at: float, run: str, *, rehearse: bool = False, **more: Any
) -> dict[str, Any]:
    """Let a node look for a job, or do as if it did."""
    facts = {
        "pool": "a",
        "peers": 2,
        "speed": 1.0,
        "vram": 24 * GIB,
        "ram": 32 * GIB,
        "patience": 60.0,
        **more,
    }
    call = port.rehearse if rehearse else port.call
    return await call("choose", node=node, queues=placements, at=at, run=run, **facts)


@pytest.mark.parametrize("waiting", [0, 30])
async def test_common_claims_take_few(redis: FleetRedis, waiting: int) -> None:
    port = Port(redis)
    for i in range(waiting):
        await add(port, f"w{i}", "a", 0, 1000.0, owner=f"o{i % 3}")
    for i in range(8):
        at = 1001.0 + 2 * i
        assert await add(port, f"j{i}", "a", 0, at, owner=f"o{i % 3}") <= 30
        got = await look(port, "n0", ["a"], at, f"r{i}")
        assert got["rule"] == ("turn" if i else "unheld")
        assert i == 0 or got["commands"] <= COMMON
        assert (await port.call("left", run=f"r{i}", at=at + 1.5))["commands"] <= 10
    if waiting:
        assert (await port.call("remove", id="w29"))["commands"] <= 25


@pytest.mark.parametrize("pools", ["a", "a>b>c>d"])
@pytest.mark.parametrize("queues", [1, 8])
async def test_no_claim_takes_many_whatever_waits(redis: FleetRedis, pools: str, queues: int) -> None:
    port, chance = Port(redis), Random(1)
    placements = [f"{pools}:n{i}" for i in range(queues)]
    names = pools.split(">")
    for i in range(800):
        wish = {"finish_by": repr(1000 + chance.choice([0.5, 500]))} if chance.random() < 0.5 else {}
        await add(
            port,
            f"j{i}",
            chance.choice(placements),
            chance.randrange(400),
            1000.0,
            owner=f"o{i % 300}",
            tier=str(chance.choice([0, 1, 1, 2])),
            memory=str(chance.choice([0, 0, 0, 40]) * GIB),
            **wish,
        )
    most, most_rehearsed, rules = 0, 0, set()
    for step in range(400):
        at, number = 1000.0 + 0.05 * step, step % 20
        about: dict[str, Any] = {
            "pool": names[number % len(names)],
            "vram": [12, 24, 48][number % 3] * GIB,
            "patience": 0.5,
        }
        rehearsed = await look(port, f"n{number}", placements, at, f"r{step}", rehearse=True, **about)
        got = await look(port, f"n{number}", placements, at, f"r{step}", **about)
        assert rehearsed["heads"] == got["heads"]
        most_rehearsed = max(most_rehearsed, rehearsed["commands"])
        most = max(most, got["commands"])
        rules.add(got.get("rule"))
        assert got["heads"] <= MAX_HEADS
        if "id" in got:
            await port.call("left", run=f"r{step}", at=at + chance.uniform(0.1, 5))
    assert 0 < most_rehearsed <= most
    assert 100 < most <= MOST + POOL_MORE * (len(names) - 1)
    assert {"overdue", "warm", "unheld"} <= rules
