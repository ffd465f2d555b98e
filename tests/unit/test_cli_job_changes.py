"""`fleet job download`, `rm`, `retry`, `keep` and `ls`, against a small server with canned answers."""

import fcntl
import json
import re
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest
from blake3 import blake3

from comfy_fleet.cli.client import Client
from comfy_fleet.cli.downloads import save_outputs
from comfy_fleet.cli.exits import Exit, Fail
from comfy_fleet.client.saving import target_paths as targets
from comfy_fleet.domain.jobs.safe_names import safe_name
from tests.canned import DONE, JOB, Canned, error, run

CONTENT = bytes(range(256)) * 40


def output(name: str = "card_00001_.png", content: bytes = CONTENT, url: str = "/files/a") -> dict[str, Any]:
    told = f"blake3:{blake3(content).hexdigest()}"
    return {"name": name, "type": "image", "size_bytes": len(content), "hash": told, "url": f"http://x{url}"}


def serve(
    canned: Canned, *, content: bytes = CONTENT, breaks_at: int | None = None, ranges: bool = True
) -> None:
    """Serve a file, with ranges; with ``breaks_at``, the first transfer breaks off there."""
    first = [breaks_at]

    def answer(handler: BaseHTTPRequestHandler) -> None:
        start = 0
        if ranges and (asked := re.fullmatch(r"bytes=(\d+)-", handler.headers.get("Range") or "")):
            start = int(asked[1])
        handler.send_response(206 if start else 200)
        handler.send_header("Content-Length", str(len(content) - start))
        handler.end_headers()
        stop, first[0] = first[0], None
        handler.wfile.write(content[start:stop])
        handler.close_connection = stop is not None

    canned.answers["GET", "/files/a"] = answer


def asked_ranges(canned: Canned) -> list[str | None]:
    return [head.get("Range") for _, path, head, _ in canned.seen if path == "/files/a"]


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# -- download ---------------------------------------------------------------


def test_outputs_are_saved_under_their_names(canned: Canned, tmp_path: Path) -> None:
    serve(canned)
    canned.on("GET", f"/api/v1/jobs/{JOB}", {**DONE, "outputs": [output(), output("card_00002_.png")]})
    result = run(canned, "job", "download", JOB, "--out", str(tmp_path / "new"))
    assert result.exit_code == 0, result.output
    assert names(tmp_path / "new") == ["card_00001_.png", "card_00002_.png"]
    assert result.stdout.splitlines()[0] == f"{tmp_path}/new/card_00001_.png  (10.0 KiB)"
    assert (tmp_path / "new" / "card_00001_.png").read_bytes() == CONTENT
    again = run(canned, "job", "download", JOB, "--out", str(tmp_path / "new"), "--json")
    told = json.loads(again.stdout)
    assert [one["new"] for one in told["files"]] == [False, False]
    assert len(asked_ranges(canned)) == 2  # nothing was loaded twice


def test_a_transfer_that_breaks_off_goes_on_where_it_stopped(canned: Canned, tmp_path: Path) -> None:
    serve(canned, breaks_at=5000)
    canned.on("GET", f"/api/v1/jobs/{JOB}", {**DONE, "outputs": [output()]})
    result = run(canned, "job", "download", JOB, "--out", str(tmp_path))
    assert result.exit_code == 0, result.output
    assert asked_ranges(canned) == [None, "bytes=5000-"]
    assert names(tmp_path) == ["card_00001_.png"]
    assert (tmp_path / "card_00001_.png").read_bytes() == CONTENT


def test_what_has_come_is_kept_under_another_name(canned: Canned, tmp_path: Path) -> None:
    (tmp_path / "card_00001_.png.part").write_bytes(CONTENT[:3000])
    canned.on("GET", "/files/a", error("upstream_error", "gone for now"), 503)
    canned.on("GET", f"/api/v1/jobs/{JOB}", {**DONE, "outputs": [output()]})
    result = run(canned, "job", "download", JOB, "--out", str(tmp_path))
    assert isinstance(result.exception, Fail)
    assert "goes on from there" in str(result.exception.hint)
    assert names(tmp_path) == ["card_00001_.png.part"]
    serve(canned)
    canned.seen.clear()
    assert run(canned, "job", "download", JOB, "--out", str(tmp_path)).exit_code == 0
    assert asked_ranges(canned) == ["bytes=3000-"]
    assert names(tmp_path) == ["card_00001_.png"]


@pytest.mark.parametrize("ranges", [True, False])
def test_the_beginning_of_another_file_is_not_taken_for_this_ones(
    canned: Canned, tmp_path: Path, ranges: bool
) -> None:
    (tmp_path / "card_00001_.png.part").write_bytes(b"something else")
    serve(canned, ranges=ranges)
    canned.on("GET", f"/api/v1/jobs/{JOB}", {**DONE, "outputs": [output()]})
    assert run(canned, "job", "download", JOB, "--out", str(tmp_path)).exit_code == 0
    assert names(tmp_path) == ["card_00001_.png"]
    assert (tmp_path / "card_00001_.png").read_bytes() == CONTENT


def test_wrong_bytes_never_get_the_files_name(canned: Canned, tmp_path: Path) -> None:
    serve(canned, content=CONTENT[::-1])
    canned.on("GET", f"/api/v1/jobs/{JOB}", {**DONE, "outputs": [output()]})
    result = run(canned, "job", "download", JOB, "--out", str(tmp_path))
    assert isinstance(result.exception, Fail)
    assert "not what the fleet has stored" in result.exception.message
    assert names(tmp_path) == []


def test_no_other_file_is_overwritten_unless_asked_to(canned: Canned, tmp_path: Path) -> None:
    (tmp_path / "card_00001_.png").write_text("mine")
    serve(canned)
    canned.on("GET", f"/api/v1/jobs/{JOB}", {**DONE, "outputs": [output("a.png"), output()]})
    result = run(canned, "job", "download", JOB, "--out", str(tmp_path))
    assert isinstance(result.exception, Fail)
    assert "card_00001_.png" in result.exception.message
    assert "--force" in str(result.exception.hint)
    assert names(tmp_path) == ["card_00001_.png"]  # it was checked before anything was loaded
    assert (tmp_path / "card_00001_.png").read_text() == "mine"
    assert run(canned, "job", "download", JOB, "--out", str(tmp_path), "--force").exit_code == 0
    assert (tmp_path / "card_00001_.png").read_bytes() == CONTENT


@pytest.mark.parametrize("what", ["folder", "dangling link", "link to itself"])
def test_what_is_no_file_is_neither_replaced_nor_downloaded_for_nothing(
    canned: Canned, tmp_path: Path, what: str
) -> None:
    target = tmp_path / "card_00001_.png"
    if what == "folder":
        target.mkdir()
    else:
        target.symlink_to("gone" if what == "dangling link" else target)
    serve(canned)
    canned.on("GET", f"/api/v1/jobs/{JOB}", {**DONE, "outputs": [output()]})
    result = run(canned, "job", "download", JOB, "--out", str(tmp_path))
    assert isinstance(result.exception, Fail)
    assert ("another folder" in str(result.exception.hint), asked_ranges(canned)) == (True, [])
    assert names(tmp_path) == [target.name]
    forced = run(canned, "job", "download", JOB, "--out", str(tmp_path), "--force")
    assert forced.exit_code == (Exit.FAILED if what == "folder" else Exit.OK)
    assert names(tmp_path) == [target.name]
    assert target.is_dir() if what == "folder" else target.read_bytes() == CONTENT


def test_a_file_that_appears_meanwhile_stays_and_what_has_come_is_kept(
    canned: Canned, tmp_path: Path
) -> None:
    target = tmp_path / "card_00001_.png"
    serve(canned)
    whole = canned.answers["GET", "/files/a"]

    def answer(handler: BaseHTTPRequestHandler) -> None:
        target.symlink_to("gone")
        whole(handler)

    canned.answers["GET", "/files/a"] = answer
    canned.on("GET", f"/api/v1/jobs/{JOB}", {**DONE, "outputs": [output()]})
    result = run(canned, "job", "download", JOB, "--out", str(tmp_path))
    assert isinstance(result.exception, Fail)
    assert "--force" in str(result.exception.hint)
    part = f"{target.name}.part"
    assert part in result.exception.message
    assert names(tmp_path) == [target.name, part] and target.is_symlink()


def test_two_commands_do_not_write_one_file(canned: Canned, tmp_path: Path) -> None:
    canned.on("GET", f"/api/v1/jobs/{JOB}", {**DONE, "outputs": [output()]})
    with (tmp_path / "card_00001_.png.part").open("ab") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        result = run(canned, "job", "download", JOB, "--out", str(tmp_path))
    assert isinstance(result.exception, Fail)
    assert result.exception.exit is Exit.REFUSED
    assert "another command writes" in result.exception.message


def test_a_job_that_is_not_over_is_told_so(canned: Canned, tmp_path: Path) -> None:
    canned.on("GET", f"/api/v1/jobs/{JOB}", {**DONE, "status": "running", "outputs": [output()]})
    result = run(canned, "job", "download", JOB, "--out", str(tmp_path))
    assert isinstance(result.exception, Fail)
    assert "--wait" in str(result.exception.hint)
    for status, code in (("failed", Exit.JOB_FAILED), ("succeeded", Exit.OK)):
        canned.on("GET", f"/api/v1/jobs/{JOB}", {**DONE, "status": status, "outputs": []})
        result = run(canned, "job", "download", JOB, "--out", str(tmp_path))
        assert (result.exit_code, result.stdout) == (code, "")
        assert "no outputs" in result.stderr


@pytest.mark.parametrize(
    ("name", "safe"),
    [
        ("../../evil\\card.png", "card.png"),
        ("..", "_"),
        (".bashrc", "_bashrc"),
        ("a b (1).png", "a b (1).png"),
        ("a:b*?.png", "a_b__.png"),
        ("con.png", "_con.png"),
        ("", "output"),
        ("name.", "name"),
        ("\x1b[31m.png", "__31m.png"),
        ("x" * 300 + ".png", "x" * 176 + ".png"),
        ("é" * 300 + ".webp", "é" * 87 + ".webp"),
        ("a." + "x" * 300, "a." + "x" * 178),
    ],
)
def test_names_from_nodes_are_made_harmless(name: str, safe: str) -> None:
    assert safe_name(name) == safe
    assert len(safe.encode()) <= 180


def test_outputs_with_one_name_get_a_file_each(tmp_path: Path) -> None:
    job = {**DONE, "outputs": [output("a.png"), output("A.png"), output("sub/a.png"), output("a")]}
    assert [path.name for path in targets(job, tmp_path, job_in_name=False)] == [
        *("a.png", "A_2.png", "a_3.png", "a")
    ]


def test_files_beside_a_submit_have_the_jobs_id_in_their_names(canned: Canned, tmp_path: Path) -> None:
    canned.on("GET", "/files/a", b"PNG!")
    with Client(canned.url, "geheim") as client:
        job = {**DONE, "outputs": DONE["outputs"] * 2}
        saved = save_outputs(client, job, tmp_path / "out")
    assert [one.path.name for one in saved] == ["7f3d2c1b-card.png", "7f3d2c1b-card_2.png"]
    assert saved[0].path.read_bytes() == b"PNG!"
    assert names(tmp_path / "out") == sorted(one.path.name for one in saved)


def test_one_job_that_is_gone_keeps_the_others_from_nothing(canned: Canned, tmp_path: Path) -> None:
    gone = JOB[:-1] + "0"
    serve(canned)
    path = f"/api/v1/jobs/{gone}"
    for method, where in (("GET", path), ("DELETE", path), ("PUT", f"{path}/keep")):
        canned.on(method, where, error("not_found", f"no job {gone}"), 404)
    canned.on("GET", f"/api/v1/jobs/{JOB}", {**DONE, "outputs": [output()]})
    canned.on("DELETE", f"/api/v1/jobs/{JOB}", b"", 204)
    canned.on("PUT", f"/api/v1/jobs/{JOB}/keep", {"id": JOB, "kept": True})
    for words, says in (
        (("rm",), f"removed {JOB}"),
        (("keep",), f"{JOB}  kept"),
        (("download", "--out", str(tmp_path)), "card_00001_.png"),
    ):
        result = run(canned, "job", *words, gone, JOB)
        assert result.exit_code == Exit.NOT_FOUND, words
        assert says in result.stdout
        assert gone in result.stderr


# -- rm, retry, keep --------------------------------------------------------


def test_jobs_are_removed_by_abbreviated_ids(canned: Canned) -> None:
    canned.on("GET", "/api/v1/job-ids", {"ids": [JOB]})
    canned.on("DELETE", f"/api/v1/jobs/{JOB}", b"", 204)
    result = run(canned, "job", "rm", JOB[:8], JOB)
    assert (result.exit_code, result.stdout) == (0, f"removed {JOB}\n")
    live = error("job_live", f"job {JOB} is queued: cancel it first")
    canned.on("DELETE", f"/api/v1/jobs/{JOB}", live, 409)
    result = run(canned, "job", "rm", JOB)
    assert isinstance(result.exception, Fail)
    assert result.exception.hint == f"fleet job rm --cancel {JOB}"


def test_a_retry_prints_the_new_id(canned: Canned) -> None:
    new = "22222222-9a8e-4d6f-b012-3c4d5e6f7a8b"
    path = f"/api/v1/jobs/{JOB}/retry"
    canned.on("POST", path, {"id": new, "status": "queued"}, 201)
    result = run(canned, "job", "retry", JOB)
    assert (result.exit_code, result.stdout) == (0, f"{new}\n")
    result = run(canned, "job", "retry", JOB, "--new-seed", "-n", "2", "--without-keys")
    assert result.stdout.splitlines() == [new, new]
    assert canned.bodies("POST", path) == [{"new_seed": False}, *[{"new_seed": True, "extra_data": {}}] * 2]
    assert isinstance(run(canned, "job", "retry", JOB, "-n", "2").exception, Fail)
    canned.on("POST", path, error("secrets_gone", "the keys in its extra_data were erased"), 409)
    result = run(canned, "job", "retry", JOB)
    assert isinstance(result.exception, Fail)
    assert "--without-keys" in str(result.exception.hint)


def test_jobs_are_kept_and_no_longer_kept(canned: Canned) -> None:
    path = f"/api/v1/jobs/{JOB}/keep"
    canned.on("PUT", path, {**DONE, "kept": True, "expires_at": "2130-01-01T00:00:00Z"})
    canned.on("DELETE", path, {**DONE, "kept": False, "expires_at": "2030-01-08T00:00:00Z"})
    assert run(canned, "job", "keep", JOB).stdout == f"{JOB}  kept until it is removed\n"
    assert run(canned, "job", "keep", JOB, "--off").stdout == f"{JOB}  goes after 2030-01-08T00:00:00Z\n"
    canned.on("GET", f"/api/v1/jobs/{JOB}", {**DONE, "kept": True, "retry_of": "another"})
    shown = run(canned, "job", "show", JOB).stdout
    assert re.search(r"kept +until it is removed", shown)
    assert re.search(r"repeats +another", shown)


# -- ls ---------------------------------------------------------------------

LISTED = [
    {**DONE, "id": "11111111-aaaa", "status": "queued", "queue_position": 3, "excerpt": "a red fox " * 12},
    {**DONE, "id": "22222222-aaaa", "status": "running", "progress": {"value": 0.456}, "excerpt": ""},
    {**DONE, "id": "33333333-aaaa", "workflow": "qwen_image_kids_animal", "excerpt": "x" * 120},
    {**DONE, "id": "44444444-aaaa", "workflow": None, "excerpt": "猫" * 60},
]


def test_a_list_in_a_pipe_has_everything(canned: Canned) -> None:
    canned.on("GET", "/api/v1/jobs", {"jobs": LISTED, "next_cursor": None})
    lines = run(canned, "job", "ls").stdout.splitlines()
    assert lines[0].split() == ["Job", "Status", "Progress", "Age", "Node", "Workflow", "Prompt"]
    assert lines[1].startswith("11111111-aaaa  queued")
    assert " #3 " in lines[1]
    assert lines[1].count("a red fox") == 12
    assert " 46% " in lines[2]
    assert " 2.0s " in lines[3]
    assert lines[3].endswith(f"qwen_image_kids_animal  {'x' * 120}")
    assert len(lines) == 5
    assert run(canned, "job", "ls", "--kept").exit_code == 0
    assert json.loads(run(canned, "job", "ls", "--json").stdout)["jobs"] == LISTED


def test_a_list_on_a_terminal_takes_one_line_for_each_job(
    canned: Canned, monkeypatch: pytest.MonkeyPatch
) -> None:
    from rich.cells import cell_len

    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("NO_COLOR", "1")
    canned.on("GET", "/api/v1/jobs", {"jobs": LISTED, "next_cursor": None})
    for columns in (80, 120):
        monkeypatch.setenv("COLUMNS", str(columns))
        text = re.sub(r"\x1b\[[0-9;]*m", "", run(canned, "job", "ls").stdout)
        lines = text.splitlines()
        assert len(lines) == 5
        assert max(map(cell_len, lines)) <= columns, text
        assert lines[3].endswith("xx…")
        assert ("qwen_image_kids…" in text) == (columns == 80)


def test_a_shared_result_and_the_place_in_a_batch_are_shown(canned: Canned) -> None:
    batch = {"seed": 7, "batch_index": 2, "count": 1, "batch_size": 4}
    canned.on("GET", f"/api/v1/jobs/{JOB}", {**DONE, "batch": batch})
    shown = run(canned, "job", "show", JOB).stdout
    assert "number 2, from 0, of a batch of 4 with seed 7" in shown and "equal job" not in shown
    canned.on("GET", f"/api/v1/jobs/{JOB}", {**DONE, "batch": {**batch, "count": 2, "batch_size": 8}})
    assert "numbers 2 to 3, from 0, of a batch of 8" in run(canned, "job", "show", JOB).stdout
    canned.on("GET", f"/api/v1/jobs/{JOB}", {**DONE, "cached": True})
    shown = run(canned, "job", "show", JOB).stdout
    assert "that of an equal job" in shown and "batch" not in shown


def test_what_was_withheld_is_told(canned: Canned) -> None:
    withheld = {**output("b.png"), "withheld": True}
    canned.on("GET", f"/api/v1/jobs/{JOB}", {**DONE, "outputs": [output(), withheld]})
    lines = run(canned, "job", "show", JOB).stdout.splitlines()
    assert "withheld" in next(line for line in lines if "b.png" in line)
    assert "image" in next(line for line in lines if "card_00001_.png" in line)
