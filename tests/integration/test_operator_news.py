"""What the operator's URL is told, once each."""

from pathlib import Path

import pytest

from comfy_fleet.adapters.redis.webhooks import RedisWebhooks
from comfy_fleet.bootstrap import Stores
from comfy_fleet.domain.nodes.node import Node, NodeState
from comfy_fleet.domain.store_memory import StoreMemory
from comfy_fleet.domain.webhooks.webhook import OPERATOR
from comfy_fleet.ports.webhooks import OperatorFact
from comfy_fleet.services.operator_news import (
    USUAL,
    certificate_fact,
    disk_fact,
    memory_fact,
    node_facts,
    queue_fact,
)
from tests.fleet import until
from tests.integration.api_kit import running
from tests.integration.webhook_kit import receiver

URL = "http://operator.test/hooks"
DAY = 86_400.0


def state(verdict: str, *, cordoned: bool = False, bad: bool = False) -> NodeState:
    node = Node(name="g1", url="http://127.0.0.1:9", cordoned=cordoned)
    return NodeState(node=node, verdict=verdict, why="ComfyUI is gone", quarantined=bad)


def nodes(verdict: str, **more: bool) -> list[OperatorFact]:
    return node_facts([state(verdict, **more)], steady_s=0.0)


async def told(stores: Stores, *looks: list[OperatorFact]) -> list[str]:
    webhooks = RedisWebhooks(stores.redis, stores.events)
    for facts in looks:
        await webhooks.tell(URL, facts, usual=USUAL, kind="node")
    found = await webhooks.messages(OPERATOR, failed=False, limit=99)
    return [one.type for one in reversed(found)]


async def test_each_change_of_a_node_is_told_once(stores: Stores) -> None:
    up, down = nodes("up"), nodes("down")
    assert await told(stores, up, up, down, down, up, up, down) == ["node.down", "node.up", "node.down"]


async def test_a_node_that_is_down_at_the_first_look_is_told(stores: Stores) -> None:
    assert await told(stores, nodes("down"), nodes("down")) == ["node.down"]


async def test_what_operators_do_themselves_is_no_news(stores: Stores) -> None:
    assert await told(stores, nodes("up"), nodes("down", cordoned=True), nodes("new"), [], nodes("up")) == []
    assert await told(stores, nodes("up", cordoned=True, bad=True)) == ["node.down"]  # the fleet did that


async def test_only_what_lasts_is_told(stores: Stores) -> None:
    short = node_facts([state("down")], steady_s=60.0)
    assert await told(stores, nodes("up"), short, short, nodes("up")) == []
    lasting = node_facts([state("down")], steady_s=0.1)
    webhooks = RedisWebhooks(stores.redis, stores.events)

    async def is_told() -> int:
        return await webhooks.tell(URL, lasting, usual=USUAL, kind="node")

    await until(is_told, what="it has lasted")


async def test_two_processes_that_look_tell_it_once(stores: Stores) -> None:
    down = nodes("down")
    first, second = (RedisWebhooks(stores.redis, stores.events) for _ in range(2))
    counts = [await one.tell(URL, down, usual=USUAL, kind="node") for one in (first, second)]
    assert counts == [1, 0]


async def test_queue_disk_and_certificates(stores: Stores) -> None:
    def look(queued: int, running: int, free: int, left_s: float) -> list[OperatorFact]:
        return [
            queue_fact(queued=queued, running=running, steady_s=0.0),
            disk_fact(path="/data", free_bytes=free, floor_bytes=100),
            memory_fact(StoreMemory(used_bytes=1000 - free, most_bytes=1000)),
            certificate_fact(name="edge", expires_at=left_s, now=0.0),
        ]

    fine, bad = look(5, 1, 200, 30 * DAY), look(5, 0, 199, 13 * DAY)
    assert sorted(await told(stores, fine, look(0, 0, 500, 15 * DAY), bad, bad)) == [
        *("certificate.expiring", "disk.low", "queue.stuck", "redis.memory")
    ]


async def test_the_operators_url_is_told_wherever_it_is_and_signed_for_operators(
    redis_port: int, redis: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("comfy_fleet.api.main.node_facts", lambda states: node_facts(states, steady_s=0.0))
    async with (
        receiver() as desk,
        running(redis_port, tmp_path, operator_webhook_url=f"{desk.url}/desk") as api,
    ):
        await api.add_node(up=False)
        await api.stores.nodes.report("g1", verdict="down", why="ComfyUI is gone")
        await until(lambda: desk.taken, what="the operator is told", timeout_s=40)
        secret = (await api.client.get("/api/v1/webhooks/secret?operator=true")).json()["secret"]
        message = desk.taken[0].verified(secret)
        assert message["type"] == "node.down" and message["data"]["node"] == "g1"
        assert message["data"]["reason"] == "ComfyUI is gone"
        (row,) = (await api.client.get("/api/v1/webhooks?operator=true")).json()["webhooks"]
        assert row["id"] == desk.taken[0].id and row["job"] is None
        assert (await api.client.get("/api/v1/webhooks")).json()["webhooks"] == []
