"""Reading what nodes have: what can't be read of one is its own trouble."""

import asyncio
from collections.abc import Mapping
from typing import Any, cast

import pytest

from comfy_fleet.domain.errors import NodeFault
from comfy_fleet.domain.graphs.inventory import Inventory, parse
from comfy_fleet.domain.nodes.node import Node, NodeState
from comfy_fleet.ports.nodes import InventoryStore, NodeRegistry
from comfy_fleet.services.inventory_refresher import AT_ONCE, InventoryRefresher

INFO = {"EmptyImage": {"input": {"required": {}}, "output": ["IMAGE"]}}


class Store:
    def __init__(self, taken: frozenset[str] = frozenset()) -> None:
        self.claimed: set[str] = set(taken)
        self.unread: dict[str, str] = {}
        self.saved: list[str] = []

    async def claim(self, node: str, *, ttl_s: int) -> bool:
        if node in self.claimed:
            return False
        self.claimed.add(node)
        return True

    async def unclaim(self, node: str, *, why: str = "") -> None:
        self.claimed.discard(node)
        self.unread[node] = why

    async def save(self, node: str, *_: Any) -> str:
        self.claimed.discard(node)
        self.saved.append(node)
        return "changed"


class Registry:
    async def state(self, name: str) -> NodeState:
        return NodeState(node=Node(name=name, url="http://127.0.0.1:1"), verdict="up")


class Nodes:
    def __init__(self, raises: Exception | None = None) -> None:
        self._raises = raises

    async def system_stats(self, node: str) -> Mapping[str, Any]:
        return {}

    async def inventory(self, node: str) -> Inventory:
        if self._raises is not None:
            raise self._raises
        return parse(INFO)


def refresher(store: Store, nodes: Nodes) -> InventoryRefresher:
    return InventoryRefresher(cast(NodeRegistry, Registry()), cast(InventoryStore, store), nodes)


@pytest.mark.parametrize(
    ("error", "why"),
    [
        (TypeError("Integer exceeds 64-bit range"), "TypeError: Integer exceeds 64-bit range"),
        (RecursionError("too deep"), "RecursionError: too deep"),
        (NodeFault("/object_info answered with more than 32 MiB"), "/object_info answered with more than"),
    ],
)
async def test_whatever_is_raised_is_the_nodes_trouble(error: Exception, why: str) -> None:
    store = Store()
    assert await refresher(store, Nodes(error)).refresh(["g1"], patience_s=5) == frozenset()
    assert store.unread["g1"].startswith(why)
    assert store.claimed == set()


async def test_readings_that_others_have_begun_hold_up_no_reading() -> None:
    taken = frozenset(f"dead{number}" for number in range(AT_ONCE))
    store = Store(taken)
    kept = refresher(store, Nodes())
    waiting = asyncio.create_task(kept.refresh(sorted(taken), patience_s=30))
    await asyncio.sleep(0)
    assert await kept.refresh(["g1"], patience_s=5) == {"g1"}
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    await kept.stop()


def test_one_odd_class_costs_no_other() -> None:
    class Odd(dict[str, Any]):
        def get(self, *_: Any) -> Any:
            if _[0] == "input":
                raise OverflowError
            return super().get(*_)

    found = parse({"Odd": Odd(), **INFO})
    assert set(found.classes) == {"Odd", "EmptyImage"}
