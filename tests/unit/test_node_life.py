"""Walks over many nodes: who is restarted when, and what a node that does not follow leaves behind."""

from dataclasses import dataclass, field, replace

import pytest

from comfy_fleet.domain.errors import Conflict, NotFound, NotInTime
from comfy_fleet.services import node_life
from comfy_fleet.services.node_life import NodeStatus, check_managed, roll, wait_drained, wait_up

IDLE = NodeStatus(busy=False, cordon=None, verdict="up", starts=0, managed=True, state="up", work="")


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(node_life, "LOOK_S", 0.001)


@dataclass
class World:
    """Some nodes, and every order that they got."""

    nodes: dict[str, NodeStatus] = field(default_factory=lambda: dict.fromkeys(["g1", "g2", "g3"], IDLE))
    orders: list[str] = field(default_factory=list)
    silent: set[str] = field(default_factory=set)
    unstartable: set[str] = field(default_factory=set)

    async def status(self, name: str) -> NodeStatus:
        return self.nodes[name]

    async def drain(self, name: str, *, reason: str | None = None, requeue: bool = False) -> None:
        assert reason == "rolling restart" and not requeue
        self.orders.append(f"drain {name}")
        self.nodes[name] = replace(self.nodes[name], cordon=reason)

    async def resume(self, name: str) -> None:
        self.orders.append(f"resume {name}")
        self.nodes[name] = replace(self.nodes[name], cordon=None)

    async def restart(self, name: str) -> None:
        self.orders.append(f"restart {name}")
        if name in self.unstartable:
            raise Conflict(f"{name} can't be restarted")
        self.nodes[name] = replace(self.nodes[name], starts=self.nodes[name].starts + 1)

    async def refresh(self, name: str) -> bool:
        self.orders.append(f"refresh {name}")
        return name not in self.silent

    async def rolled(self, *names: str, at_once: int = 1, drain_s: float = 5, back_s: float = 5) -> list[str]:
        walk = roll(self, names, at_once=at_once, restart=self.restart, drain_s=drain_s, back_s=back_s)
        return [" ".join(batch) async for batch in walk]


def steps(name: str) -> list[str]:
    return [f"{order} {name}" for order in ("drain", "restart", "refresh", "resume")]


async def test_one_node_is_back_before_the_next_is_drained() -> None:
    world = World()
    assert await world.rolled("g1", "g2") == ["g1", "g2"]
    assert world.orders == steps("g1") + steps("g2")


async def test_a_batch_is_drained_together() -> None:
    world = World()
    assert await world.rolled("g1", "g2", "g3", at_once=2) == ["g1 g2", "g3"]
    assert world.orders[:4] == ["drain g1", "drain g2", "restart g1", "restart g2"]


async def test_jobs_that_do_not_end_leave_every_node_as_it_was() -> None:
    world = World()
    world.nodes["g2"] = replace(IDLE, busy=True, work="job 1b9d6bcd KSampler 21/50")
    with pytest.raises(NotInTime, match=r"g2 is not empty after 0\.05 s: job 1b9d6bcd KSampler 21/50"):
        await world.rolled("g1", "g2", at_once=2, drain_s=0.05)
    assert world.orders == ["drain g1", "drain g2", "resume g1", "resume g2"]


async def test_a_node_that_can_not_be_drained_leaves_the_others_as_they_were() -> None:
    class Odd(World):
        async def drain(self, name: str, *, reason: str | None = None, requeue: bool = False) -> None:
            await super().drain(name, reason=reason, requeue=requeue)
            if name == "g2":
                raise Conflict("g2 can't be drained")

        async def resume(self, name: str) -> None:
            await super().resume(name)
            if name == "g1":
                raise Conflict("g1 can't be resumed")

    world = Odd()
    with pytest.raises(Conflict, match="g2 can't be drained"):
        await world.rolled("g1", "g2", "g3", at_once=3)
    assert world.orders == ["drain g1", "drain g2", "resume g1", "resume g2"], "g3 was left alone"


async def test_a_node_that_does_not_come_back_stays_drained_and_ends_the_walk() -> None:
    world = World(silent={"g1"})
    with pytest.raises(NotInTime, match=r"g1 did not come back within 0\.05 s") as caught:
        await world.rolled("g1", "g2", back_s=0.05)
    assert caught.value.details == {"node": "g1", "nodes": ["g1"]}
    assert "resume g1" not in world.orders and "drain g2" not in world.orders


async def test_those_of_a_batch_that_are_back_get_jobs_again_and_all_others_are_named() -> None:
    world = World(silent={"g1", "g3"})
    with pytest.raises(NotInTime, match=r"nodes g1, g3 did not come back within 0\.05 s") as caught:
        await world.rolled("g1", "g2", "g3", at_once=3, back_s=0.05)
    assert caught.value.details["nodes"] == ["g1", "g3"]
    assert [order for order in world.orders if order.startswith("resume")] == ["resume g2"]


async def test_a_restart_that_fails_keeps_only_its_own_node_drained() -> None:
    world = World(unstartable={"g2"})
    with pytest.raises(Conflict, match="g2 can't be restarted"):
        await world.rolled("g1", "g2", "g3", at_once=3)
    assert "restart g3" not in world.orders
    assert {name for name, node in world.nodes.items() if node.cordon} == {"g2"}


async def test_a_node_that_is_gone_keeps_no_other_one_drained() -> None:
    world = World()

    async def gone(name: str) -> NodeStatus:
        if name == "g1" and "drain g2" in world.orders:
            raise NotFound("no node 'g1'")
        return world.nodes[name]

    world.status = gone  # type: ignore[method-assign]
    with pytest.raises(NotFound):
        await world.rolled("g1", "g2", at_once=2)
    assert world.orders == ["drain g1", "drain g2", "resume g2"]


@pytest.mark.parametrize("when", ["is empty", "restarts"])
async def test_a_node_that_is_removed_later_keeps_no_other_one_drained(when: str) -> None:
    world = World()
    empty: set[str] = set()

    async def gone(name: str) -> NodeStatus:
        if name == "g1" and ("restart g3" in world.orders if when == "restarts" else "g3" in empty):
            raise NotFound("no node 'g1'")
        if "drain g3" in world.orders:
            empty.add(name)
        return world.nodes[name]

    world.status = gone  # type: ignore[method-assign]
    with pytest.raises(NotFound):
        await world.rolled("g1", "g2", "g3", at_once=3)
    assert {name for name, node in world.nodes.items() if node.cordon} == {"g1"}


async def test_a_drain_by_somebody_else_before_a_nodes_turn_leaves_it_out() -> None:
    world = World()
    walk = roll(world, ["g1", "g2", "g3"], at_once=1, restart=world.restart, drain_s=5, back_s=5)
    assert await anext(walk) == ["g1"]
    world.nodes["g2"] = replace(world.nodes["g2"], cordon="its fan is loud")
    assert [batch async for batch in walk] == [["g3"]]
    assert world.nodes["g2"].cordon == "its fan is loud"
    assert world.orders == steps("g1") + steps("g3")


async def test_a_drain_by_somebody_else_during_a_nodes_turn_outlives_it() -> None:
    world = World()

    async def restart(name: str) -> None:
        await world.restart(name)
        world.nodes[name] = replace(world.nodes[name], cordon="its fan is loud", verdict="drain")

    walk = roll(world, ["g1"], at_once=1, restart=restart, drain_s=5, back_s=5)
    assert [batch async for batch in walk] == [["g1"]]
    assert world.nodes["g1"].cordon == "its fan is loud" and "resume g1" not in world.orders


async def test_a_restart_by_somebody_else_is_waited_for() -> None:
    world = World()
    walk = roll(world, ["g1"], at_once=1, restart=None, drain_s=5, back_s=0.05)
    with pytest.raises(NotInTime, match="did not come back"):
        [batch async for batch in walk]
    assert world.orders == ["drain g1"]


async def test_a_node_that_comes_up_late_is_told_with_its_state() -> None:
    world = World()
    world.nodes["g1"] = replace(IDLE, verdict="down", state="down: its GPU is gone")
    with pytest.raises(NotInTime, match=r"g1 is not up after 0\.05 s: down: its GPU is gone"):
        await wait_up(world, "g1", 0.05)
    await wait_up(world, "g2", 0.05)


async def test_a_node_without_an_agent_is_named_before_anything_happens() -> None:
    world = World()
    world.nodes["g3"] = replace(IDLE, managed=False)
    with pytest.raises(Conflict, match="no agent runs node g3: nothing was restarted"):
        await check_managed(world, ["g1", "g3"])
    await check_managed(world, ["g1", "g2"])
    await wait_drained(world, ["g1", "g2", "g3"], 0.05)
    assert world.orders == []
