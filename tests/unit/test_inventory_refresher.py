"""Reading what nodes have: what can't be read of one is its own trouble."""

import asyncio
from typing import Any

import pytest

from comfy_fleet.domain.errors import NodeFault
from comfy_fleet.domain.graphs.inventory import parse
from comfy_fleet.services.inventory_refresher import AT_ONCE, InventoryRefresher
from tests.fakes.comfyui import FakeNodeApi
from tests.fakes.nodes import FakeInventoryStore, FakeNodeRegistry

OTHERS = [f"dead{number}" for number in range(AT_ONCE)]
INFO = {"EmptyImage": {"input": {"required": {}}, "output": ["IMAGE"]}}


@pytest.fixture
def registry() -> FakeNodeRegistry:
    return FakeNodeRegistry()


@pytest.fixture
def store(registry: FakeNodeRegistry) -> FakeInventoryStore:
    return FakeInventoryStore(registry)


@pytest.fixture
def nodes() -> FakeNodeApi:
    return FakeNodeApi()


@pytest.fixture
def refresher(
    registry: FakeNodeRegistry, store: FakeInventoryStore, nodes: FakeNodeApi
) -> InventoryRefresher:
    for name in ("g1", *OTHERS):
        registry.put(name, verdict="up")
        nodes.classes[name], nodes.stats[name] = INFO, {}
    return InventoryRefresher(registry, store, nodes)


@pytest.mark.parametrize(
    ("error", "why"),
    [
        (TypeError("Integer exceeds 64-bit range"), "TypeError: Integer exceeds 64-bit range"),
        (RecursionError("too deep"), "RecursionError: too deep"),
        (NodeFault("/object_info answered with more than 32 MiB"), "/object_info answered with more than"),
    ],
)
async def test_whatever_is_raised_is_the_nodes_trouble(
    refresher: InventoryRefresher,
    registry: FakeNodeRegistry,
    store: FakeInventoryStore,
    nodes: FakeNodeApi,
    error: Exception,
    why: str,
) -> None:
    nodes.troubles = [error]
    assert await refresher.refresh(["g1"], patience_s=5) == frozenset()
    assert registry.held["g1"].reading.trouble.startswith(why)
    assert not store.reading


async def test_readings_that_others_have_begun_hold_up_no_reading(
    refresher: InventoryRefresher, store: FakeInventoryStore
) -> None:
    for name in OTHERS:
        assert await store.claim(name, ttl_s=20)
    waiting = asyncio.create_task(refresher.refresh(OTHERS, patience_s=30))
    await asyncio.sleep(0)
    assert await refresher.refresh(["g1"], patience_s=5) == {"g1"}
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    await refresher.stop()


def test_one_odd_class_costs_no_other() -> None:
    class Odd(dict[str, Any]):
        def get(self, *_: Any) -> Any:
            if _[0] == "input":
                raise OverflowError
            return super().get(*_)

    found = parse({"Odd": Odd(), **INFO})
    assert set(found.classes) == {"Odd", "EmptyImage"}
