"""What an agent makes of a node's answers: why there is none, and whether its models may go."""

from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from comfy_fleet.adapters.comfyui.direct_node import NodeSession
from comfy_fleet.agent.node_poller import NodePoller
from tests.conftest import free_port

IDLE_S = 60.0
LOOK_S = 0.25


class ComfyUI:
    """A node that works on what the test says, and the clock."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.history: list[str] | None = []
        self.running: list[str] = []
        self.asked: list[str] = []

    async def handle(self, request: web.Request) -> web.Response:
        self.asked.append(request.path)
        match request.path:
            case "/queue":
                rows = [[0, id_, {}, {}, []] for id_ in self.running]
                return web.json_response({"queue_running": rows, "queue_pending": []})
            case "/history" if self.history is not None:
                assert request.query["max_items"] == "1"
                return web.json_response({id_: {"prompt": []} for id_ in self.history[-1:]})
            case "/free":
                assert not self.running, "freed while something ran"
                assert await request.json() == {"unload_models": True, "free_memory": True}
                return web.Response()
        return web.Response(status=404)

    def frees(self) -> int:
        return self.asked.count("/free")


def serving(handle: Callable[[web.Request], Awaitable[web.Response]], port: int | None = None) -> TestServer:
    """Return a server that answers every request, while it is entered."""
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", handle)
    return TestServer(app, port=port)


@pytest.fixture
def node() -> ComfyUI:
    return ComfyUI()


@pytest.fixture
async def probe(node: ComfyUI) -> AsyncIterator[NodePoller]:
    async with serving(node.handle) as server, NodeSession() as session:
        yield NodePoller("g1", str(server.make_url("")), session, clock=lambda: node.now)


async def idle(node: ComfyUI, probe: NodePoller, seconds: float) -> None:
    """Let time pass, and the agent look as often as it does."""
    until = node.now + seconds
    while node.now < until:
        node.now += LOOK_S
        await probe.look()
        await probe.free_if_idle(IDLE_S)


async def test_an_idle_node_is_asked_once(node: ComfyUI, probe: NodePoller) -> None:
    await idle(node, probe, IDLE_S - 1)
    assert node.frees() == 0
    await idle(node, probe, IDLE_S / 10 + 1)
    assert node.frees() == probe.frees == 1
    await idle(node, probe, 5 * IDLE_S)
    assert node.frees() == 1
    assert node.asked.count("/history") < 70


async def test_a_prompt_between_two_looks_counts_as_work(node: ComfyUI, probe: NodePoller) -> None:
    assert node.history is not None
    for number in range(8):
        await idle(node, probe, IDLE_S / 2)
        node.history.append(f"p{number}")  # came and went: the queue never showed it
    assert node.frees() == 0
    await idle(node, probe, 1.2 * IDLE_S)
    assert node.frees() == 1


async def test_one_that_was_asked_is_asked_again_after_work_that_nobody_saw(
    node: ComfyUI, probe: NodePoller
) -> None:
    assert node.history is not None
    await idle(node, probe, 1.2 * IDLE_S)
    assert node.frees() == 1
    node.history.append("p1")
    await idle(node, probe, IDLE_S)
    assert node.frees() == 1
    await idle(node, probe, IDLE_S / 5)
    assert node.frees() == 2


async def test_work_that_was_seen_begins_the_time_anew(node: ComfyUI, probe: NodePoller) -> None:
    assert node.history is not None
    await idle(node, probe, IDLE_S - 5)
    node.running = ["p1"]
    await idle(node, probe, 2 * IDLE_S)
    assert node.frees() == 0
    node.running, node.history = [], ["p1"]
    await idle(node, probe, IDLE_S - 1)
    assert node.frees() == 0
    await idle(node, probe, IDLE_S / 10 + 2)
    assert node.frees() == 1


async def test_one_that_does_not_tell_its_history_is_left_alone(node: ComfyUI, probe: NodePoller) -> None:
    node.history = None
    await idle(node, probe, 2 * IDLE_S)
    assert node.frees() == 0


async def test_it_says_why_a_node_did_not_answer_until_it_does() -> None:
    async def node(request: web.Request) -> web.Response:
        if request.path == "/queue":
            return web.json_response({"queue_running": [], "queue_pending": []})
        device = {"name": "cpu", "type": "cpu", "vram_total": 1, "vram_free": 1}
        return web.json_response({"system": {"comfyui_version": "0.3.64"}, "devices": [device]})

    port = free_port()
    async with NodeSession() as session:
        probe = NodePoller("g1", f"http://127.0.0.1:{port}", session)
        await probe.look()
        assert (probe.heard_at, "connection refused" in probe.trouble) == (None, True)
        async with serving(node, port):
            await probe.look()
        assert (probe.heard_at is not None, probe.trouble, probe.version) == (True, "", "0.3.64")
