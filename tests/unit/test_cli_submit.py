"""`fleet submit`, against a small server with canned answers."""

import json
import shlex
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest

from comfy_fleet.cli.exits import Exit, Fail
from comfy_fleet.cli.parameters import pairs, typed_value
from tests.canned import DONE, JOB, SCHEMA, Canned, error, run


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


def test_submit_sends_times_and_says_that_several_are_a_batch(canned: Canned) -> None:
    path = "/api/v1/workflows/portrait/jobs"
    canned.on("GET", "/api/v1/workflows/portrait", {"parameters": SCHEMA})
    canned.on("POST", path, {"id": JOB, "status": "queued"}, 201)
    by = "2030-05-17T18:30:00+02:00"
    times = ("--ttl", "90", "--run-timeout", "60.5", "--finish-by", by)
    result = run(canned, "submit", "portrait", "-p", "prompt=x", *times)
    assert result.exit_code == 0, result.output
    assert run(canned, "submit", "portrait", "-p", "prompt=x", "--batch").exit_code == 0
    assert canned.bodies("POST", path) == [
        {"params": {"prompt": "x"}, "ttl_s": 90.0, "timeout_s": 60.5, "finish_by": by},
        {"params": {"prompt": "x"}, "tier": "batch"},
    ]


@pytest.mark.parametrize(
    ("option", "value"),
    [
        *(("--ttl", value) for value in ("0", "-1", "nan", "inf", "1e30")),
        *(("--run-timeout", value) for value in ("0.5", "nan", "1e30")),
        *(("--finish-by", value) for value in ("", "soon", "25:00", "2030-02-30 10:00", "1e30", "18")),
    ],
)
def test_a_time_that_is_none_is_refused_before_anything_is_sent(
    canned: Canned, option: str, value: str
) -> None:
    result = run(canned, "submit", "portrait", "-p", "prompt=x", option, value)
    assert isinstance(result.exception, Fail)
    assert result.exception.exit is Exit.USAGE
    assert result.exception.message.startswith(f"{option} ")
    assert canned.seen == []


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


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["-p", "prompt=a", "-p", "prompt=b"], "prompt is given twice"),
        (["-p", "face=a", "--image", "face=/dev/null"], "face is given twice"),
        (["--image", "prompt=/dev/null"], "'prompt' of workflow portrait takes no file"),
        (["-p", "prompt=@{binary}"], "is not UTF-8 text"),
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


def test_a_file_for_a_picture_parameter_names_the_flag(canned: Canned, tmp_path: Path) -> None:
    canned.on("POST", "/api/v2/assets", {"id": "asset-1"}, 201)
    canned.on("POST", "/api/v1/workflows/image_card/jobs", {"id": JOB, "status": "queued"}, 201)
    for name, prefix in (("face.png", ""), ("face.png", "@"), ("my face.png", "")):
        (tmp_path / name).write_bytes(b"x")
        result = run(canned, "submit", "image_card", "-p", f"face={prefix}{tmp_path}/{name}")
        assert isinstance(result.exception, Fail)
        _, _, typed = str(result.exception.hint).partition("upload it: ")
        again = run(canned, "submit", "image_card", *shlex.split(typed))
        assert again.exit_code == 0, again.output


# -- several jobs at once ---------------------------------------------------

SEED = {"type": "integer", "x-fleet-type": "seed"}
SEEDED = {"type": "object", "properties": {"prompt": {"type": "string"}, "seed": SEED}}
IDS = [f"{digit * 8}-9a8e-4d6f-b012-3c4d5e6f7a8b" for digit in "123"]


def several(canned: Canned, path: str, refused_after: int = 9) -> None:
    """Answer each submit with the next id, then with a full queue."""
    left = list(IDS[:refused_after])

    def answer(handler: BaseHTTPRequestHandler) -> None:
        body = {"id": left.pop(0), "status": "queued"} if left else error("queue_full", "3 jobs wait already")
        raw = json.dumps(body).encode()
        handler.send_response(201 if "id" in body else 429)
        handler.send_header("Content-Length", str(len(raw)))
        handler.end_headers()
        handler.wfile.write(raw)

    canned.answers["POST", path] = answer


def test_several_jobs_print_their_ids_one_per_line(canned: Canned) -> None:
    canned.on("GET", "/api/v1/workflows/w", {"parameters": SEEDED})
    several(canned, "/api/v1/workflows/w/jobs")
    result = run(canned, "submit", "w", "-p", "prompt=x", "-n", "3", "--idempotency-key", "k")
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines() == IDS
    body = {"params": {"prompt": "x"}, "tier": "batch"}
    assert canned.bodies("POST", "/api/v1/workflows/w/jobs") == [body] * 3
    keys = [head["Idempotency-Key"] for verb, _, head, _ in canned.seen if verb == "POST"]
    assert keys == ["k-1", "k-2", "k-3"]


def test_jobs_that_were_submitted_before_a_refusal_are_told(canned: Canned) -> None:
    canned.on("GET", "/api/v1/workflows/w", {"parameters": SEEDED})
    several(canned, "/api/v1/workflows/w/jobs", refused_after=2)
    result = run(canned, "submit", "w", "-p", "prompt=x", "-n", "3")
    assert result.stdout.splitlines() == IDS[:2]
    assert isinstance(result.exception, Fail)
    assert result.exception.message == "2 of 3 jobs were submitted; then: 3 jobs wait already"
    assert result.exception.exit is Exit.REFUSED
    several(canned, "/api/v1/workflows/w/jobs", refused_after=1)
    result = run(canned, "submit", "w", "-p", "prompt=x", "-n", "3", "--json")
    assert isinstance(result.exception, Fail)
    assert IDS[0] in result.exception.message


@pytest.mark.parametrize(
    ("schema", "argv", "says"),
    [
        (SCHEMA, (), "has no seed"),
        (SEEDED, ("-p", "seed=5"), "with -p seed=5, 2 jobs would all make the same"),
    ],
)
def test_several_equal_jobs_are_refused(
    canned: Canned, schema: dict[str, Any], argv: tuple[str, ...], says: str
) -> None:
    canned.on("GET", "/api/v1/workflows/w", {"parameters": schema})
    result = run(canned, "submit", "w", "-p", "prompt=x", "-n", "2", *argv)
    assert isinstance(result.exception, Fail)
    assert says in result.exception.message
    assert result.exception.exit is Exit.USAGE
    assert not any(verb == "POST" for verb, *_ in canned.seen)


def test_each_graph_of_a_file_gets_a_seed_of_its_own(canned: Canned, tmp_path: Path) -> None:
    path = tmp_path / "graph.json"
    path.write_text(json.dumps({"1": {"class_type": "KSampler", "inputs": {"seed": 5, "steps": 5}}}))
    several(canned, "/api/v2/jobs")
    result = run(canned, "submit", str(path), "-n", "3")
    assert result.exit_code == 0, result.output
    inputs = [body["workflow"]["1"]["inputs"] for body in canned.bodies("POST", "/api/v2/jobs")]
    assert len({one["seed"] for one in inputs} | {5}) == 4
    assert {one["steps"] for one in inputs} == {5}
    path.write_text(json.dumps({"1": {"class_type": "EmptyImage", "inputs": {"width": 8}}}))
    result = run(canned, "submit", str(path), "-n", "3")
    assert isinstance(result.exception, Fail)
    assert "has no seed" in result.exception.message


def test_a_picture_that_cant_be_saved_is_downloaded_and_not_made_anew(canned: Canned, tmp_path: Path) -> None:
    canned.on("POST", "/api/v1/workflows/image_card/jobs", {"id": JOB, "status": "queued"}, 201)
    canned.stream(f"/api/v2/jobs/{JOB}/events", b'event: status\ndata: {"status": "succeeded"}\n\n')
    canned.on("GET", f"/api/v1/jobs/{JOB}", DONE)
    (tmp_path / "7f3d2c1b-card.png").write_text("mine")
    result = run(canned, "submit", "image_card", "--out", str(tmp_path))
    assert isinstance(result.exception, Fail)
    assert result.exception.hint == f"the outputs are kept: fleet job download {JOB} --out {tmp_path}"


def test_waiting_for_several_shows_all_and_ends_with_the_worst(canned: Canned, tmp_path: Path) -> None:
    canned.on("GET", "/api/v1/workflows/w", {"parameters": SEEDED})
    several(canned, "/api/v1/workflows/w/jobs")
    canned.on("GET", "/api/v1/jobs", {"jobs": [], "next_cursor": None})
    canned.on("GET", "/files/a", b"PNG!")
    ends = ["succeeded", "canceled", "failed"]
    for job_id, status in zip(IDS, ends, strict=True):
        canned.on("GET", f"/api/v1/jobs/{job_id}", {**DONE, "id": job_id, "status": status})
    result = run(canned, "submit", "w", "-p", "prompt=x", "-n", "3", "--out", str(tmp_path))
    assert result.exit_code == Exit.JOB_FAILED
    for job_id, status in zip(IDS, ends, strict=True):
        assert f"{status}  job {job_id}" in result.stdout
    assert [path.name for path in tmp_path.iterdir()] == ["11111111-card.png"]
    several(canned, "/api/v1/workflows/w/jobs")
    answer = json.loads(run(canned, "submit", "w", "-p", "prompt=x", "-n", "3", "--wait", "--json").stdout)
    assert [job["status"] for job in answer["jobs"]] == ends
