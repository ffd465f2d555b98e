"""The HTTP client of the command line, and the commands on it, against a small server with canned answers."""

import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from comfy_fleet.cli.app import build
from comfy_fleet.cli.client import Client
from comfy_fleet.cli.exits import Exit, Fail
from comfy_fleet.cli.submit import pairs, save_outputs, typed_value

JOB = "7f3d2c1b-9a8e-4d6f-b012-3c4d5e6f7a8b"
DONE: dict[str, Any] = {
    "id": JOB,
    "status": "succeeded",
    "created_at": "2030-01-01T00:00:00Z",
    "started_at": "2030-01-01T00:00:01Z",
    "completed_at": "2030-01-01T00:00:03Z",
    "workflow": "image_card",
    "node": "sim-1",
    "simulated": True,
    "params": {"seed": 42},
    "outputs": [
        {"name": "../../evil\\card.png", "type": "image", "size_bytes": 4, "url": "http://x/files/a"}
    ],
}
SCHEMA = {
    "type": "object",
    "properties": {
        "prompt": {"type": "string"},
        "steps": {"type": "integer"},
        "cfg": {"type": "number"},
        "fast": {"type": "boolean"},
        "face": {"type": "string", "x-fleet-type": "image"},
    },
    "required": ["prompt"],
}


@dataclass
class Canned:
    """Answers by method and path; every request is kept."""

    url: str = ""
    answers: dict[tuple[str, str], Callable[[BaseHTTPRequestHandler], None]] = field(default_factory=dict)
    seen: list[tuple[str, str, dict[str, str], bytes]] = field(default_factory=list)

    def on(self, method: str, path: str, body: Any, status: int = 200, **headers: str) -> None:
        raw = body if isinstance(body, bytes) else json.dumps(body).encode()

        def answer(handler: BaseHTTPRequestHandler) -> None:
            handler.send_response(status)
            handler.send_header("Content-Length", str(len(raw)))
            for name, value in headers.items():
                handler.send_header(name.replace("_", "-"), value)
            handler.end_headers()
            handler.wfile.write(raw)

        self.answers[method, path] = answer

    def stream(self, path: str, *streams: bytes) -> None:
        """Each connection gets the next stream, then is closed."""
        left = list(streams)

        def answer(handler: BaseHTTPRequestHandler) -> None:
            handler.send_response(200)
            handler.send_header("Content-Type", "text/event-stream")
            handler.send_header("Connection", "close")
            handler.end_headers()
            handler.wfile.write(left.pop(0) if len(left) > 1 else left[0])
            handler.close_connection = True

        self.answers["GET", path] = answer

    def bodies(self, method: str, path: str) -> list[Any]:
        return [
            json.loads(body or b"null")
            for verb, where, _, body in self.seen
            if (verb, where) == (method, path)
        ]


@pytest.fixture
def canned() -> Iterator[Canned]:
    known = Canned()
    known.on("GET", "/api/v1/workflows/image_card", {"name": "image_card", "parameters": SCHEMA})

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def handle_any(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            path = self.path.partition("?")[0]
            known.seen.append((self.command, path, dict(self.headers), body))
            answer = known.answers.get((self.command, path))
            if answer is None:
                self.send_response(404)
                self.send_header("Content-Length", "0")
                self.end_headers()
            else:
                answer(self)

        def log_message(self, *args: object) -> None:
            pass

    for verb in ("GET", "POST", "DELETE"):
        setattr(Handler, f"do_{verb}", Handler.handle_any)
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    known.url = f"http://127.0.0.1:{server.server_address[1]}"
    yield known
    server.shutdown()
    server.server_close()
    thread.join()


def error(code: str, message: str, **details: Any) -> dict[str, Any]:
    return {"error": {"code": code, "message": message, "details": details or None}}


def run(canned: Canned, *argv: str) -> Any:
    return CliRunner().invoke(build(), [*argv, "--api", canned.url])


@pytest.mark.parametrize(
    ("status", "body", "expected"),
    [
        (404, error("not_found", "no job x"), Exit.NOT_FOUND),
        (401, error("unauthorized", "send a key"), Exit.REFUSED),
        (409, error("conflict", "node a exists"), Exit.REFUSED),
        (422, error("invalid_parameter", "steps 900"), Exit.USAGE),
        (429, error("queue_full", "1000 jobs wait"), Exit.REFUSED),
        (503, error("no_nodes", "no node is known"), Exit.REFUSED),
        (500, error("upstream_error", "could not be processed"), Exit.FAILED),
    ],
)
def test_error_answers_become_exit_codes(
    canned: Canned, status: int, body: dict[str, Any], expected: Exit
) -> None:
    canned.on("GET", "/x", body, status)
    with Client(canned.url) as client, pytest.raises(Fail) as caught:
        client.get("/x")
    assert caught.value.exit is expected
    assert caught.value.message == body["error"]["message"]


def test_a_gateway_error_without_envelope_means_not_reachable(canned: Canned) -> None:
    canned.on("GET", "/x", b"<html>503</html>", 503)
    with Client(canned.url) as client, pytest.raises(Fail, match="503") as caught:
        client.get("/x")
    assert caught.value.exit is Exit.UNREACHABLE


def test_an_answer_that_is_not_json_is_no_fleet(canned: Canned) -> None:
    canned.on("GET", "/x", b"<html>hello</html>")
    with Client(canned.url) as client, pytest.raises(Fail, match="did not answer with JSON"):
        client.get("/x")


def test_nobody_there_is_exit_3_with_a_hint(canned: Canned) -> None:
    with Client("http://127.0.0.1:1") as client, pytest.raises(Fail, match="nothing answers") as caught:
        client.get("/x")
    assert caught.value.exit is Exit.UNREACHABLE
    assert "fleet up" in str(caught.value.hint)


def test_retry_after_is_the_hint(canned: Canned) -> None:
    canned.on("GET", "/x", error("busy", "later"), 503, Retry_After="7")
    with Client(canned.url) as client, pytest.raises(Fail) as caught:
        client.get("/x")
    assert caught.value.hint == "try again in 7 s"


def test_problems_of_a_graph_are_told_per_node(canned: Canned) -> None:
    details = {
        "12": [{"field": "model", "message": "model is not connected"}],
        "13": [{"reason": "odd"}],
        "1": [{"message": "node 1 (VAELoader): no such file"}],
    }
    canned.on("GET", "/x", error("invalid_workflow", "the graph is wrong", node_errors=details), 422)
    with Client(canned.url) as client, pytest.raises(Fail) as caught:
        client.get("/x")
    assert caught.value.message.splitlines() == [
        "the graph is wrong",
        "  node 12: model is not connected",
        "  node 13: odd",
        "  node 1 (VAELoader): no such file",
    ]


def test_the_key_goes_with_every_request(canned: Canned) -> None:
    canned.on("GET", "/x", {})
    with Client(canned.url, "geheim") as client:
        client.get("/x")
    assert canned.seen[0][2]["Authorization"] == "Bearer geheim"


def test_events_are_read_over_broken_streams(canned: Canned) -> None:
    first = b'event: status\ndata: {"status": "queued", "queue_position": 2}\n\n: ping\n\nevent: progress\nda'
    second = (
        b'event: progress\r\ndata: {"value": 0.5,\r\ndata: "message": "KSampler 1/2"}\r\n\r\n'
        b'event: status\ndata: {"status": "succeeded"}\n\nevent: status\ndata: {"status": "never seen"}\n\n'
    )
    canned.stream(f"/api/v2/jobs/{JOB}/events", first, second)
    with Client(canned.url) as client:
        events = list(client.follow(JOB))
    assert events == [
        ("status", {"status": "queued", "queue_position": 2}),
        ("progress", {"value": 0.5, "message": "KSampler 1/2"}),
        ("status", {"status": "succeeded"}),
    ]


def test_following_gives_up_in_time(canned: Canned) -> None:
    canned.stream(f"/api/v2/jobs/{JOB}/events", b'event: status\ndata: {"status": "running"}\n\n')
    with Client(canned.url) as client, pytest.raises(Fail, match="not done yet") as caught:
        list(client.follow(JOB, timeout_s=0.01))
    assert caught.value.exit is Exit.TIMEOUT


def test_outputs_are_saved_under_harmless_names_and_never_elsewhere(canned: Canned, tmp_path: Path) -> None:
    canned.on("GET", "/files/a", b"PNG!")
    with Client(canned.url, "geheim") as client:
        job = {**DONE, "outputs": DONE["outputs"] * 2}
        saved = save_outputs(client, job, tmp_path / "out")
    assert [path.parent for path in saved] == [tmp_path / "out"] * 2
    assert saved[0].name == "7f3d2c1b-card.png"
    assert len(set(saved)) == 2
    assert saved[0].read_bytes() == b"PNG!"
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(path.name for path in saved)


def test_submit_sends_typed_parameters_and_uploads(canned: Canned, tmp_path: Path) -> None:
    picture = tmp_path / "face.png"
    picture.write_bytes(b"PNG")
    text = tmp_path / "prompt.txt"
    text.write_text("from a file")
    canned.on("GET", "/api/v1/workflows/portrait", {"parameters": SCHEMA})
    canned.on("POST", "/api/v2/assets", {"id": "asset-1"}, 201)
    canned.on("POST", "/api/v1/workflows/portrait/jobs", {"id": JOB, "status": "queued"}, 201)
    result = run(
        canned,
        *("submit", "portrait", "-p", f"prompt=@{text}", "-p", "steps=8", "-p", "cfg=2.5", "-p", "fast=yes"),
        *("--image", f"face={picture}", "--priority", "5", "--metadata", "who=me", "--idempotency-key", "k1"),
    )
    assert result.exit_code == 0, result.output
    assert JOB in result.stdout
    assert canned.bodies("POST", "/api/v1/workflows/portrait/jobs") == [
        {
            "params": {"prompt": "from a file", "steps": 8, "cfg": 2.5, "fast": True, "face": "asset-1"},
            "priority": 5,
            "metadata": {"who": "me"},
        }
    ]
    upload = next(seen for seen in canned.seen if seen[1] == "/api/v2/assets")
    assert b"image/png" in upload[3]
    assert canned.seen[-1][2]["Idempotency-Key"] == "k1"


@pytest.mark.parametrize(
    ("status", "expected"), [("succeeded", 0), ("failed", 4), ("expired", 4), ("canceled", 5)]
)
def test_waiting_ends_with_the_jobs_own_exit_code(
    canned: Canned, tmp_path: Path, status: str, expected: int
) -> None:
    canned.on("POST", "/api/v1/workflows/image_card/jobs", {"id": JOB, "status": "queued"}, 201)
    canned.stream(f"/api/v2/jobs/{JOB}/events", f'event: status\ndata: {{"status": "{status}"}}\n\n'.encode())
    job = {
        **DONE,
        "status": status,
        "error": {"code": "boom", "message": "it broke"} if expected == 4 else None,
    }
    canned.on("GET", f"/api/v1/jobs/{JOB}", job)
    canned.on("GET", "/files/a", b"PNG!")
    result = run(canned, "submit", "image_card", "--out", str(tmp_path))
    assert result.exit_code == expected, result.output
    assert "SIMULATED" in result.stdout
    assert "seed 42" in result.stdout
    assert ("7f3d2c1b-card.png" in result.stdout) == (status == "succeeded")
    assert ("boom: it broke" in result.stdout) == (expected == 4)


def test_a_job_says_where_it_may_run(canned: Canned) -> None:
    canned.on("POST", "/api/v1/workflows/image_card/jobs", {"id": JOB, "status": "queued"}, 201)
    where = (
        "--pool",
        "big",
        "--spill-to",
        "small",
        "--spill-to",
        "cpu",
        "--zone",
        "a",
        "--label",
        "gpu=h100",
    )
    result = run(canned, "submit", "image_card", *where)
    assert result.exit_code == 0, result.output
    (body,) = canned.bodies("POST", "/api/v1/workflows/image_card/jobs")
    assert body == {
        "params": {},
        "pool": "big",
        "spill_to": ["small", "cpu"],
        "zone": "a",
        "labels": {"gpu": "h100"},
    }


def test_a_graph_in_a_file_goes_as_it_is(canned: Canned, tmp_path: Path) -> None:
    graph = {"1": {"class_type": "EmptyImage", "inputs": {"width": 8}}}
    path = tmp_path / "graph.json"
    path.write_text(json.dumps(graph))
    canned.on("POST", "/api/v2/jobs", {"id": JOB, "status": "queued"}, 201)
    result = run(canned, "submit", str(path), "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["id"] == JOB
    assert canned.bodies("POST", "/api/v2/jobs") == [{"workflow": graph}]


def test_an_unknown_parameter_is_refused_with_the_known_ones(canned: Canned) -> None:
    canned.on("GET", "/api/v1/workflows/w", {"parameters": SCHEMA})
    result = run(canned, "submit", "w", "-p", "promt=x")
    assert isinstance(result.exception, Fail)
    assert "no parameter 'promt'" in result.exception.message
    assert "prompt, steps" in str(result.exception.hint)
    assert result.exception.exit is Exit.USAGE


@pytest.mark.parametrize(
    ("text", "schema", "value"),
    [
        ("-1", {"type": "integer"}, -1),
        ("1e3", {"type": "number"}, 1000.0),
        ("off", {"type": "boolean"}, False),
        ("a=b", {"type": "string"}, "a=b"),
        ("@blue", {"type": "string", "enum": ["@blue"]}, "@blue"),
    ],
)
def test_values_get_their_type(text: str, schema: dict[str, Any], value: Any) -> None:
    assert typed_value("p", text, schema) == value


@pytest.mark.parametrize(
    ("text", "kind"), [("1.5", "integer"), ("x", "number"), ("maybe", "boolean"), ("@/no/such", "string")]
)
def test_values_of_the_wrong_type_are_refused_by_name(text: str, kind: str) -> None:
    with pytest.raises(Fail, match="-p p: ") as caught:
        typed_value("p", text, {"type": kind})
    assert caught.value.exit is Exit.USAGE


def test_pairs_keep_further_equal_signs() -> None:
    assert pairs(["a=b=c", "d="], "-p") == {"a": "b=c", "d": ""}
    for wrong in ("a", "=b"):
        with pytest.raises(Fail, match="NAME=VALUE"):
            pairs([wrong], "-p")


def test_draining_waits_until_the_node_is_empty(canned: Canned) -> None:
    canned.on("POST", "/api/v1/nodes/a/drain", {"name": "a", "run": "r"})
    fetched = [{"job": JOB, "phase": "left"}]  # the prompt has left the node, its outputs are still there
    busy = iter(
        [{"name": "a", "run": "r"}, {"name": "a", "run": None, "work": fetched}, {"name": "a", "run": None}]
    )

    def answer(handler: BaseHTTPRequestHandler) -> None:
        canned.on("GET", "/once", next(busy))
        canned.answers["GET", "/once"](handler)

    canned.answers["GET", "/api/v1/nodes/a"] = answer
    result = run(canned, "node", "drain", "a", "--wait", "--reason", "new driver")
    assert result.exit_code == 0, result.output
    assert "drained a" in result.stdout
    assert "still" not in result.stdout
    assert list(busy) == []
    assert canned.bodies("POST", "/api/v1/nodes/a/drain") == [{"reason": "new driver"}]


def test_job_ls_asks_for_what_was_wanted(canned: Canned) -> None:
    asked: list[str] = []

    def answer(handler: BaseHTTPRequestHandler) -> None:
        asked.append(handler.path)
        canned.on("GET", "/once", {"jobs": [DONE], "next_cursor": "c2"})
        canned.answers["GET", "/once"](handler)

    canned.answers["GET", "/api/v1/jobs"] = answer
    result = run(canned, "job", "ls", "--status", "queued", "--status", "running", "--metadata", "who=me")
    assert result.exit_code == 0, result.output
    assert "succeeded" in result.stdout
    assert "2.0s" in result.stdout
    assert "--cursor c2" in result.stderr
    assert "status=queued%2Crunning" in asked[0]
    assert "metadata%5Bwho%5D=me" in asked[0]


@pytest.mark.parametrize(
    "argv",
    [("node", "ls"), ("job", "ls"), ("workflow", "ls"), ("workflow", "show", "w"), ("node", "show", "n")],
)
def test_every_listing_has_json(canned: Canned, argv: tuple[str, ...]) -> None:
    path = "/api/v1/" + {"ls": f"{argv[0]}s", "show": f"{argv[0]}s/{argv[-1]}"}[argv[1]]
    canned.on("GET", path, {"as": "it came"})
    result = run(canned, *argv, "--json")
    assert json.loads(result.stdout) == {"as": "it came"}


def test_status_says_why_not_and_exits_1(canned: Canned) -> None:
    canned.on("GET", "/api/v1/ready", error("not_ready", "nodes: no node is up"), 503)
    canned.on("GET", "/api/v1/queue", {"queued": 3})
    canned.on(
        "GET", "/api/v1/nodes", {"nodes": [{"name": "a", "verdict": "down", "why": "no answer", "run": None}]}
    )
    result = run(canned, "status")
    assert result.exit_code == 1, result.output
    assert "no: nodes: no node is up" in result.stdout
    assert "3 queued" in result.stdout


def test_app_is_a_typer() -> None:
    assert isinstance(build(), typer.Typer)


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["-p", "prompt=a", "-p", "prompt=b"], "prompt is given twice"),
        (["-p", "face=a", "--image", "face=/dev/null"], "face is given twice"),
        (["--image", "prompt=/dev/null"], "'prompt' of workflow portrait takes no file"),
        (["-p", "prompt=@{binary}"], "is no UTF-8 text"),
        (["-p", "prompt=x", "--out", "/proc/none"], "can't write in /proc/none"),
        (["-p", "prompt=x", "--idempotency-key", "schlüssel"], "printable ASCII"),
        (["-p", "prompt=x", "--idempotency-key", "a\nb"], "printable ASCII"),
        (["-p", "prompt=x", "--key", "schlüssel"], "an API key is printable ASCII"),
    ],
)
def test_what_can_not_work_is_refused_before_a_job_is_made(
    canned: Canned, tmp_path: Path, argv: list[str], says: str
) -> None:
    binary = tmp_path / "binary"
    binary.write_bytes(b"\xff\xfe\x00")
    canned.on("GET", "/api/v1/workflows/portrait", {"parameters": SCHEMA})
    result = run(canned, "submit", "portrait", *(word.replace("{binary}", str(binary)) for word in argv))
    assert isinstance(result.exception, Fail), result.output
    assert says in result.exception.message
    assert result.exception.exit is Exit.USAGE
    assert not [seen for seen in canned.seen if seen[0] == "POST"]


def test_broken_workflows_are_named_beside_those_that_work(canned: Canned) -> None:
    good = {"name": "card", "title": "Card", "description": "", "version": "v", "parameters": []}
    broken = {"face": "face/workflow.toml: no node has title '[x]'", "card": "card/workflow.json is not JSON"}
    canned.on("GET", "/api/v1/workflows", {"workflows": [good], "broken": broken})
    result = run(canned, "workflow", "ls")
    assert result.exit_code == 0
    assert "broken: face: face/workflow.toml: no node has title '[x]'" in result.stderr
    assert result.stderr.count("last good version") == 1
    canned.on("GET", "/api/v1/workflows", {"workflows": [], "broken": {}})
    assert "no workflows" in run(canned, "workflow", "ls").stderr


def test_an_interrupted_wait_says_which_job_goes_on(canned: Canned, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    canned.on("POST", "/api/v1/workflows/image_card/jobs", {"id": JOB, "status": "queued"}, 201)
    monkeypatch.setattr("comfy_fleet.cli.submit.watch", interrupted)
    result = run(canned, "submit", "image_card", "--wait")
    assert isinstance(result.exception, Fail), result.output
    assert JOB in result.exception.message
    assert f"fleet job cancel {JOB}" in str(result.exception.hint)
    assert result.exception.exit is Exit.INTERRUPTED


NAN_BESIDE = b'{"1": {"class_type": "A", "inputs": {}, "is_changed": [NaN]}}'


@pytest.mark.parametrize(
    "content", [NAN_BESIDE, b"\xef\xbb\xbf" + NAN_BESIDE, NAN_BESIDE.decode().encode("utf-16")]
)
@pytest.mark.parametrize("name", ["graph.json", "graph.JSON", "graph.txt"])
def test_files_as_people_have_them_are_sent(
    canned: Canned, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path(name).write_bytes(content)
    canned.on("POST", "/api/v2/jobs", {"id": JOB}, 201)
    result = run(canned, "submit", name)
    assert result.exit_code == 0, result.output
    sent = canned.bodies("POST", "/api/v2/jobs")
    assert sent == [{"workflow": {"1": {"class_type": "A", "inputs": {}}}}]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b'{"1": {"class_type": "A", "inputs": {"cfg": NaN}}}', "node 1: cfg holds NaN"),
        (b'{"1": {"class_type": "A", "inputs": {"a": "\\udcff"}}}', "not valid Unicode"),
        (b'{"1": {"class_type": "A", "inputs": {"a": 1e999}}}', "infinite number"),
        (b'{"1": NaN}', "NaN"),
        (b"NaN", "holds a number"),
        (b"\x89PNG\r\n\x1a\n", "is a PNG without a graph in it"),
        (b"\xff\xfe\x00", "text"),
        (b"[" * 100_000, "nested too deeply"),
        (b"{" + b'"a":{' * 5000 + b"}" * 5001, "nested"),
        (b"9" * 5000, "digits"),
    ],
)
@pytest.mark.parametrize("name", ["graph.json", "picture.png"])
def test_no_file_ends_in_a_traceback(
    canned: Canned, tmp_path: Path, content: bytes, says: str, name: str
) -> None:
    file = tmp_path / name
    file.write_bytes(content)
    result = run(canned, "submit", str(file))
    assert isinstance(result.exception, Fail), result.output
    assert says in result.exception.message
    assert str(file) in result.exception.message
    assert result.exception.exit is Exit.USAGE


@pytest.mark.parametrize(
    ("typed", "says"), [("cfg=nan", "not JSON"), ("prompt=a\udcff", "not valid Unicode")]
)
def test_what_json_can_not_carry_is_refused_where_it_was_typed(canned: Canned, typed: str, says: str) -> None:
    canned.on("GET", "/api/v1/workflows/portrait", {"parameters": SCHEMA})
    result = run(canned, "submit", "portrait", "-p", typed)
    assert isinstance(result.exception, Fail), result.output
    assert says in result.exception.message


# ---- abbreviated ids, and what had ended before ------------------------------------------------------------


def test_the_beginning_of_an_id_is_enough(canned: Canned) -> None:
    canned.on("GET", "/api/v1/job-ids", {"ids": [JOB]})
    canned.on("GET", f"/api/v1/jobs/{JOB}", DONE)
    result = run(canned, "job", "show", JOB[:8])
    assert result.exit_code == 0, result.output
    assert JOB in result.output


def test_a_beginning_that_several_share_names_them(canned: Canned) -> None:
    other = JOB[:8] + "-0000-4000-8000-000000000000"
    canned.on("GET", "/api/v1/job-ids", {"ids": [JOB, other]})
    result = run(canned, "job", "cancel", JOB[:8])
    assert isinstance(result.exception, Fail)
    assert result.exception.exit is Exit.USAGE
    assert JOB in result.exception.message and other in result.exception.message
    assert not canned.bodies("POST", f"/api/v1/jobs/{JOB}/cancel")


def test_canceling_what_had_ended_says_so(canned: Canned) -> None:
    canned.on("GET", f"/api/v1/jobs/{JOB}", DONE)
    canned.on("POST", f"/api/v1/jobs/{JOB}/cancel", DONE)
    result = run(canned, "job", "cancel", JOB)
    assert result.exit_code == 0
    assert result.output.strip() == "had already ended: succeeded"


def test_lists_in_a_pipe_hold_whole_ids(canned: Canned) -> None:
    canned.on("GET", "/api/v1/jobs", {"jobs": [DONE], "next_cursor": None})
    result = run(canned, "job", "list")
    assert result.output.splitlines()[1].startswith(JOB)


# ---- workflows ---------------------------------------------------------------------------------------------


def test_a_broken_edit_is_told_wherever_its_last_good_version_is_used(canned: Canned) -> None:
    described = {"name": "image_card", "parameters": SCHEMA, "broken": "workflow.json is not JSON"}
    canned.on("GET", "/api/v1/workflows/image_card", described)
    canned.on("POST", "/api/v1/workflows/image_card/jobs", {"id": JOB, "status": "queued"}, 201)
    checked = {"nodes": [{"node": "a", "comfyui": "1", "ok": True, "problems": []}], "broken": "oops"}
    canned.on("GET", "/api/v1/workflows/image_card/check", checked)
    for line in (
        ("submit", "image_card"),
        ("workflow", "show", "image_card"),
        ("workflow", "check", "image_card"),
    ):
        result = run(canned, *line)
        assert result.exit_code == 0, result.output
        assert "its last good version is" in result.stderr


def test_a_workflow_without_parameters_says_how_to_get_some(canned: Canned) -> None:
    empty = {"name": "image_card", "parameters": {"type": "object", "properties": {}}}
    canned.on("GET", "/api/v1/workflows/image_card", empty)
    assert "title a node of the graph $prompt" in run(canned, "workflow", "show", "image_card").output


def test_equal_findings_of_nodes_stand_once_and_strict_minds_choices(canned: Canned) -> None:
    problem = {"kind": "value_not_in_list", "message": "no 'x' (only with style)", "only_with": "style"}
    nodes = [{"node": name, "comfyui": "1", "ok": True, "problems": [problem]} for name in ("a", "b")]
    canned.on("GET", "/api/v1/workflows/image_card/check", {"nodes": nodes})
    result = run(canned, "workflow", "check", "image_card")
    assert result.exit_code == 0
    assert result.output.count("only with style") == 1
    assert "a, b" in result.output
    assert run(canned, "workflow", "check", "image_card", "--strict").exit_code == Exit.FAILED


def test_a_file_for_a_picture_parameter_names_the_flag(canned: Canned, tmp_path: Path) -> None:
    (tmp_path / "face.png").write_bytes(b"x")
    result = run(canned, "submit", "image_card", "-p", f"face={tmp_path}/face.png")
    assert isinstance(result.exception, Fail)
    assert result.exception.hint == f"upload it: --image face={tmp_path}/face.png"


def test_an_error_is_told_once(canned: Canned) -> None:
    message = "node 3: links to node '9', which is not in the graph"
    details = {"node_errors": {"3": [{"message": "links to node '9', which is not in the graph"}]}}
    body = {"error": {"code": "invalid_workflow", "message": message, "details": details}}
    canned.on("POST", "/api/v1/workflows/image_card/jobs", body, 422)
    result = run(canned, "submit", "image_card")
    assert str(result.exception).count("links to node '9'") == 1


# ---- hosts -------------------------------------------------------------------------------------------------


def test_hosts_are_listed_with_their_cards_and_nodes(canned: Canned) -> None:
    host = {
        "host": "box-2",
        "seen_at": 1.0,
        "gpus": [{"name": "NVIDIA L4"}, {"name": "NVIDIA L4"}],
        "nodes": [{"name": "gpu-1"}, {"name": "gpu-2"}],
    }
    canned.on("GET", "/api/v1/hosts", {"hosts": [host]})
    line = run(canned, "host", "ls").output.splitlines()[1]
    assert line.split()[0] == "box-2"
    assert "2 × NVIDIA L4" in line and "gpu-1, gpu-2" in line


def test_a_host_is_uncordoned_whole(canned: Canned) -> None:
    nodes = [
        {"name": name, "url": f"http://10.0.0.{n}:1", "labels": {"host": "box"}}
        for n, name in enumerate("ab")
    ]
    canned.on("GET", "/api/v1/nodes", {"nodes": nodes})
    for name in "ab":
        canned.on("POST", f"/api/v1/nodes/{name}/resume", {})
    assert run(canned, "node", "uncordon-host", "box").output.strip() == "resumed a, b"
    assert [path for verb, path, _, _ in canned.seen if verb == "POST"] == [
        "/api/v1/nodes/a/resume",
        "/api/v1/nodes/b/resume",
    ]
