"""The HTTP client of the command line, and the commands on it, against a small server with canned answers."""

import json
import re
import signal
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler
from select import select
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from comfy_fleet.cli import node_state
from comfy_fleet.cli.app import build
from comfy_fleet.cli.client import Client
from comfy_fleet.cli.exits import Exit, Fail
from tests.canned import DONE, JOB, SCHEMA, Canned, error, run


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


def test_an_error_is_told_once(canned: Canned) -> None:
    message = "node 3: links to node '9', which is not in the graph"
    details = {"node_errors": {"3": [{"message": "links to node '9', which is not in the graph"}]}}
    body = {"error": {"code": "invalid_workflow", "message": message, "details": details}}
    canned.on("POST", "/api/v1/workflows/image_card/jobs", body, 422)
    result = run(canned, "submit", "image_card")
    assert str(result.exception).count("links to node '9'") == 1


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


def test_of_a_job_that_has_ended_everything_is_told_though_the_time_is_up(canned: Canned) -> None:
    canned.on("GET", f"/api/v1/jobs/{JOB}", {"id": JOB, "status": "succeeded"})
    told = b'event: output\ndata: {"url": "/x"}\n\nevent: status\ndata: {"status": "succeeded"}\n\n'
    before = b'event: status\ndata: {"status": "running"}\n\n'
    canned.stream(f"/api/v2/jobs/{JOB}/events", before + told)
    with Client(canned.url) as client:
        events = list(client.follow(JOB, timeout_s=0))
    assert events[-2:] == [("output", {"url": "/x"}), ("status", {"status": "succeeded"})]


@pytest.mark.parametrize("said", [b"", b": still here\n\n"], ids=["silent", "comments"])
def test_following_gives_up_in_time_though_nothing_happens(canned: Canned, said: bytes) -> None:
    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.end_headers()
        handler.close_connection = True
        handler.wfile.write(b'event: status\ndata: {"status": "queued"}\n\n')
        for _ in range(20):
            if select([handler.connection], [], [], 0.25)[0]:  # the client has gone
                return
            handler.wfile.write(said)
        handler.wfile.write(b'event: status\ndata: {"status": "succeeded"}\n\n')

    canned.answers["GET", f"/api/v2/jobs/{JOB}/events"] = answer
    with Client(canned.url) as client:
        events = client.follow(JOB, timeout_s=0.6)
        assert next(events) == ("status", {"status": "queued"})
        with pytest.raises(Fail, match="not done yet") as caught:
            next(events)
    assert caught.value.exit is Exit.TIMEOUT


def test_a_stream_that_says_nothing_more_is_opened_again(
    canned: Canned, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("comfy_fleet.cli.client.SILENCE_S", 0.05)
    left = [b'event: status\ndata: {"status": "%s"}\n\n' % status for status in (b"queued", b"failed")]

    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.end_headers()
        handler.close_connection = True
        handler.wfile.write(left.pop(0))
        if left:
            select([handler.connection], [], [], 5)

    canned.answers["GET", f"/api/v2/jobs/{JOB}/events"] = answer
    with Client(canned.url) as client:
        assert [data["status"] for _, data in client.follow(JOB)] == ["queued", "failed"]
    assert len(canned.seen) == 2


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


def test_draining_waits_through_a_restart_of_the_api(canned: Canned, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(node_state, "PAUSE_S", 0.01)
    canned.on("POST", "/api/v1/nodes/a/drain", {"name": "a", "run": "r"})
    later: list[Callable[[BaseHTTPRequestHandler], None]] = []

    def dies(handler: BaseHTTPRequestHandler) -> None:
        handler.close_connection = True  # without a word

    for body, status in (
        ({"name": "a", "run": "r"}, 200),
        (error("unavailable", "The API can't be reached"), 503),
        (error("busy", "too many requests"), 429),
        (b"<html>", 502),
        ({"name": "a", "run": None}, 200),
    ):
        canned.on("GET", "/once", body, status)
        later += [canned.answers["GET", "/once"], dies]

    def answer(handler: BaseHTTPRequestHandler) -> None:
        later.pop(0)(handler)

    canned.answers["GET", "/api/v1/nodes/a"] = answer
    result = run(canned, "node", "drain", "a", "--wait")
    assert (result.exit_code, result.stdout.strip()) == (0, "drained a")


@pytest.fixture
def ctrl_c() -> Iterator[None]:
    """Let Ctrl-C reach commands in this process, also where the tests run in the background of a shell."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("ctrl_c")
def test_ctrl_c_while_draining_names_what_stays_drained(canned: Canned) -> None:
    canned.on("POST", "/api/v1/nodes/a/drain", {"name": "a", "run": "r"})

    def interrupt(handler: BaseHTTPRequestHandler) -> None:
        canned.on("GET", "/once", {"name": "a", "run": "r"})
        canned.answers["GET", "/once"](handler)
        signal.raise_signal(signal.SIGINT)

    canned.answers["GET", "/api/v1/nodes/a"] = interrupt
    refused = run(canned, "node", "drain", "a", "--wait")
    assert isinstance(refused.exception, Fail), refused.exception
    assert (refused.exception.exit, refused.exception.message) == (Exit.INTERRUPTED, "interrupted")
    assert refused.exception.hint == "drained: a; `fleet node resume NAME` lets jobs come again"


def test_a_rolling_restart_that_fails_names_what_stays_drained(canned: Canned) -> None:
    cordoned = {"name": "a", "cordoned": True, "cordon_reason": "rolling restart"}
    canned.on("GET", "/api/v1/nodes", {"nodes": [{"name": "a"}]})
    canned.on("GET", "/api/v1/nodes/a", {"name": "a"})
    canned.on("POST", "/api/v1/nodes/a/drain", {})

    def drain(handler: BaseHTTPRequestHandler) -> None:
        canned.on("GET", "/api/v1/nodes/a", cordoned)
        canned.on("POST", "/once", {})
        canned.answers["POST", "/once"](handler)

    canned.answers["POST", "/api/v1/nodes/a/drain"] = drain
    refused = run(canned, "node", "roll", "--restart-command", "false", "--timeout", "0")
    assert isinstance(refused.exception, Fail), refused.exception
    assert refused.exception.message == "the restart of a failed with 1"
    assert refused.exception.hint == "drained: a; `fleet node resume NAME` lets jobs come again"


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


@pytest.mark.parametrize("columns", [80, 120])
def test_the_next_page_of_jobs_fits_the_terminal(
    canned: Canned, monkeypatch: pytest.MonkeyPatch, columns: int
) -> None:
    monkeypatch.setenv("TTY_COMPATIBLE", "1")
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("COLUMNS", str(columns))
    cursor = "c" * 72
    canned.on("GET", "/api/v1/jobs", {"jobs": [DONE], "next_cursor": cursor})
    result = run(canned, "job", "ls")
    lines = [re.sub(r"\x1b\[[0-9;]*m", "", line) for line in result.stderr.splitlines()]
    assert max(map(len, lines)) <= columns
    assert [line for line in lines if cursor in line]
    assert "--cursor" in result.stderr


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
    canned.on("GET", "/api/v1/me", {"user": "ops", "roles": ["operator"], "live_jobs": 0})
    canned.on(
        "GET", "/api/v1/nodes", {"nodes": [{"name": "a", "verdict": "down", "why": "no answer", "run": None}]}
    )
    console = "http://fleet:8189"
    canned.on("GET", "/api/v1/health", {"url": "http://fleet:8188", "console_url": console})
    result = run(canned, "status")
    assert result.exit_code == 1, result.output
    assert "no: nodes: no node is up" in result.stdout
    assert "3 queued" in result.stdout
    told = dict(re.split(r"\s{2,}", line, maxsplit=1) for line in result.stdout.splitlines()[:3])
    assert told == {"fleet": "http://fleet:8188", "console": console, "asked at": canned.url}
    canned.on("GET", "/api/v1/health", {"url": "http://fleet:8188", "console_url": canned.url})
    assert "asked" not in run(canned, "status").stdout
    canned.on("GET", "/api/v1/health", {})  # of an earlier version
    assert run(canned, "status").stdout.splitlines()[0].split() == ["fleet", canned.url]


def test_status_shows_who_is_no_operator_what_is_theirs(canned: Canned) -> None:
    canned.on("GET", "/api/v1/ready", {"ready": True})
    canned.on("GET", "/api/v1/queue", {"queued": 3})
    canned.on("GET", "/api/v1/health", {})
    canned.on("GET", "/api/v1/me", {"user": "ada", "roles": ["artist"], "live_jobs": 2})
    result = run(canned, "status")
    assert result.exit_code == 0, result.output
    assert "ada (artist)" in result.stdout and "2 waiting or running" in result.stdout
    assert "nodes" not in result.stdout


def test_app_is_a_typer() -> None:
    assert isinstance(build(), typer.Typer)


def test_broken_workflows_are_named_beside_those_that_work(canned: Canned) -> None:
    good = {"name": "card", "title": "Card", "description": "", "version": "v", "parameters": []}
    broken = {"face": "face/workflow.toml: no node has title '[x]'", "card": "card/workflow.json is not JSON"}
    canned.on("GET", "/api/v1/workflows", {"workflows": [good], "broken": broken})
    result = run(canned, "workflow", "ls")
    assert result.exit_code == 0
    assert "broken: face: face/workflow.toml: no node has title '[x]'" in result.stderr
    assert result.stderr.count("last good version") == 1
    kept = [{**good, "folder": folder} for folder in ("/workflows/card", None)]
    canned.on("GET", "/api/v1/workflows", {"workflows": kept, "broken": {}})
    rows = run(canned, "workflow", "ls").stdout.splitlines()
    assert [row.split()[1] for row in rows] == ["In", "folder", "store"]
    canned.on("GET", "/api/v1/workflows", {"workflows": [], "broken": {}})
    assert "no workflows" in run(canned, "workflow", "ls").stderr


# ---- abbreviated ids, and what had ended before ------------------------------------------------------------


def test_the_beginning_of_an_id_is_enough(canned: Canned) -> None:
    canned.on("GET", "/api/v1/job-ids", {"ids": [JOB]})
    canned.on("GET", f"/api/v1/jobs/{JOB}", DONE)
    result = run(canned, "job", "show", JOB[:8])
    assert result.exit_code == 0, result.output
    assert JOB in result.output


def test_a_job_that_ended_badly_is_shown_with_what_its_run_saw(canned: Canned) -> None:
    story = ["0.000 Opened -> posting: PostPrompt", "9.000 SocketClosed \x1b[2J -> running"]
    error = {"code": "node_lost", "message": "the node went down", "details": {"story": story}}
    canned.on("GET", f"/api/v1/jobs/{JOB}", {**DONE, "status": "failed", "error": error})
    shown = run(canned, "job", "show", JOB).stdout
    assert "0.000 Opened -> posting: PostPrompt" in shown
    assert "9.000 SocketClosed \\x1b[2J -> running" in shown
    for odd in (None, {"story": "x"}, {"story": None}):
        canned.on("GET", f"/api/v1/jobs/{JOB}", {**DONE, "error": {**error, "details": odd}})
        assert run(canned, "job", "show", JOB).exit_code == 0


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


NO_NAMES = ["", ".", "..", "../../etc", "a/b", "a b", "x?y", "x#y", "%2e%2e", "\udcff", "\x1b[2J", "a" * 9999]


@pytest.mark.parametrize("name", NO_NAMES)
@pytest.mark.parametrize(
    ("command", "kind"),
    [
        *((f"job {verb}", "job") for verb in ("show", "cancel", "events", "logs")),
        *((f"node {verb}", "node") for verb in ("show", "drain", "resume", "rm", "refresh")),
        *((f"workflow {verb}", "workflow") for verb in ("show", "check")),
    ],
)
def test_what_can_be_no_name_is_not_there_and_no_other_path_is_asked(
    canned: Canned, command: str, kind: str, name: str
) -> None:
    refused = run(canned, *command.split(), name)
    assert isinstance(refused.exception, Fail), refused.exception
    assert (refused.exception.message, refused.exception.exit) == (
        f"no {kind} {name[:80]!r}",
        Exit.NOT_FOUND,
    )
    assert canned.seen == []


@pytest.mark.parametrize(
    ("name", "id_"), [("Caf\u00e9", "cafe"), ("100%", "100"), ("My Flow@draft", "my_flow@draft")]
)
def test_a_name_of_the_editor_s_has_its_id_beside_it(canned: Canned, name: str, id_: str) -> None:
    refused = run(canned, "workflow", "show", name)
    assert isinstance(refused.exception, Fail)
    assert (refused.exception.exit, refused.exception.hint) == (
        Exit.NOT_FOUND,
        f"commands name workflows by their ids: {id_}",
    )


@pytest.mark.parametrize("path", ["/api", "/api/v1", "/api/v1/", "/api/v2"])
def test_an_address_with_the_api_s_path_is_told_without_it(canned: Canned, path: str) -> None:
    with pytest.raises(Fail, match="which commands add themselves") as refused:
        Client(f"{canned.url}{path}")
    assert (refused.value.exit, refused.value.hint) == (Exit.USAGE, f"leave it out: {canned.url}")


def test_what_status_needs_is_in_its_help(canned: Canned) -> None:
    assert "to operators every node" in " ".join(run(canned, "status", "--help").output.split())


def test_an_empty_name_of_a_workflow_is_not_the_default_one(canned: Canned) -> None:
    refused = run(canned, "submit", "", "-p", "prompt=x")
    assert isinstance(refused.exception, Fail)
    assert refused.exception.message == "no workflow ''"


@pytest.mark.parametrize(
    "argv",
    [
        ("job", "ls", "--workflow", "\udcff"),
        ("job", "ls", "--metadata", "\udcff=1"),
        ("workflow", "check", "image_card", "--node", "\udcff"),
        ("node", "diff", "\udcff"),
    ],
)
def test_what_can_not_be_sent_in_a_query_is_told(canned: Canned, argv: tuple[str, ...]) -> None:
    refused = run(canned, *argv)
    assert isinstance(refused.exception, Fail), refused.exception
    assert "not valid Unicode" in refused.exception.message


@pytest.mark.parametrize(
    "url",
    [
        *("http://[::1", "http://x:99999", "http://a b", "http://x\n", "http://x/\n", "ftp://x", "x:80"),
        *("http://xn--/", "http://\udcff", "http://..x", f"http://{'a' * 300}", "http://x:y", "http://"),
    ],
)
def test_what_is_no_url_is_told(url: str) -> None:
    refused = CliRunner().invoke(build(), ["status", "--api", url])
    assert isinstance(refused.exception, Fail), refused.exception
    assert "is not an http(s) URL" in refused.exception.message
