"""Unusable answers count against a node; one run's own size does not take it out."""

import asyncio
from typing import Any

from comfy_fleet.domain.errors import NodeFault
from comfy_fleet.services.failure_policy import PATIENCE
from comfy_fleet.services.node_faults import NodeFaults
from tests.fakes.nodes import FakeNodeRegistry


async def told(*faults: NodeFault) -> list[tuple[str, str, int]]:
    registry = FakeNodeRegistry()
    count = NodeFaults(registry, limit=2)
    for fault in faults:
        count("g1", fault)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
    return registry.strikes


def of_run(run: str, **details: Any) -> NodeFault:
    return NodeFault("/history answered with too much", details={"run": run, **details})


async def test_every_unusable_answer_counts() -> None:
    faults = [NodeFault("/queue is no JSON"), NodeFault("/queue is no JSON")]
    assert await told(*faults) == [("g1", "answer", 2)] * 2


async def test_what_is_too_large_of_a_run_counts_once_a_run_and_needs_many() -> None:
    faults = [of_run("r1", limit="X"), of_run("r1", limit="X"), of_run("r2", limit="X")]
    assert await told(*faults) == [("g1", "frame", 2 * PATIENCE)] * 2


async def test_what_no_run_can_bring_about_counts_at_once() -> None:
    faults = [of_run("r1"), of_run("r1")]  # packed, for example, though nobody asked for that
    assert await told(*faults) == [("g1", "answer", 2)] * 2
