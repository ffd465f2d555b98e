"""`fleet workflow` with the store, on a real API: from `add` to `rm`."""

import asyncio
import json
import os
import stat
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from redis.asyncio import Redis
from typer.testing import CliRunner

from comfy_fleet.cli import workflow_folders
from comfy_fleet.cli.app import build
from comfy_fleet.cli.client import Client
from comfy_fleet.cli.exits import Exit, Fail
from comfy_fleet.domain.graphs.stored import NewVersion, WorkflowContent
from tests.integration.api_kit import Api, running
from tests.key_files import write_keys

ARTIST, OTHER = "ann-key-0123456789", "bob-key-0123456789"
MANIFEST = '[parameters.width]\nmin = 16\nmax = 512\nrole = "prompt"\n'


def graph(color: int = 255, title: str = "$width $height") -> dict[str, Any]:
    inputs = {"width": 64, "height": 64, "batch_size": 1, "color": color}
    save = {"images": ["1", 0], "filename_prefix": "test"}
    return {
        "1": {"class_type": "EmptyImage", "inputs": inputs, "_meta": {"title": title}},
        "2": {"class_type": "SaveImage", "inputs": save, "_meta": {"title": "Save Image"}},
    }


EDITOR = {
    "nodes": [
        {"id": 1, "type": "EmptyImage", "title": "$width", "widgets_values": [64, 64, 1, 255]},
        {"id": 2, "type": "SaveImage", "widgets_values": ["test"]},
    ],
    "links": [[1, 1, 0, 2, 0, "IMAGE"]],
}


@pytest.fixture
async def api(redis_port: int, redis: Redis, tmp_path: Path) -> AsyncIterator[Api]:
    write_keys(keys := tmp_path / "keys", f"ann {ARTIST} artist\nbob {OTHER} artist\n")
    (tmp_path / "kept").mkdir()
    settings: dict[str, Any] = {"keys_file": keys, "workflows": tmp_path / "kept"}
    async with running(redis_port, tmp_path / "data", **settings) as started:
        await started.add_node()
        yield started


async def fleet(api: Api, *argv: str, key: str = ARTIST, answer: str | None = None) -> Any:
    def call() -> Any:
        return CliRunner().invoke(build(argv), [*argv, "--api", api.url, "--key", key], input=answer)

    return await asyncio.to_thread(call)


async def said(api: Api, *argv: str, key: str = ARTIST) -> str:
    result = await fleet(api, *argv, key=key)
    assert result.exit_code == 0, (result.output, result.exception)
    return str(result.stdout)


async def refused(api: Api, *argv: str, key: str = ARTIST) -> Fail:
    result = await fleet(api, *argv, key=key)
    assert isinstance(result.exception, Fail), result.output
    return result.exception


def write(path: Path, value: object) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(value if isinstance(value, str) else json.dumps(value))
    return str(path)


async def shown(api: Api, reference: str) -> dict[str, Any]:
    answer = await api.client.get(
        f"/api/v1/workflows/{reference}", headers={"Authorization": f"Bearer {ARTIST}"}
    )
    return dict(answer.json())


# -- add --------------------------------------------------------------------


async def test_a_workflow_is_added_changed_compared_and_taken_back(api: Api, tmp_path: Path) -> None:
    manifest = write(tmp_path / "m.toml", MANIFEST)
    file = write(tmp_path / "My Card.json", graph())
    first = await said(api, "workflow", "add", file, "--manifest", manifest)
    assert first.startswith("my_card  ")
    assert first.endswith(" published, new\n")
    old = first.split()[1]
    assert (await shown(api, "my_card"))["parameters"]["properties"]["width"]["maximum"] == 512
    same = await said(api, "workflow", "add", file, "--manifest", manifest)
    assert same == f"my_card  {old} is in production already\n"

    changed = write(tmp_path / "c.json", graph(7, "$width"))
    words = ("workflow", "add", changed, "--name", "my_card", "--base", old, "--note", "darker")
    told = await said(api, *words, "--dry-run")
    assert "  - height (integer)\n" in told
    assert "    color 255 → 7\n" in told
    assert (await shown(api, "my_card"))["version"].startswith(f"sha256:{old}")
    result = await fleet(api, *words)
    new = result.stdout.split()[1]
    assert "parameter 'height' disappears" in result.stderr
    # A graph without a manifest keeps limits and roles.
    assert (await shown(api, "my_card"))["parameters"]["properties"]["width"]["maximum"] == 512

    assert (await said(api, "workflow", "label", "my_card", old, "staging")) == f"my_card@staging  is {old}\n"
    for argv in (("my_card",), ("my_card", "staging"), (f"my_card@{old}", "my_card"), ("my_card", old, new)):
        differs = await said(api, "workflow", "diff", *argv)
        assert differs.startswith(f"my_card  {old} → {new}\n"), argv
        assert "node 1 (EmptyImage '$width')\n    title" in differs
        assert "! parameter 'height' disappears" in differs
    back = await said(api, "workflow", "rollback", "my_card", "--note", "too dark")
    assert back == f"my_card  {old} is in production, in place of {new}\n"
    told = await said(api, "workflow", "history", "my_card")
    what = [" ".join(line.split()[1:4]) for line in told.splitlines()[1:]]
    assert what == ["ann rolled back", "ann labeled staging", f"ann published {new}", f"ann published {old}"]
    assert told.splitlines()[1].endswith("too dark")
    assert old in (await said(api, "workflow", "show", "my_card@staging"))
    job = (await said(api, "submit", f"my_card@{new}", "-p", "width=32")).strip()
    record = await api.stores.jobs.get(job)
    assert record is not None
    assert record.workflow == "my_card"
    assert (record.workflow_version or "").startswith(f"sha256:{new}")
    await said(api, "workflow", "unlabel", "my_card", "staging")
    assert (await refused(api, "workflow", "show", "my_card@staging")).exit is Exit.NOT_FOUND


async def test_a_second_rollback_undoes_nothing(api: Api, tmp_path: Path) -> None:
    old = (await said(api, "workflow", "add", write(tmp_path / "card.json", graph()))).split()[1]
    new = (
        await said(api, "workflow", "add", write(tmp_path / "card.json", graph(1)), "--base", old)
    ).split()[1]
    await said(api, "workflow", "rollback", "card")
    assert (await shown(api, "card"))["version"].startswith(f"sha256:{old}")
    late = await refused(api, "workflow", "rollback", "card", key=OTHER)
    assert late.exit is Exit.REFUSED
    assert f"has rolled card back from version {new} to {old} already" in late.message
    assert (await said(api, "workflow", "rollback", "card", new)).startswith(f"card  {new} is in production")
    await said(api, "workflow", "label", "card", old, "x")
    assert (await said(api, "workflow", "label", "card", new, "x")) == f"card@x  is {new}, was {old}\n"


async def test_the_history_says_which_versions_are_not_kept(
    api: Api, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("comfy_fleet.adapters.redis.workflow_store.MAX_VERSIONS", 1)
    for color in (1, 2):
        await said(api, "workflow", "add", write(tmp_path / "card.json", graph(color)), "--force")
    rows = (await said(api, "workflow", "history", "card")).splitlines()[1:]
    assert rows[0].endswith("production") and rows[1].endswith("not kept")
    error = await refused(api, "workflow", "rollback", "card", rows[1].split()[3])
    assert "is no longer kept" in error.message and error.exit is Exit.NOT_FOUND


async def test_nobody_replaces_unseen_what_somebody_else_has_made(api: Api, tmp_path: Path) -> None:
    file = write(tmp_path / "a.json", graph())
    first = (await said(api, "workflow", "add", file, "--name", "card")).split()[1]
    mine, theirs = write(tmp_path / "b.json", graph(1)), write(tmp_path / "c.json", graph(2))
    await said(api, "workflow", "add", theirs, "--name", "card", "--base", first, key=OTHER)
    result = await fleet(api, "workflow", "add", mine, "--name", "card", "--base", first)
    assert isinstance(result.exception, Fail)
    assert result.exception.exit is Exit.REFUSED
    assert "it would replace the version of bob" in result.exception.message
    assert "What bob" in result.stderr
    assert "color 255 → 2" in result.stderr
    assert "color 2 → 1" in result.stderr
    production = (await shown(api, "card"))["version"]
    assert f"--base {production.removeprefix('sha256:')[:12]}" in str(result.exception.hint)
    await said(api, "workflow", "add", mine, "--name", "card", "--force")
    assert (await shown(api, "card"))["version"] != production


async def test_pictures_made_by_comfyui_are_workflows(api: Api, tmp_path: Path) -> None:
    info = PngInfo()
    info.add_text("prompt", json.dumps(graph()))
    info.add_text("workflow", json.dumps(EDITOR))
    Image.new("RGB", (600, 400), "red").save(tmp_path / "card.png", pnginfo=info)
    await said(api, "workflow", "add", str(tmp_path / "card.png"))
    exif = Image.Exif()
    exif[0x010F] = f"prompt:{json.dumps(graph(3))}"
    exif[0x010E] = f"workflow:{json.dumps(EDITOR)}"
    Image.new("RGB", (600, 400), "blue").save(tmp_path / "webp.webp", exif=exif)
    await said(api, "workflow", "add", str(tmp_path / "webp.webp"))
    headers = {"Authorization": f"Bearer {ARTIST}"}
    for name, color in (("card", 255), ("webp", 3)):
        path = f"/api/v1/workflows/{name}/versions/production"
        found = (await api.client.get(path, headers=headers)).json()
        assert found["graph"]["1"]["inputs"]["color"] == color
        assert found["ui"] == EDITOR
        picture = await api.client.get(httpx.URL(found["thumbnail_url"]).path, headers=headers)
        assert picture.headers["content-type"] == "image/webp"
        assert len(picture.content) < 64 * 1024


COMFY = """#!{python}
import json, os, sys, urllib.request
assert "PATH" in os.environ and not [name for name in os.environ if name.startswith("FLEET_")]
words = sys.argv[1:]
port = words[words.index("--port") + 1]
assert words[:3] == ["--json", "--skip-prompt", "run"] and "--print-prompt" in words
info = json.load(urllib.request.urlopen(f"http://127.0.0.1:{{port}}/object_info"))
assert "EmptyImage" in info
ui = json.load(open(words[words.index("--workflow") + 1]))
print("a line of another kind")
if ui.get("extra") == "broken":
    print(json.dumps({{"type": "envelope", "ok": False, "error": {{"message": "no such node"}}}}))
    sys.exit(1)
print(json.dumps({{"type": "envelope", "ok": True, "data": {{"prompt": {graph}}}, "error": None}}))
"""


async def test_the_editors_format_is_converted_if_comfy_cli_is_installed(
    api: Api, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the program takes and prints was seen with comfy-cli 1.23.0."""
    file = write(tmp_path / "ui.json", EDITOR)
    (programs := tmp_path / "bin").mkdir()
    monkeypatch.setenv("PATH", str(programs))
    monkeypatch.setenv("FLEET_API_KEY", ARTIST)
    error = await refused(api, "workflow", "add", file)
    assert "editor's own format" in error.message
    assert "Export (API)" in str(error.hint)
    assert "pip install comfy-cli" in str(error.hint)
    program = programs / "comfy"
    program.write_text(COMFY.format(python=sys.executable, graph=repr(graph(5, "$width"))))
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    await said(api, "workflow", "add", file)
    headers = {"Authorization": f"Bearer {ARTIST}"}
    found = (await api.client.get("/api/v1/workflows/ui/versions/production", headers=headers)).json()
    assert found["graph"] == graph(5, "$width")
    assert found["ui"] == EDITOR
    broken = await refused(api, "workflow", "add", write(tmp_path / "b.json", {**EDITOR, "extra": "broken"}))
    assert "no such node" in broken.message
    assert "Export (API)" in str(broken.hint)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("{", "is not JSON"),
        ("[1]", "holds a list"),
        ({"1": 7}, "a node must be an object"),
        ({"1": {"class_type": "A", "inputs": {"x": ["9", 0]}}}, "links to node '9'"),
    ],
)
async def test_files_that_are_no_workflows_are_named(
    api: Api, tmp_path: Path, content: object, says: str
) -> None:
    error = await refused(api, "workflow", "add", write(tmp_path / "x.json", content))
    assert says in error.message
    assert "x.json" in error.message
    assert "Export (API)" in str(error.hint)
    assert error.exit is Exit.USAGE


async def test_a_manifest_that_does_not_fit_is_told_by_its_file(api: Api, tmp_path: Path) -> None:
    file = write(tmp_path / "g.json", graph())
    for text, says in (
        ("[parameters.nope]\nmin = 1\n", "nope"),
        ("= 1", "is not TOML"),
        ("title = 2030-01-01\n", "title is a date"),
    ):
        error = await refused(api, "workflow", "add", file, "--manifest", write(tmp_path / "m.toml", text))
        assert says in error.message
        assert "m.toml" in error.message
    assert (await refused(api, "workflow", "add", file, "--name", "My Card")).hint == "--name my_card"
    await said(api, "workflow", "add", file, "--manifest", write(tmp_path / "m.toml", MANIFEST))
    lost = await refused(
        api, "workflow", "add", write(tmp_path / "g.json", graph(title="no more")), "--force"
    )
    assert "no node of the graph is titled '$width'" in lost.message
    assert lost.hint == "--manifest FILE replaces the one in production"


async def test_what_was_saved_and_never_run_is_said(api: Api) -> None:
    headers = {"Authorization": f"Bearer {ARTIST}"}
    saved = await api.client.post("/userdata/workflows%2Fmine.json", json=EDITOR, headers=headers)
    assert saved.status_code == 200
    error = await refused(api, "workflow", "publish", "mine")
    sentence = "mine.json was saved and never run: run it once in the editor to make a draft of mine"
    assert sentence in error.message and error.exit is Exit.NOT_FOUND


# -- export, pull, push, rm -------------------------------------------------


async def test_an_export_overwrites_no_other_files(api: Api, tmp_path: Path) -> None:
    await said(api, "workflow", "add", write(tmp_path / "card.json", graph()))
    out = tmp_path / "out"
    assert (await said(api, "workflow", "export", "card", "--out", str(out))) == f"{out}/card/workflow.json\n"
    assert json.loads((out / "card" / "workflow.json").read_text()) == graph()
    await said(api, "workflow", "export", "card", "--out", str(out))  # the same files
    write(out / "card" / "workflow.toml", 'title = "mine"\n')
    error = await refused(api, "workflow", "export", "card", "--out", str(out))
    assert "workflow.toml is there already" in error.message
    await said(api, "workflow", "export", "card@production", "--out", str(out), "--force")
    assert [path.name for path in (out / "card").iterdir()] == ["workflow.json"]


def states(result: Any) -> dict[str, str]:
    return {row["name"]: row["state"] for row in json.loads(result.stdout)["workflows"]}


async def test_a_store_goes_to_a_folder_and_back(api: Api, tmp_path: Path) -> None:
    manifest = write(tmp_path / "m.toml", MANIFEST)
    for name in ("a", "b"):
        await said(api, "workflow", "add", write(tmp_path / f"{name}.json", graph()), "--manifest", manifest)
    here = tmp_path / "here"

    async def pull(*more: str) -> Any:
        return await fleet(api, "workflow", "pull", str(here), "--json", *more)

    async def push(*more: str, key: str = ARTIST) -> Any:
        return await fleet(api, "workflow", "push", str(here), "--json", *more, key=key)

    assert states(await pull()) == {"a": "written", "b": "written"}
    assert states(await pull()) == states(await push()) == {"a": "unchanged", "b": "unchanged"}
    version = (await shown(api, "a"))["version"]

    write(here / "a" / "workflow.json", graph(1))
    assert states(await push("--dry-run")) == {"a": "would be published", "b": "unchanged"}
    assert (await shown(api, "a"))["version"] == version
    result = await pull()
    assert states(result) == {"a": "edited", "b": "unchanged"}  # nothing is lost
    assert result.exit_code == Exit.FAILED
    assert json.loads((here / "a" / "workflow.json").read_text()) == graph(1)
    assert states(await push("--note", "from a folder")) == {"a": "published", "b": "unchanged"}
    assert (await shown(api, "a"))["version"] != version
    assert (await shown(api, "a"))["parameters"]["properties"]["width"]["maximum"] == 512

    # Somebody else publishes both; one of them is edited here.
    for name in ("a", "b"):
        file = write(tmp_path / f"{name}2.json", graph(9))
        await said(api, "workflow", "add", file, "--name", name, "--force", key=OTHER)
    write(here / "a" / "workflow.json", graph(2))
    result = await push()
    assert result.exit_code == Exit.FAILED
    assert states(result) == {"a": "refused", "b": "refused"}
    assert "of bob" in result.stdout
    result = await pull()
    assert result.exit_code == Exit.FAILED
    assert states(result) == {"a": "kept", "b": "written"}
    assert json.loads((here / "a" / "workflow.json").read_text()) == graph(2)
    assert json.loads((here / "b" / "workflow.json").read_text()) == graph(9)
    assert states(await push("--force")) == {"a": "published", "b": "unchanged"}
    assert states(await pull("--force")) == {"a": "unchanged", "b": "unchanged"}

    write(here / "c" / "workflow.json", graph(4))
    assert states(await push()) == {"a": "unchanged", "b": "unchanged", "c": "new"}
    await said(api, "workflow", "rm", "c", "--yes")
    assert states(await pull()) == {"a": "unchanged", "b": "unchanged", "c": "gone"}
    assert (here / "c" / "workflow.json").is_file()

    write(here / "d" / "workflow.json", "{")
    broken = await push()
    assert isinstance(broken.exception, Fail)
    assert "d/workflow.json is not JSON" in broken.exception.message


async def test_a_pull_that_breaks_off_has_pulled_what_it_has_written(
    api: Api, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a", "b"):
        await said(api, "workflow", "add", write(tmp_path / f"{name}.json", graph()))
    whole = workflow_folders.exported

    def half(client: Client, reference: str) -> dict[str, bytes]:
        if reference.startswith("b"):
            raise Fail("the connection is lost")
        return whole(client, reference)

    with monkeypatch.context() as patch:
        patch.setattr(workflow_folders, "exported", half)
        await refused(api, "workflow", "pull", str(tmp_path / "here"))
    for name in ("a", "b"):
        file = write(tmp_path / f"{name}2.json", graph(9))
        await said(api, "workflow", "add", file, "--name", name, "--force")
    result = await fleet(api, "workflow", "pull", str(tmp_path / "here"), "--json")
    assert states(result) == {"a": "written", "b": "written"}


async def test_a_name_that_leads_out_of_the_folder_is_not_pulled(
    api: Api, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    listed = {"workflows": [{"name": "../out", "version": "sha256:1", "folder": None}], "broken": {}}
    monkeypatch.setattr(Client, "get", lambda *_: listed)
    error = await refused(api, "workflow", "pull", str(tmp_path / "here"))
    assert "'../out'" in error.message and not (tmp_path / "out").exists()


async def test_what_can_not_be_used_now_is_not_gone(api: Api, tmp_path: Path) -> None:
    await said(api, "workflow", "add", write(tmp_path / "a.json", graph()))
    here = str(tmp_path / "here")
    await said(api, "workflow", "pull", here)
    later = WorkflowContent(graph=graph(), manifest={"of_a_later_version": 1})
    await api.stores.workflows.publish(
        "a", NewVersion(content=later, author="ann"), expected=None, force=True
    )
    result = await fleet(api, "workflow", "pull", here, "--json")
    assert (states(result), result.exit_code) == ({"a": "left out"}, 1)
    await said(api, "workflow", "rollback", "a")
    assert states(await fleet(api, "workflow", "pull", here, "--json")) == {"a": "unchanged"}


async def test_what_an_operator_keeps_in_the_folder_stays_there(api: Api, tmp_path: Path) -> None:
    write(tmp_path / "kept" / "card" / "workflow.json", graph())
    result = await fleet(api, "workflow", "pull", str(tmp_path / "here"), "--json")
    assert states(result) == {}
    error = await refused(api, "workflow", "add", write(tmp_path / "card.json", graph(1)))
    assert f"is kept in {tmp_path / 'kept' / 'card'}" in error.message
    assert (await refused(api, "workflow", "rm", "card", "--yes")).exit is Exit.REFUSED
    history = await fleet(api, "workflow", "history", "card")
    assert (history.exit_code, history.stdout) == (0, "")
    assert "has no history" in history.stderr


async def test_a_pull_names_what_is_in_two_places_and_says_how_to_keep_both(api: Api, tmp_path: Path) -> None:
    await said(api, "workflow", "add", write(tmp_path / "card.json", graph()))
    kept = tmp_path / "kept" / "card"
    write(kept / "workflow.json", graph(1))
    write(tmp_path / "kept" / "bad" / "workflow.json", "{")  # the operator's own: no pull is for it
    here = tmp_path / "here"
    result = await fleet(api, "workflow", "pull", str(here), "--json")
    assert (states(result), result.exit_code) == ({"card": "left out"}, 1)
    (row,) = json.loads(result.stdout)["workflows"]
    assert f"in two places, {kept}" in row["message"]
    assert row["message"].index("export card") < row["message"].index("rm card")
    kept.rename(tmp_path / "away")
    await said(api, "workflow", "export", "card", "--out", str(here))
    assert json.loads((here / "card" / "workflow.json").read_text()) == graph()


async def test_a_push_says_beforehand_that_a_workflow_was_removed(api: Api, tmp_path: Path) -> None:
    await said(api, "workflow", "add", write(tmp_path / "card.json", graph()))
    here = str(tmp_path / "here")
    await said(api, "workflow", "pull", here)
    await said(api, "workflow", "rm", "card", "-y", key=OTHER)
    for more in (("--dry-run",), ()):
        result = await fleet(api, "workflow", "push", here, "--json", *more)
        assert (states(result), result.exit_code) == ({"card": "refused"}, 1), more
        assert "has removed it" in json.loads(result.stdout)["workflows"][0]["message"]
    assert states(await fleet(api, "workflow", "push", here, "--json", "--force")) == {"card": "new"}


async def test_what_is_no_folder_of_workflows_is_told_with_the_way_out(api: Api, tmp_path: Path) -> None:
    file = write(tmp_path / "card.json", graph())
    for argv, message, hint in (
        (
            ("push", str(tmp_path / "gone")),
            f"there is no folder {tmp_path / 'gone'}",
            "fleet workflow pull DIR",
        ),
        (("push", file), f"{file} is no folder", f"fleet workflow add {file}"),
        (("pull", file), f"{file} is no folder", "name one"),
        (("pull", "/dev/null"), "/dev/null is no folder", "name one"),
    ):
        error = await refused(api, "workflow", *argv)
        assert (error.message, error.exit) == (message, Exit.USAGE)
        assert hint in str(error.hint)
    await said(api, "workflow", "add", file)
    error = await refused(api, "workflow", "diff", "card")
    assert "a=VERSION" not in error.message and "fleet workflow diff card VERSION" in str(error.hint)


async def test_a_push_names_what_it_passes_over(api: Api, tmp_path: Path) -> None:
    here = tmp_path / "here"
    write(here / "card" / "workflow.json", graph())
    (here / "empty").mkdir()
    (here / ".git").mkdir()
    (here / "loop").symlink_to(here / "loop")
    result = await fleet(api, "workflow", "push", str(here), "--json")
    assert states(result) == {"card": "new", "empty": "passed over", "loop": "passed over"}
    assert result.exit_code == 0
    (here / "pipe").mkdir()
    os.mkfifo(here / "pipe" / "workflow.json")
    error = await refused(api, "workflow", "push", str(here))
    assert "nothing was published" in error.message and "pipe: its workflow.json is no file" in error.message


async def test_a_folder_that_can_not_be_used_is_told_once(
    api: Api, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    await said(api, "workflow", "add", write(tmp_path / "card.json", graph()))
    here = tmp_path / "here"
    write(here / "card" / "workflow.json", "{")
    assert (
        "card: card/workflow.json is not JSON" in (await refused(api, "workflow", "push", str(here))).message
    )
    assert states(await fleet(api, "workflow", "pull", str(here), "--json")) == {"card": "kept"}
    assert not [one for one in caplog.messages if "stored workflow" in one]


async def test_a_workflow_is_removed_only_on_purpose(api: Api, tmp_path: Path) -> None:
    await said(api, "workflow", "add", write(tmp_path / "card.json", graph()))
    error = await refused(api, "workflow", "rm", "card")
    assert (error.exit, "--yes" in str(error.hint)) == (Exit.REFUSED, True)
    assert (await said(api, "workflow", "rm", "card", "-y")) == "removed card\n"
    assert (await refused(api, "workflow", "rm", "card", "-y")).exit is Exit.NOT_FOUND
