"""Names of a batch's files, and tables that `fleet submit --from` reads before it sends them."""

import zipfile
from http.server import BaseHTTPRequestHandler
from io import BytesIO
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from comfy_fleet.cli.exits import Exit, Fail
from comfy_fleet.domain.jobs.safe_names import DistinctNames, safe_name
from tests.canned import SCHEMA, Canned, run

BATCH = "6d0c7a2e-1d0c-4b7f-9d62-6f5e6f0d7a51"
PATH = "/api/v1/workflows/portrait/batches"
STATES = (
    "pending",
    "queued",
    "running",
    "canceling",
    "succeeded",
    "failed",
    "canceled",
    "expired",
    "refused",
)


def batch(status: str = "completed", **counts: int) -> dict[str, Any]:
    found = {state: counts.get(state, 0) for state in STATES}
    return {"id": BATCH, "status": status, "total": sum(found.values()), "counts": found, "waiting": 0}


def test_equal_names_are_made_distinct() -> None:
    names = DistinctNames()
    names.one("manifest", ".csv")
    made = [
        names.one(safe_name(one), ".png") for one in ("a", "A", "a", "a_2", "ä", "../a", "con", "...", "")
    ]
    assert made == [
        "a.png",
        "A_2.png",
        "a_3.png",
        "a_2_2.png",
        "ä.png",
        "a_4.png",
        "_con.png",
        "_.png",
        "output.png",
    ]
    assert len({one.casefold() for one in made}) == len(made)
    assert names.one("manifest", ".csv") == "manifest_2.csv"
    assert all("/" not in one and "\\" not in one for one in made)


def test_a_table_goes_with_the_files_that_it_names(canned: Canned, tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    (photos / "in").mkdir(parents=True)
    (photos / "a.png").write_bytes(b"A")
    (photos / "in" / "b.png").write_bytes(b"B")
    (photos / "c.png").write_bytes(b"C")
    table = tmp_path / "products.csv"
    table.write_text("custom_id,face\nx,@a.png\ny,@in/b.png\nz,https://shop.test/c.png\n")
    canned.on("GET", "/api/v1/workflows/portrait", {"parameters": SCHEMA})
    canned.on("POST", "/api/v2/assets", {"id": "asset-1"}, 201)
    queries: list[dict[str, list[str]]] = []
    canned.on("POST", PATH, {**batch("queueing", pending=3), "errors": [], "more_errors": 0}, 201)
    answer = canned.answers["POST", PATH]

    def noting(handler: BaseHTTPRequestHandler) -> None:
        queries.append(parse_qs(urlsplit(handler.path).query))
        answer(handler)

    canned.answers["POST", PATH] = noting
    argv = (
        "--from",
        str(table),
        "--files",
        str(photos),
        "-p",
        "steps=8",
        "--partial",
        "--webhook",
        "http://h/",
    )
    result = run(canned, "submit", "portrait", *argv)
    assert result.exit_code == 0, result.output
    assert result.stdout.strip() == BATCH
    sent = next(seen for seen in canned.seen if seen[1].startswith(PATH))
    assert queries == [
        {
            "partial": ["true"],
            "files": ["asset-1"],
            "webhook_url": ["http://h/"],
            "defaults": ['{"params": {"steps": 8}}'],
        }
    ]
    assert sent[3] == table.read_bytes()
    upload = next(seen for seen in canned.seen if seen[1] == "/api/v2/assets")[3]
    packed = upload[upload.index(b"PK") : upload.rindex(b"\r\n--")]
    with zipfile.ZipFile(BytesIO(packed)) as archive:
        assert {name: archive.read(name) for name in archive.namelist()} == {"a.png": b"A", "in/b.png": b"B"}


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("t.csv", "face\n@../secret.png\n", "a file that it names is not in"),
        ("t.csv", "face\n@nothing.png\n", "a file that it names is not in"),
        ("t.jsonl", '{"params": {"face": "@nothing.png"}}\n', "a file that it names is not in"),
        ("t.xls", "x", "it must be .csv"),
    ],
)
def test_what_can_t_be_sent(canned: Canned, tmp_path: Path, name: str, content: str, says: str) -> None:
    (tmp_path / "secret.png").write_bytes(b"S")
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / name).write_text(content)
    canned.on("GET", "/api/v1/workflows/portrait", {"parameters": SCHEMA})
    result = run(canned, "submit", "portrait", "--from", str(folder / name))
    assert isinstance(result.exception, Fail)
    assert result.exception.exit is Exit.USAGE
    assert says in result.exception.message


def test_errors_are_listed_and_the_worst_end_is_the_exit_code(canned: Canned, tmp_path: Path) -> None:
    table = tmp_path / "t.jsonl"
    table.write_text('{"params": {}}\n')
    canned.on("GET", "/api/v1/workflows/portrait", {"parameters": SCHEMA})
    fault = {"custom_id": "a", "item": 0, "line": 1, "field": "params.prompt", "message": "is required"}
    refused = {"code": "invalid_batch", "message": "1 of 1", "details": {"errors": [fault], "more": 4}}
    canned.on("POST", PATH, {"error": refused}, 422)
    result = run(canned, "submit", "portrait", "--from", str(table))
    assert isinstance(result.exception, Fail)
    assert "line 1: a: params.prompt: is required" in result.stderr
    assert "and 4 more" in result.stderr
    canned.on("POST", PATH, {**batch("queueing", pending=2), "errors": [], "more_errors": 0}, 201)
    canned.on("GET", f"/api/v1/batches/{BATCH}", batch(succeeded=1, failed=1))
    result = run(canned, "submit", "portrait", "--from", str(table), "--wait")
    assert result.exit_code == Exit.JOB_FAILED
    assert f"batch {BATCH} completed: 1 succeeded, 1 failed" in result.stdout
