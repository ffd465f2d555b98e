"""Asking nodes for the files that they list: once for everybody, and not again while one is silent."""

import asyncio
from collections.abc import Mapping
from typing import Any

from comfy_fleet.domain.nodes.node import Node, NodeState
from comfy_fleet.services.input_lists import SILENT_S, InputLists

LOADER = {"LoadImage": {"input": {"required": {"image": [["a.png"], {"image_upload": True}]}}, "output": []}}


class Nodes:
    """Nodes that say which files they have, or nothing."""

    def __init__(self) -> None:
        self.asked = 0
        self.silent = False
        self.now = 100.0

    async def listing(self, node: str, path: str, query: Mapping[str, str] | None = None) -> Any:
        self.asked += 1
        await asyncio.sleep(0)
        if self.silent:
            await asyncio.Event().wait()
        return LOADER

    def lists(self) -> InputLists:
        states = {name: NodeState(node=Node(name=name, url=f"http://{name}:1")) for name in ("g1", "g2")}
        return InputLists(self, lambda: states, patience_s=0.05, clock=lambda: self.now)


async def test_many_requests_ask_once() -> None:
    nodes = Nodes()
    lists = nodes.lists()
    found = await asyncio.gather(*(lists.declared(["LoadImage"], age_s=2.0) for _ in range(100)))
    assert nodes.asked == 2
    assert all(one is found[0] for one in found) and len(found[0].inventories) == 2
    nodes.now += 3
    await lists.declared(["LoadImage"], age_s=2.0)
    assert nodes.asked == 4


async def test_after_a_silent_node_nobody_is_asked_for_a_while() -> None:
    nodes = Nodes()
    lists = nodes.lists()
    nodes.silent = True
    assert not (await lists.declared(["LoadImage"], age_s=2.0)).inventories
    asked = nodes.asked
    for classes in (["LoadImage"], ["LoadImage", "LoadImageMask"]):
        assert not (await lists.declared(classes, age_s=2.0)).inventories
    assert nodes.asked == asked
    nodes.now, nodes.silent = nodes.now + SILENT_S + 1, False
    assert (await lists.declared(["LoadImage"], age_s=2.0)).inventories
