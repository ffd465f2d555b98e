"""From what HAProxy has to what it should have, and its verdicts in the fleet's words."""

from dataclasses import replace
from typing import Any

import pytest

from comfy_fleet.adapters.haproxy.agent_preflight import Given
from comfy_fleet.adapters.haproxy.membership import (
    Add,
    Drain,
    Forget,
    Move,
    MoveAgent,
    Open,
    Retire,
    ServerTarget,
    agent_silent,
    plan,
    silence_s,
    verdict_of,
)
from comfy_fleet.adapters.haproxy.runtime import ServerStatus
from comfy_fleet.adapters.haproxy.server_lines import Entry
from comfy_fleet.domain.nodes.node import Node


def target(name: str = "g1", **more: Any) -> ServerTarget:
    entry = Entry(
        name=name, backend=more.pop("backend", "be_pool_1"), host="h", port=8188, agent_host="a", agent_port=9
    )
    fields: dict[str, Any] = {"addresses": ("10.0.0.1",), "agent_addresses": ("10.0.0.9",), **more}
    return ServerTarget(entry=entry, **fields)


def server(name: str = "g1", backend: str = "be_pool_1", **more: Any) -> ServerStatus:
    fields: dict[str, Any] = {
        "host": "10.0.0.1",
        "port": 8188,
        "maint": False,
        "drain": False,
        "weight": 100,
        "agent_host": "10.0.0.9",
        "agent_port": 9,
        "asks": True,
        **more,
    }
    return ServerStatus(name=name, backend=backend, **fields)


def direct(name: str = "g1", **more: Any) -> ServerStatus:
    return server(name, "be_direct", weight=0, agent_host="", agent_port=0, **more)


def test_nothing_to_do() -> None:
    assert plan({"g1": target()}, [server(), direct()]) == []
    assert plan({"g1": target(addresses=("10.0.0.5", "10.0.0.1"))}, [server(), direct()]) == []


def test_a_new_node_is_added_once_its_names_resolve() -> None:
    wanted = target()
    assert plan({"g1": wanted}, []) == [Add(entry=wanted.entry, address="10.0.0.1", agent="10.0.0.9")]
    assert plan({"g1": target(addresses=())}, []) == []
    assert plan({"g1": target(agent_addresses=())}, []) == []


def test_a_node_that_left_loses_its_direct_server_last() -> None:
    assert plan({}, [direct(), server()]) == [Retire(server=server())]
    assert plan({}, [direct()]) == [Retire(server=direct())]


def test_a_node_that_left_is_forgotten_with_its_last_server() -> None:
    vias = {"g1": "h||Basic%20dTpw"}
    assert plan({}, [direct(), server()], vias=vias) == [Retire(server=server())]
    assert plan({}, [direct()], vias=vias) == [Retire(server=direct())]
    assert plan({}, [], vias=vias) == [Forget(name="g1")]
    assert plan({"g1": target(addresses=())}, [], vias=vias) == [Forget(name="g1")]
    known = replace(target(addresses=()), entry=replace(target().entry, via=vias["g1"]))
    assert plan({"g1": known}, [], vias=vias) == []


def test_a_node_that_changes_pools_is_never_in_two() -> None:
    wanted = {"g1": target(backend="be_pool_2")}
    assert plan(wanted, [server(), direct()]) == [Retire(server=server())]
    assert plan(wanted, [direct()]) == [Retire(server=direct())]
    assert plan(wanted, []) == [Add(entry=wanted["g1"].entry, address="10.0.0.1", agent="10.0.0.9")]


def test_a_node_that_comes_back_while_it_leaves_is_made_anew() -> None:
    leaving = server(maint=True, asks=False)
    assert plan({"g1": target()}, [leaving, direct()]) == [Retire(server=leaving)]
    assert plan({"g1": target()}, [server(asks=False), direct()]) == []  # an operator's doing


def test_half_a_node_is_made_anew() -> None:
    assert plan({"g1": target()}, [direct()]) == [Retire(server=direct())]


def test_another_address_is_followed_in_both_backends() -> None:
    wanted = {"g1": target(addresses=("10.0.0.2",), agent_addresses=("10.0.0.8",))}
    assert plan(wanted, [server(), direct()]) == [
        Move(server=server(), address="10.0.0.2", port=8188),
        MoveAgent(server=server(), address="10.0.0.8", port=9),
        Move(server=direct(), address="10.0.0.2", port=8188),
    ]
    assert plan({"g1": target(addresses=(), agent_addresses=())}, [server(), direct()]) == []


@pytest.mark.parametrize(
    ("state", "due"),
    [
        ({}, True),
        ({"drain": True}, True),  # the lease script sees only weights
        ({"weight": 0}, True),
        ({"drain": True, "weight": 0}, False),
        ({"maint": True}, False),
    ],
)
def test_drain_means_state_and_weight(state: dict[str, Any], due: bool) -> None:
    steps = plan({"g1": target(drain=True)}, [server(**state), direct()])
    assert steps == ([Drain(server=server(**state))] if due else [])


def test_nothing_but_an_agent_brings_a_server_back() -> None:
    assert plan({"g1": target()}, [server(drain=True, weight=0), direct()]) == []
    assert plan({"g1": target()}, [server(maint=True), direct()]) == []


READY = {"g1": Given(agent=("10.0.0.9", 9), percent=40)}


def test_a_ready_that_haproxy_has_not_heard_is_passed_on() -> None:
    new = server(maint=True)
    assert plan({"g1": target()}, [new, direct()], READY) == [Open(server=new, percent=40)]
    assert plan({"g1": target()}, [new, direct()]) == []


@pytest.mark.parametrize(
    ("wanted", "state"),
    [
        ({"drain": True}, {}),
        ({}, {"maint": False}),  # HAProxy has heard it, too
        ({}, {"maint": False, "drain": True, "weight": 0}),  # and something else since
        ({}, {"agent_host": "10.0.0.8"}),
        ({}, {"agent_port": 10}),
        ({"addresses": ("10.0.0.2",)}, {}),  # the agent spoke of the node at its old address
        ({"agent_addresses": ("10.0.0.8",)}, {}),
        ({"backend": "be_pool_2"}, {}),
    ],
)
def test_a_ready_opens_nothing_else(wanted: dict[str, Any], state: dict[str, Any]) -> None:
    servers = [server(**{"maint": True, **state}), direct()]
    assert not [step for step in plan({"g1": target(**wanted)}, servers, READY) if isinstance(step, Open)]
    assert plan({}, servers, READY) == [Retire(server=servers[0])]


NODE = Node(name="g1", url="http://h:1")
OUT = Node(name="g1", url="http://h:1", cordoned=True, cordon_reason="fans")


@pytest.mark.parametrize(
    ("node", "row", "silent", "told"),
    [
        (NODE, {"status": "UP"}, False, ("up", "")),
        (NODE, {"status": "UP 1/3"}, False, ("up", "")),
        (OUT, {"status": "UP"}, False, ("drain", "cordoned: fans")),
        (OUT, {"status": "DRAIN (agent)"}, False, ("drain", "cordoned: fans")),
        (NODE, {"status": "DRAIN (agent)"}, False, ("drain", "its agent says drain")),
        (
            NODE,
            {"status": "DRAIN", "agent_status": "L4CON", "agent_desc": "Layer4 connection problem"},
            True,
            ("drain", "agent is silent (Layer4 connection problem)"),
        ),
        (NODE, {"status": "MAINT"}, False, ("new", "waits for its first answer")),
        (
            NODE,
            {"status": "MAINT", "agent_status": "* L4TOUT", "agent_desc": "Layer4 timeout"},
            False,
            ("new", "waits for its first answer (Layer4 timeout)"),
        ),
        (
            NODE,
            {"status": "DOWN", "check_desc": "Layer4 connection problem", "last_chk": "Connection refused"},
            False,
            ("down", "Layer4 connection problem: Connection refused"),
        ),
        (
            NODE,
            {"status": "DOWN (agent)", "last_agt": "via agent : down (vram full)"},
            False,
            ("down", "vram full"),
        ),
    ],
)
def test_verdicts(node: Node, row: dict[str, str], silent: bool, told: tuple[str, str]) -> None:
    assert verdict_of(node, row, silent=silent) == told


@pytest.mark.parametrize("status", ["", "INI", "L7OK", "* L7OK", "CHECKED", "L7STS"])
def test_an_agent_that_answers_is_not_silent(status: str) -> None:
    assert agent_silent({"agent_status": status, "agent_desc": "x"}) == ""


@pytest.mark.parametrize(("taken", "silent_s"), [("2001", 2.001), ("0", 0.0), ("", 0.0), (None, 0.0)])
def test_a_check_that_timed_out_was_silent_all_the_while(taken: str | None, silent_s: float) -> None:
    assert silence_s({} if taken is None else {"agent_duration": taken}) == silent_s


@pytest.mark.parametrize("status", ["L4CON", "* L4CON", "L4TOUT", "L7TOUT", "L7RSP", "SOCKERR"])
def test_an_agent_that_does_not_answer_is_silent(status: str) -> None:
    assert agent_silent({"agent_status": status}) == status.removeprefix("* ")
