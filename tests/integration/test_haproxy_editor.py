"""Two origins at the edge: the editor's files from a node that may be hostile, and a console without any."""

import asyncio
import contextlib
import json
import os
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from comfy_fleet.adapters.haproxy.config_render import files
from comfy_fleet.adapters.haproxy.runtime import Runtime
from comfy_fleet.domain.nodes.node import Node
from comfy_fleet.services.editor_ticket import EditorTickets
from tests.integration.edge_kit import Edge, edge_of
from tests.integration.haproxy_kit import TICKETS, TinyNode, counted, eventually

STRANGE = (
    "Set-Cookie: fleet_session=evil; Path=/",
    "Set-Cookie: fleet_console=evil; Path=/",
    'Clear-Site-Data: "*"',
    "Access-Control-Allow-Origin: *",
    "Access-Control-Allow-Credentials: true",
    'Alt-Svc: h2="evil.test:443"; persist=1',
    "Strict-Transport-Security: max-age=31536000",
    "Service-Worker-Allowed: /",
    "Refresh: 0; url=https://evil.test/",
    "Link: <https://evil.test/x.js>; rel=preload; as=script",
    "X-Fleet-Node: other",
    "Location: https://evil.test/",
    "Cache-Control: public, max-age=31536000, immutable",
    "Last-Modified: Sat, 01 Jan 2050 00:00:00 GMT",
    "Expires: Sat, 01 Jan 2050 00:00:00 GMT",
    "WWW-Authenticate: Basic realm=fleet",
    'Reporting-Endpoints: a="https://evil.test/"',
    'Speculation-Rules: "/x.json"',
    "Cross-Origin-Opener-Policy: unsafe-none",
    "Content-Security-Policy: default-src *",
)


class HostileNode(TinyNode):
    """Answers with whatever a test has put at a path; elsewhere it echoes."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.answers: dict[str, bytes] = {}

    def put(
        self, path: str, *headers: str, status: int = 200, body: bytes = b"x", sized: bool = True
    ) -> None:
        length = (f"Content-Length: {len(body)}",) if sized else ("Connection: close",)
        lines = (f"HTTP/1.1 {status} Said", *length, *headers, "", "")
        self.answers[path] = "\r\n".join(lines).encode() + body

    async def serve_one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        head = await reader.readuntil(b"\r\n\r\n")
        path = head.split(b" ")[1].decode().partition("?")[0]
        if path not in self.answers:
            rest = asyncio.StreamReader()
            rest.feed_data(head)
            return await super().serve_one(rest, writer)
        lines = head.decode().split("\r\n")[1:]
        headers = {k.lower(): v for k, _, v in (line.partition(": ") for line in lines if line)}
        self.requests.append({"target": path, "headers": headers})
        answer = self.answers[path]
        writer.write(answer.partition(b"\r\n\r\n")[0] + b"\r\n\r\n" if head.startswith(b"HEAD") else answer)
        await writer.drain()
        return b"Connection: close" not in answer


class Editor:
    """An edge with two nodes."""

    def __init__(self, edge: Edge, nodes: dict[str, HostileNode]) -> None:
        self.edge = edge
        self.nodes = nodes

    def ticket(self, node: str = "g1", **more: float) -> str:
        return f"Cookie: fleet_editor={TICKETS.sign(node, **{'now': time.time(), **more})}"

    async def get(self, path: str, *headers: str, node: str = "g1", method: str = "GET") -> "Answer":
        return Answer(await self.edge.raw(path, self.ticket(node), *headers, method=method))


class Answer:
    def __init__(self, raw: bytes) -> None:
        head, _, self.body = raw.partition(b"\r\n\r\n")
        first, *lines = head.decode("latin-1").split("\r\n")
        self.status = int(first.split(" ")[1])
        self.headers = {k.lower(): v for k, _, v in (line.partition(": ") for line in lines)}


@pytest.fixture
async def editor(tmp_path: Path) -> AsyncIterator[Editor]:
    nodes = {name: HostileNode(name) for name in ("g1", "g.2")}
    async with contextlib.AsyncExitStack() as stack:
        for node in nodes.values():
            await stack.enter_async_context(node)
        known = [Node(name=name, url=node.url) for name, node in nodes.items()]
        edge = await stack.enter_async_context(
            edge_of(tmp_path, *known, extension_routes="/chooser,/api/etn/image")
        )
        yield Editor(edge, nodes)


FILES = [
    "/assets/index-0a1b.js",
    "/assets/deep/er/font.woff2",
    "/assets/no-extension",
    "/scripts/app.js",
    "/docs/KSampler/en.md",
    "/templates/index.json?v=1",
    "/fonts/a%20b.ttf",
    "/lib/x.js",
    "/cursor/paint.png",
    "/user.css",
    "/favicon.ico",
    "/manifest.json",
    "/materialdesignicons.min.css",
    "/api/workflow_templates/a%20pack/thing.jpg",
]
CLOSED = [
    "/",
    "/assets/../secret.js",
    "/assets/%2e%2e/secret.js",
    "/assets/a%2Fb.js",
    "/assets//x.js",
    "/assets/a%5cb.js",
    "/assets/a%00.js",
    "/assets",
    "/assets/",
    "/internal/logs.js",
    "/internal/folder_paths.json",
    "/api/assets.js",
    "/api/x.js",
    "/api/manager/x.json",
    "/manager/reboot",
    "/manager/x.json",
    "/comfyui_manager/x.json",
    "/customnode/getlist",
    "/customnode/x.json",
    "/externalmodel/x.json",
    "/snapshot/x.json",
    "/component/x.js",
    "/pack/view/x.json",
    "/pack/preview/a.png",
    "/pack/notes.txt",
    "/some/folder/pic.svg",
    "/userdata/a/b.json",
    "/internal/x/y.png",
    "/k/ann-key-0123456789/assets/x.js",
    "/k/ann-key-0123456789/user.css",
    "/prompt/x",
    "/unknown",
    "/upload/x.js",
    "/view/x.js",
    "/v2/x.json",
]
THE_FLEETS = [
    "/userdata/a.json",
    "/openapi.json",
    "/object_info/x.js",
    "/history/x.json",
    "/extensions/a/b.js",
]


async def test_files_come_from_the_node_that_the_ticket_names(editor: Editor) -> None:
    for name in ("g1", "g.2"):
        for path in FILES:
            for method in ("GET", "HEAD"):
                answer = await editor.get(path, node=name, method=method)
                assert answer.status == 200, (path, answer.body)
                if method == "GET":
                    assert json.loads(answer.body)["node"] == name
                    assert json.loads(answer.body)["target"] == path
    assert editor.edge.api.requests == []


async def test_nothing_else_gets_to_a_node(editor: Editor) -> None:
    for path in CLOSED:
        answer = await editor.get(path)
        assert answer.status in (200, 404), path
        assert (answer.status == 200) is (path == "/"), path  # the API's
    for path in THE_FLEETS:
        assert json.loads((await editor.get(path)).body)["node"] == "api", path
    for method in ("POST", "PUT", "DELETE", "PATCH", "OPTIONS"):
        for path in FILES:
            assert (await editor.get(path, method=method)).status == 404
    for sent, body in (("Content-Length: 1", b"x"), ("Transfer-Encoding: chunked", b"1\r\nx\r\n0\r\n\r\n")):
        with_body = await editor.edge.raw("/user.css", editor.ticket(), sent, body=body)
        assert Answer(with_body).status == 404
    asked = {request["target"] for node in editor.nodes.values() for request in node.requests}
    assert not asked & {*CLOSED, *THE_FLEETS, *FILES}


async def test_without_a_valid_ticket_there_is_no_file(editor: Editor) -> None:
    good = TICKETS.sign("g1", now=time.time())
    node, expires, mac = good.split("~")
    forged = [
        "",
        node,
        f"g.2~{expires}~{mac}",
        f"{node}~{int(expires) + 1}~{mac}",
        f"{node}~{expires}~{mac[:-1]}{'0' if mac[-1] != '0' else '1'}",
        f"{node}~{expires}~",
        f"{node}~{expires}~{mac}0",
        f"{node}~{expires}~{mac}~{mac}",
        f"{node}~{expires}x~{mac}",
        EditorTickets(b"another key of the same length!!").sign("g1", now=time.time()),
        TICKETS.sign("g1", now=time.time() - 100, lifetime_s=50),
    ]
    for ticket in forged:
        for header in (f"Cookie: fleet_editor={ticket}", f"X-Fleet-Node: {node}", f"Cookie: x={good}"):
            answer = Answer(await editor.edge.raw("/user.css", header))
            assert (answer.status, json.loads(answer.body)["error"]["code"]) == (404, "not_found"), header
    several = f"Cookie: a=b; fleet_editor={good}; c=d"
    assert Answer(await editor.edge.raw("/user.css", several)).status == 200


async def test_a_node_learns_nothing_of_who_asks(editor: Editor) -> None:
    told = (
        "Authorization: Bearer ann-key-0123456789",
        "X-API-Key: ann-key-0123456789",
        "Origin: http://fleet.test",
        "Referer: http://fleet.test/k/ann-key-0123456789/",
        "Sec-Fetch-Site: same-origin",
        "Sec-CH-UA: x",
        "X-Forwarded-For: 1.2.3.4",
        "Forwarded: for=1.2.3.4",
        "X-Real-IP: 1.2.3.4",
        "X-Fleet-Origin: console",
        "Proxy-Authorization: Basic eDp5",
        "Accept-Encoding: gzip",
        "Comfy-User: ann",
        "Upgrade: websocket",
        "If-Modified-Since: Sat, 01 Jan 2050 00:00:00 GMT",
        "User-Agent: here",
        "Accept: */*",
    )
    seen = json.loads((await editor.get("/assets/x.js", *told)).body)["headers"]
    assert seen == {"host": "g1", "user-agent": "here", "accept": "*/*"}


async def test_what_a_node_says_beside_its_file_stays_away(editor: Editor) -> None:
    editor.nodes["g1"].put("/assets/x.js", "Content-Type: text/javascript", *STRANGE)
    answer = await editor.get("/assets/x.js")
    assert answer.status == 200
    assert len(answer.headers.pop("x-request-id")) == 36
    assert answer.headers == {
        "content-length": "1",
        "content-type": "text/javascript",
        "cache-control": "private, no-cache",
        "cross-origin-resource-policy": "same-origin",
        "x-content-type-options": "nosniff",
        "referrer-policy": "no-referrer",
        "connection": "close",
    }


@pytest.mark.parametrize("status", [300, 301, 302, 303, 307, 308, 401, 407])
async def test_a_node_sends_nobody_elsewhere_and_asks_nobody_for_a_password(
    editor: Editor, status: int
) -> None:
    editor.nodes["g1"].put("/user.css", *STRANGE, status=status)
    answer = await editor.get("/user.css")
    assert (answer.status, json.loads(answer.body)["error"]["code"]) == (502, "node_error")
    assert not {"location", "refresh", "set-cookie", "www-authenticate"} & answer.headers.keys()


async def test_what_a_node_sends_has_a_size_and_a_limit(editor: Editor) -> None:
    editor.nodes["g1"].put("/user.css", sized=False)
    assert (await editor.get("/user.css")).status == 502
    editor.nodes["g1"].put(
        "/user.css", "Transfer-Encoding: chunked", sized=False, body=b"1\r\nx\r\n0\r\n\r\n"
    )
    assert (await editor.get("/user.css")).status == 502
    for length in (2**27 + 1, 2**31, 2**32, 2**32 + 1, 10**12):
        head = f"HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n"
        editor.nodes["g1"].answers["/user.css"] = head.encode()
        answer = await editor.get("/user.css")
        assert (answer.status, json.loads(answer.body)["error"]["code"]) == (502, "node_error"), length
        assert "134217728 bytes" in json.loads(answer.body)["error"]["message"]


async def test_a_file_is_asked_for_again_and_never_taken_for_another_nodes(editor: Editor) -> None:
    for name, node in editor.nodes.items():
        node.put("/assets/x.js", 'ETag: "1a-2b"', body=name.encode())
    first = await editor.get("/assets/x.js")
    assert first.headers["etag"] == 'W/"g1~1a-2b"'
    for known, asked in (
        ('W/"g1~1a-2b"', '"1a-2b"'),
        ('W/"g.2~1a-2b"', None),
        ('"1a-2b"', None),
        ('W/"g1~1a-2b", W/"g1~other"', None),
        ("*", None),
    ):
        await editor.get("/assets/x.js", f"If-None-Match: {known}")
        assert editor.nodes["g1"].requests[-1]["headers"].get("if-none-match") == asked
    editor.nodes["g1"].put("/assets/x.js", 'ETag: "1a-2b"', status=304, body=b"")
    assert (await editor.get("/assets/x.js", f"If-None-Match: {first.headers['etag']}")).status == 304
    editor.nodes["g1"].put("/assets/x.js", 'ETag: "a b\\"c"')
    assert "etag" not in (await editor.get("/assets/x.js")).headers


async def test_large_files_are_sent_compressed_and_asked_for_as_they_are(editor: Editor) -> None:
    script = b"let x = 1;\n" * 5000
    editor.nodes["g1"].put("/assets/x.js", "Content-Type: text/javascript", 'ETag: "1-2"', body=script)
    answer = await editor.get("/assets/x.js", "Accept-Encoding: gzip")
    assert (answer.headers["content-encoding"], answer.headers["etag"]) == ("gzip", 'W/"g1~1-2"')
    assert len(answer.body) < len(script) / 10
    assert "accept-encoding" not in editor.nodes["g1"].requests[-1]["headers"]


async def test_a_node_that_is_away_is_said_to_be(editor: Editor) -> None:
    await editor.nodes["g1"].__aexit__()
    for name in ("g1", "unknown"):
        answer = await editor.get("/user.css", node=name)
        assert (answer.status, json.loads(answer.body)["error"]["code"]) == (503, "node_away")
    assert (await editor.get("/user.css", node="g.2")).status == 200
    await editor.nodes["g1"].__aenter__()


async def test_no_service_worker_is_ever_sent(editor: Editor) -> None:
    for path in ("/assets/sw.js", "/extensions/a/sw.js", "/sw.js", "/chooser/sw.js"):
        for header in ("Service-Worker: script", "Sec-Fetch-Dest: serviceworker"):
            assert (await editor.get(path, header)).status == 403


async def test_open_routes_of_extensions_get_to_the_api(editor: Editor) -> None:
    for path in ("/chooser", "/api/chooser/a/b", "/etn/image/1", "/api/etn/image"):
        for method in ("GET", "POST", "PUT", "DELETE"):
            answer = await editor.get(path, method=method)
            assert json.loads(answer.body)["node"] == "api", path
    for path in ("/chooserx", "/api/etn", "/chooser/../x", "/chooser/a%2Fb"):
        assert (await editor.get(path)).status == 404, path


async def test_the_broker_lets_through_what_the_api_asks_a_node_for(editor: Editor) -> None:
    for path in ("/", "/i18n", "/extensions", "/extensions/a/b.js", "/api/global_subgraphs/0a", *FILES):
        answer = await editor.edge.broker.call("g1", "GET", path)
        assert (answer.status_code, answer.headers["x-fleet-node"]) == (200, "g1"), path
    for method in ("GET", "POST", "PUT", "DELETE"):
        for path in ("/chooser/x", "/api/chooser/x"):
            assert (await editor.edge.broker.call("g1", method, path)).status_code == 200
    closed = [("GET", path) for path in CLOSED if path.startswith(("/pack/", "/manager/", "/snapshot/"))]
    closed += [("POST", "/"), ("POST", "/user.css"), ("GET", "/internal/logs"), ("POST", "/x/y")]
    for method, path in (*closed, ("PATCH", "/chooser/x")):
        assert (await editor.edge.broker.call("g1", method, path)).status_code == 404


# -- the console ---------------------------------------------------------------------------------------------


async def test_the_console_shows_nothing_of_a_nodes(editor: Editor) -> None:
    node_content = [path for path in FILES if path != "/api/workflow_templates/a%20pack/thing.jpg"]
    for path in (
        *node_content,
        *("/extensions", "/extensions/a/b.js", "/i18n", "/workflow_templates", "/global_subgraphs"),
        *("/chooser", "/enter", "/experiment/models/preview/vae/0/x.png"),
    ):
        raw = await editor.edge.raw(path, editor.ticket(), console=True)
        assert Answer(raw).status == 404, path
    for path in (
        "/",
        "/login",
        "/workflows",
        "/workflows/a",
        "/publish/a",
        "/api/v1/nodes",
        "/prompt",
    ):
        answer = Answer(await editor.edge.raw(path, "X-Fleet-Origin: editor", console=True))
        assert answer.status == 200, path
        assert json.loads(answer.body)["headers"]["x-fleet-origin"] == "console"
        assert answer.headers["cross-origin-resource-policy"] == "same-origin"


async def test_without_the_editor_no_file_passes(tmp_path: Path) -> None:
    async with (
        HostileNode("g1") as node,
        edge_of(tmp_path, Node(name="g1", url=node.url), editor=False) as edge,
    ):
        editor = Editor(edge, {"g1": node})
        assert (await editor.get("/user.css")).status == 404
        assert (await edge.broker.call("g1", "GET", "/user.css")).status_code == 404
        assert (await editor.get("/api/v1/nodes")).status == 200


async def test_files_pass_once_the_fleet_has_a_secret(tmp_path: Path) -> None:
    known: list[bytes] = []
    async with (
        HostileNode("g1") as node,
        edge_of(
            tmp_path, Node(name="g1", url=node.url), ticket_key=lambda: known[0] if known else None
        ) as edge,
    ):
        editor = Editor(edge, {"g1": node})
        assert (await editor.get("/user.css")).status == 404
        known.append(TICKETS.key)

        async def passes() -> bool:
            return (await editor.get("/user.css")).status == 200

        await eventually("the edge knows the key", passes)


# -- reloads -------------------------------------------------------------------------------------------------


async def test_a_reload_cuts_no_websocket(editor: Editor) -> None:
    edge = editor.edge
    runtime = Runtime(files(edge.settings).edge_socket)
    reader, writer = await asyncio.open_connection("127.0.0.1", edge.settings.port)
    asked = (
        "Host: x",
        "Connection: Upgrade",
        "Upgrade: websocket",
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
    )
    writer.write("\r\n".join(["GET /ws HTTP/1.1", *asked, "", ""]).encode())
    assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 101 ")
    workers = [await runtime.pid()]
    for _ in range(3):
        await edge.broker.controller.edge.renew()
        workers.append(await runtime.pid())
        assert len({*workers}) == len(workers)
        assert (await editor.get("/user.css")).status == 200
        writer.write(b"x")
        assert await reader.readexactly(1) == b"x"
    os.kill(workers[0], 0)  # it is still there, for the websocket
    writer.close()
    await writer.wait_closed()

    def gone() -> bool:
        with contextlib.suppress(ProcessLookupError):
            os.kill(workers[0], 0)
            return False
        return True

    await eventually("the first worker ends with its last connection", gone)
    assert await counted(runtime, "fe_console", "stot", kind=1) == 0


async def test_a_connection_without_a_request_outlives_a_reload_by_one(editor: Editor) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", editor.edge.settings.port)
    asked = b"GET /api/v2/none HTTP/1.1\r\nHost: x\r\n\r\n"

    async def answer() -> bytes:
        writer.write(asked)
        head = (await reader.readuntil(b"\r\n\r\n")).lower()
        await reader.readexactly(int(head.partition(b"content-length:")[2].split()[0]))
        return head

    assert b"connection: close" not in await answer()
    await editor.edge.broker.controller.edge.renew()
    assert b"connection: close" in await answer()
    assert await reader.read() == b""
    writer.close()


async def test_another_editor_node_changes_nothing_in_the_edge(editor: Editor) -> None:
    written = files(editor.edge.settings).edge
    before, pid = written.read_text(), await Runtime(files(editor.edge.settings).edge_socket).pid()
    await editor.edge.broker.registry.change("g1", editor=True)
    await editor.edge.broker.registry.change("g.2", editor=True)
    assert json.loads((await editor.get("/user.css", node="g.2")).body)["node"] == "g.2"
    assert (written.read_text(), await Runtime(files(editor.edge.settings).edge_socket).pid()) == (
        before,
        pid,
    )


async def test_a_node_whose_editor_nobody_gets_sends_no_file_whatever_tickets_name_it(editor: Editor) -> None:
    broker = editor.edge.broker
    worker = await broker.controller.broker.runtime.pid()

    async def answers(status: int) -> bool:
        return (await editor.get("/user.css")).status == status

    await eventually("its files are there", lambda: answers(200))
    await broker.registry.change("g1", editor=False)
    await eventually("they are not any more", lambda: answers(503))
    for path in ("/", "/extensions/a/b.js", *FILES):
        assert (await broker.call("g1", "GET", path)).status_code == 404, path
        assert (await broker.call("g.2", "GET", path)).status_code == 200, path
    assert (await broker.call("g1", "GET", "/chooser/x")).status_code == 200  # its jobs still ask
    assert (await editor.get("/user.css", node="g.2")).status == 200
    await broker.registry.change("g1", editor=None)
    await eventually("its files are there again", lambda: answers(200))
    assert await broker.controller.broker.runtime.pid() == worker
