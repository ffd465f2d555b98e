"""Leases and pinned calls through a real broker, while nodes come and go."""

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
from websockets.asyncio.client import ClientConnection

from comfy_fleet.domain.nodes.agent_state import Readiness
from comfy_fleet.domain.nodes.node import Node
from tests.conftest import free_port
from tests.fakes.nodes import FakeNodeRegistry
from tests.integration.haproxy_kit import Broker, TinyNode, eventually, raw_request, running

UUID = "0b1c2d3e-0000-4000-8000-123456789abc"


@pytest.fixture
async def nodes() -> AsyncIterator[dict[str, TinyNode]]:
    async with AsyncExitStack() as stack:
        yield {name: await stack.enter_async_context(TinyNode(name)) for name in ("g1", "g2", "g3")}


@pytest.fixture
async def fleet(tmp_path: Path, nodes: dict[str, TinyNode]) -> AsyncIterator[Broker]:
    """g1 and g2 are members; g3 is not yet."""
    registry = FakeNodeRegistry([Node(name=name, url=nodes[name].url) for name in ("g1", "g2")])
    async with running(tmp_path, registry) as broker:
        for name in ("g1", "g2"):
            await broker.told(name, "up")
        yield broker


async def echoes(socket: ClientConnection) -> bool:
    await socket.send("still here")
    return await asyncio.wait_for(socket.recv(), 60) == "still here"


async def test_a_websocket_is_the_only_slot_until_it_closes(
    fleet: Broker, nodes: dict[str, TinyNode]
) -> None:
    first, one = await fleet.lease()
    second, _ = await fleet.lease()
    assert {first, second} == {"g1", "g2"}
    assert await fleet.refused() == (503, "busy", "1")
    await one.close()
    await eventually("the slot is free", lambda: _granted(fleet, first))
    assert {node.most_tunnels for node in nodes.values()} == {0, 1}


async def _granted(fleet: Broker, name: str) -> bool:
    return await fleet.grants(nodes=name) == name


async def test_the_node_list_binds_and_its_order_counts(fleet: Broker) -> None:
    assert await fleet.grants(nodes="g2 g1") == "g2"
    assert await fleet.grants(nodes="nobody g1") == "g1"
    held, _ = await fleet.lease(nodes="g1")
    assert held == "g1"
    assert await fleet.refused(nodes="g1 nobody") == (503, "nodes", "1")
    assert await fleet.grants(nodes="g1 g2") == "g2"
    assert await fleet.refused(nodes="") == (503, "nodes", "1")
    many = " ".join(f"n{number}" for number in range(64))
    assert await fleet.refused(nodes=f"{many} g2") == (503, "nodes", "1")
    assert await fleet.grants(nodes=f"{many[3:]} g2") == "g2"


async def test_what_is_no_lease_is_refused_with_the_reason(fleet: Broker) -> None:
    assert await fleet.refused(pool="nobodys") == (404, "pool", "")
    plain = await raw_request(fleet.settings.lease_socket, "GET", "/ws")
    assert plain.startswith(b"HTTP/1.1 405 ")
    assert b"x-fleet-refused: method" in plain
    upgrade = ("Upgrade: websocket", "Sec-WebSocket-Key: dGVzdHRlc3R0ZXN0dGVzdA==", "X-Fleet-Pool: default")
    elsewhere = await raw_request(fleet.settings.lease_socket, "GET", "/prompt", *upgrade)
    assert elsewhere.startswith(b"HTTP/1.1 404 ")
    assert b"x-fleet-refused: path" in elsewhere


async def test_a_burst_never_gets_more_than_there_are_slots(
    fleet: Broker, nodes: dict[str, TinyNode]
) -> None:
    for _ in range(5):
        asked = await asyncio.gather(
            *(fleet.lease(nodes="g1 g2" if number % 2 else None) for number in range(20)),
            return_exceptions=True,
        )
        granted = [answer for answer in asked if not isinstance(answer, BaseException)]
        assert sorted(name for name, _ in granted) == ["g1", "g2"]
        await asyncio.gather(*(socket.close() for _, socket in granted))
        await eventually("all free", lambda: nodes["g1"].tunnels + nodes["g2"].tunnels == 0)
        await eventually("slots free", lambda: _idle(fleet))
    assert nodes["g1"].most_tunnels == nodes["g2"].most_tunnels == 1


async def _idle(fleet: Broker) -> bool:
    rows = await fleet.controller.broker.runtime.stats("be_pool_1")
    return all(row["scur"] == "0" for row in rows)


async def test_pinned_calls_reach_their_node_while_every_slot_is_leased(fleet: Broker) -> None:
    await fleet.lease()
    await fleet.lease()
    names = ["g1", "g2"] * 50
    replies = await asyncio.gather(*(fleet.call(name) for name in names))
    assert [reply.json()["node"] for reply in replies] == names
    assert [reply.headers["X-Fleet-Node"] for reply in replies] == names
    assert not any(key.startswith("x-fleet-") for key in replies[0].json()["headers"])


async def test_a_503_of_haproxys_own_has_no_node(fleet: Broker, nodes: dict[str, TinyNode]) -> None:
    unknown = await fleet.call("nobody")
    assert unknown.status_code == 503
    assert "X-Fleet-Node" not in unknown.headers
    await nodes["g1"].__aexit__()
    dead = await fleet.call("g1")
    assert dead.status_code == 503
    assert "X-Fleet-Node" not in dead.headers
    await fleet.told("g1", "down")
    assert "refused" in fleet.registry.told["g1"][1]
    await nodes["g1"].__aenter__()
    await fleet.told("g1", "up")


async def test_looks_at_a_node_that_is_away_fill_no_log_but_a_jobs_calls_are_told(
    fleet: Broker, nodes: dict[str, TinyNode], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    await nodes["g1"].__aexit__()
    port, node = fleet.settings.direct_socket, "X-Fleet-Node: g1"
    for path in ("/system_stats", "/object_info", "/queue"):
        assert (await raw_request(port, "GET", path, node)).startswith(b"HTTP/1.1 503 ")
    await raw_request(port, "POST", "/prompt", node, "X-Fleet-Job: j1", "Content-Length: 0")

    def told() -> list[tuple[str, str]]:
        records = [vars(record) for record in caplog.records if record.msg == "haproxy request"]
        return [(record["path"], record.get("job_id", "")) for record in records]

    await eventually("the job's call is told", lambda: ("/prompt", "j1") in told())
    assert told() == [("/prompt", "j1")]


ALLOWED = [
    ("POST", "/prompt"),
    ("GET", "/queue"),
    ("POST", "/queue"),
    ("POST", "/interrupt"),
    ("GET", f"/history/{UUID}"),
    ("POST", "/history"),
    ("GET", "/view?filename=a.png&type=output&subfolder=fleet/j/r"),
    ("POST", "/upload/image"),
    ("POST", "/upload/mask"),
    ("POST", "/free"),
    ("GET", "/object_info"),
    ("GET", "/object_info/Image%20Blur%20(fast)"),
    ("GET", "/node_replacements"),
    ("GET", "/system_stats"),
]
REFUSED = [
    ("POST", "/"),
    ("GET", "/prompt"),
    ("DELETE", "/queue"),
    ("PUT", "/view"),
    ("HEAD", "/queue"),
    ("GET", "/history"),
    ("GET", "/history/x"),
    ("GET", f"/history/{UUID}/../../userdata"),
    ("GET", f"/history/{UUID}%2f..%2fuserdata"),
    ("GET", f"/history/%2e%2e/{UUID}"),
    ("GET", "/object_info/../userdata"),
    ("GET", "/object_info/%2E%2E%2Fuserdata"),
    ("GET", "/object_info/a/b"),
    ("POST", "/upload/image/x"),
    ("GET", "/userdata"),
    ("GET", "/api/queue"),
    ("GET", "//queue"),
    ("GET", "/queue/"),
]


async def test_only_calls_that_the_fleet_makes_reach_a_node(tmp_path: Path) -> None:
    async with (
        TinyNode("g1") as node,
        running(tmp_path, FakeNodeRegistry([Node(name="g1", url=node.url)])) as it,
    ):
        for method, path in ALLOWED:
            reply = await it.call("g1", method, path)
            assert (reply.status_code, reply.json()["target"]) == (200, path)
        for method, path in REFUSED:
            answer = await raw_request(it.settings.direct_socket, method, path, "X-Fleet-Node: g1")
            assert answer.startswith(b"HTTP/1.1 404 "), (method, path, answer)
        for name in ("", "G1", "g1 g2", "../g1"):
            answer = await raw_request(it.settings.direct_socket, "GET", "/queue", f"X-Fleet-Node: {name}")
            assert answer.startswith(b"HTTP/1.1 400 "), (name, answer)


async def test_a_node_that_is_drained_before_its_first_lease_is_not_down(
    fleet: Broker, nodes: dict[str, TinyNode]
) -> None:
    new = Node(name="g3", url=nodes["g3"].url, cordoned=True, cordon_reason="not yet")
    fleet.registry.put("g3", node=new)
    fleet.registry.announce()
    await fleet.told("g3", "drain")
    assert fleet.registry.told["g3"] == ("drain", "cordoned: not yet")
    assert await fleet.grants(nodes="g3") is None
    await fleet.registry.uncordon("g3")
    await fleet.told("g3", "up")
    assert await fleet.grants(nodes="g3") == "g3"


async def test_nodes_come_drain_resume_and_go_under_an_open_tunnel(
    fleet: Broker, nodes: dict[str, TinyNode]
) -> None:
    pid = fleet.controller.broker.pid
    _, tunnel = await fleet.lease(nodes="g1")

    await fleet.registry.add(Node(name="g3", url=nodes["g3"].url, weight=40))
    await fleet.told("g3", "up")
    assert await fleet.grants(nodes="g3") == "g3"
    assert (await fleet.call("g3")).json()["node"] == "g3"
    await eventually("g3 has its weight", lambda: _weight(fleet, "g3", "40"))
    await fleet.registry.change("g3", weight=200)
    await eventually("g3 has its new weight", lambda: _weight(fleet, "g3", "200"))

    await fleet.registry.cordon("g1", reason="fans")
    await fleet.told("g1", "drain")
    assert fleet.registry.told["g1"] == ("drain", "cordoned: fans")
    assert await echoes(tunnel)
    assert (await fleet.call("g1")).json()["node"] == "g1"
    await tunnel.close()
    await eventually("tunnel gone", lambda: nodes["g1"].tunnels == 0)
    for _ in range(20):
        assert await fleet.grants(nodes="g1") is None

    await fleet.registry.uncordon("g1")
    await fleet.told("g1", "up")
    assert await fleet.grants(nodes="g1") == "g1"

    _, tunnel = await fleet.lease(nodes="g3")
    await fleet.registry.remove("g3")
    await eventually("g3 gets no lease", lambda: _refuses(fleet, "g3"))
    assert await echoes(tunnel)
    assert (await fleet.call("g3")).json()["node"] == "g3"
    await tunnel.close()
    await eventually("g3 is gone", lambda: _absent(fleet, "g3"))
    assert (await fleet.call("g3")).status_code == 503
    # The running HAProxy comes first, the file follows.
    await eventually("the file follows", lambda: _unwritten(fleet, "g3"))
    assert fleet.controller.broker.pid == pid


async def _weight(fleet: Broker, name: str, weight: str) -> bool:
    rows = await fleet.controller.broker.runtime.stats("be_pool_1")
    return any(row["svname"] == name and row["weight"] == weight for row in rows)


async def _unwritten(fleet: Broker, name: str) -> bool:
    return name not in fleet.settings.run_dir.joinpath("broker.cfg").read_text()


async def _refuses(fleet: Broker, name: str) -> bool:
    return await fleet.grants(nodes=name) is None


async def _absent(fleet: Broker, name: str) -> bool:
    return all(server.name != name for server in await fleet.controller.broker.runtime.servers())


async def test_a_new_pool_and_a_move_need_no_reload(fleet: Broker, nodes: dict[str, TinyNode]) -> None:
    _, tunnel = await fleet.lease(nodes="g1")
    assert await fleet.refused(pool="video") == (404, "pool", "")
    await fleet.registry.add(Node(name="g3", url=nodes["g3"].url, pool="video"))
    await fleet.told("g3", "up")
    name, other = await fleet.lease(pool="video")
    assert name == "g3"
    assert await fleet.refused(pool="video") == (503, "busy", "1")

    # A node that moves keeps its one slot: the new pool gets it when the old one is rid of it.
    await fleet.registry.remove("g3")
    await fleet.registry.add(Node(name="g3", url=nodes["g3"].url))
    for _ in range(5):
        assert await fleet.grants(nodes="g3") is None
    await other.close()
    await eventually("g3 serves the other pool", lambda: _granted(fleet, "g3"))
    assert await echoes(tunnel)
    assert nodes["g3"].most_tunnels == 1


async def test_a_node_that_is_removed_and_added_again_under_its_tunnel_comes_back(
    fleet: Broker, nodes: dict[str, TinyNode]
) -> None:
    _, tunnel = await fleet.lease(nodes="g1")
    await fleet.registry.remove("g1")
    await eventually("g1 leaves", lambda: _leaves(fleet, "g1"))
    await fleet.registry.add(Node(name="g1", url=nodes["g1"].url))
    await fleet.told("g1", "new")
    assert await echoes(tunnel)
    assert await fleet.grants(nodes="g1") is None
    await tunnel.close()
    await fleet.told("g1", "up")
    assert await fleet.grants(nodes="g1") == "g1"
    assert nodes["g1"].most_tunnels == 1


async def _leaves(fleet: Broker, name: str) -> bool:
    servers = await fleet.controller.broker.runtime.servers()
    return any(server.maint for server in servers if server.name == name)


async def test_servers_from_the_file_are_kept(tmp_path: Path, nodes: dict[str, TinyNode]) -> None:
    registry = FakeNodeRegistry([Node(name="g1", url=nodes["g1"].url, agent=f"127.0.0.1:{free_port()}")])
    async with running(tmp_path, registry) as fleet:
        await fleet.told("g1", "new")
        servers = await fleet.controller.broker.runtime.servers()
        assert [(s.maint, s.asks) for s in servers if s.name == "g1"] == [(False, False), (True, True)]


async def test_more_pools_than_slots_are_told(tmp_path: Path) -> None:
    registry = FakeNodeRegistry(
        [Node(name=f"n{n}", url=f"http://127.0.0.1:{free_port()}", pool=f"p{n}") for n in range(5)]
    )
    async with running(tmp_path, registry) as fleet:
        await fleet.told("n4", "down")
        assert "FLEET_POOL_SLOTS" in registry.told["n4"][1]
        await registry.remove("n0")
        await eventually("n4 has a slot", lambda: "POOL_SLOTS" not in registry.told["n4"][1])


async def test_a_silent_agent_takes_its_nodes_out_after_the_grace(
    tmp_path: Path, nodes: dict[str, TinyNode]
) -> None:
    registry = FakeNodeRegistry([Node(name="g1", url=nodes["g1"].url)])
    async with running(tmp_path, registry, agent_grace_s=0.3) as fleet:
        await fleet.told("g1", "up")
        await fleet.agent.silent()
        await fleet.told("g1", "drain")
        assert "agent is silent" in registry.told["g1"][1]
        assert await fleet.grants(nodes="g1") is None
        await fleet.agent.back()
        await fleet.told("g1", "up")


NONSENSE = [
    b"g1",
    b"g9/",
    b"/",
    b"\n",
    b"GET / HTTP/1.1\r\nHost: a\r\n\r\n",
    b"\x16\x03\x01\x02\x00",
    b"\xff\x00" * 40,
    b"../g1/",
    b"x" * 10_000,
    b"g1" + b" " * 10_000 + b"/",
]


async def test_nobody_who_crowds_the_agents_port_takes_a_node_out(
    tmp_path: Path, nodes: dict[str, TinyNode]
) -> None:
    registry = FakeNodeRegistry([Node(name="g1", url=nodes["g1"].url)])
    async with running(tmp_path, registry, agent_grace_s=5) as fleet:
        await fleet.told("g1", "up")
        said = [str(fleet.settings.agent_port), "900", *(text.hex() for text in NONSENSE)]
        crowd = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "tests.crowd", *said, stdout=asyncio.subprocess.PIPE
        )
        assert crowd.stdout is not None
        try:
            assert await crowd.stdout.readline() == b"there\n"
            asked, told = fleet.agent.asked, set()

            def heard() -> bool:
                told.add(fleet.registry.told["g1"][0])
                return fleet.agent.asked >= asked + 20

            await eventually("HAProxy has asked all the while", heard, within_s=40)
            assert told == {"up"}
            assert await fleet.grants(nodes="g1") == "g1"
        finally:
            crowd.terminate()
            answers = await crowd.stdout.read()
            await crowd.wait()
        assert answers.split() == [], "all that was answered was nothing"


async def test_an_agent_without_news_undoes_no_drain_and_makes_none(
    tmp_path: Path, nodes: dict[str, TinyNode]
) -> None:
    registry = FakeNodeRegistry([Node(name=name, url=nodes[name].url) for name in ("g1", "g2")])
    async with running(tmp_path, registry, stale_s=0.6) as fleet:
        await fleet.told("g1", "up")
        await fleet.told("g2", "up")
        registry.down = True
        await eventually("the agent has no news", lambda: _holds(fleet))
        await fleet.raw("set server be_pool_1/g1 state drain")
        await fleet.raw("set weight be_pool_1/g1 0")
        asked = fleet.agent.asked
        await eventually("it was asked again", lambda: fleet.agent.asked >= asked + 6)
        assert await fleet.grants(nodes="g1") is None
        assert await fleet.grants(nodes="g2") == "g2"
        registry.down = False
        await eventually("g1 is given again", lambda: _granted(fleet, "g1"))


def _holds(fleet: Broker) -> bool:
    said = fleet.agent.answer("g1")
    return said is not None and said.readiness is Readiness.HOLD


async def test_a_new_node_waits_for_its_agent(tmp_path: Path, nodes: dict[str, TinyNode]) -> None:
    registry = FakeNodeRegistry([Node(name="g1", url=nodes["g1"].url, agent=f"127.0.0.1:{free_port()}")])
    async with running(tmp_path, registry) as fleet:
        await fleet.told("g1", "new")
        await eventually("the reason is told", lambda: "refused" in registry.told["g1"][1])
        assert await fleet.refused() == (503, "busy", "1")


async def test_a_killed_broker_comes_back_with_the_same_nodes(fleet: Broker) -> None:
    await fleet.lease(nodes="g1")
    pid = fleet.controller.broker.pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    await eventually("another process answers", lambda: fleet.controller.broker.pid != pid)
    await eventually("g1 is granted again", lambda: _granted_safely(fleet, "g1"))


async def test_a_killed_broker_gets_a_pool_that_no_file_has_yet(
    fleet: Broker, nodes: dict[str, TinyNode], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("comfy_fleet.adapters.haproxy.controller.apply", lambda *_, **__: frozenset())
    await fleet.registry.add(Node(name="g3", url=nodes["g3"].url, pool="video"))
    await fleet.told("g3", "up")
    pid = fleet.controller.broker.pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    await eventually("another process answers", lambda: fleet.controller.broker.pid != pid)
    await eventually("g3 is granted again", lambda: _granted_safely(fleet, "g3", "video"))


async def _granted_safely(fleet: Broker, name: str, pool: str = "default") -> bool:
    try:
        return await fleet.grants(nodes=name, pool=pool) == name
    except OSError:
        return False
