"""Checking and publishing drafts, over HTTP and on the console's pages; the test plays the dispatcher."""

import copy
import re
from collections.abc import AsyncIterator
from html import unescape
from io import BytesIO
from itertools import pairwise
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import pytest
from PIL import Image

from comfy_fleet.domain.graphs.stored import MAX_THUMBNAIL_BYTES, Draft, NewVersion
from comfy_fleet.domain.graphs.workflow_names import WorkflowReference, slug
from comfy_fleet.domain.jobs.job import JobStatus
from tests.integration.api_kit import Api, code, running
from tests.key_files import write_keys

KEYS = """root root-key-0123456789 admin
ann ann-key-0123456789 artist
ben ben-key-0123456789 artist
prog prog-key-0123456789
"""
ANN, BEN, PROG = ({"X-API-Key": f"{name}-key-0123456789"} for name in ("ann", "ben", "prog"))
GRAPH: dict[str, Any] = {
    "1": {
        "class_type": "EmptyImage",
        "inputs": {"width": 64, "height": 64, "batch_size": 1, "color": 255},
        "_meta": {"title": "$width $height"},
    },
    "2": {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": "w"}},
}


@pytest.fixture
async def api(redis_port: int, redis: object, tmp_path: Path) -> AsyncIterator[Api]:
    keys = tmp_path / "keys"
    write_keys(keys, KEYS)
    async with running(redis_port, tmp_path, keys_file=keys) as api:
        await api.add_node()
        yield api


def graph(color: int = 255, title: str = "$width $height") -> dict[str, Any]:
    made = copy.deepcopy(GRAPH)
    made["1"]["inputs"]["color"] = color
    made["1"]["_meta"]["title"] = title
    return made


def ui(color: int = 255) -> dict[str, Any]:
    """The same graph in the editor's format, as far as this is of interest here."""
    return {
        "nodes": [
            {"id": 1, "type": "EmptyImage", "widgets_values": [64, 64, 1, color]},
            {"id": 2, "type": "SaveImage", "widgets_values": ["w"]},
        ],
        "links": [[1, 1, 0, 2, 0, "IMAGE"]],
    }


async def hand_over(
    api: Api, who: dict[str, str], color: int = 255, name: str = "My Flow", **graph_: Any
) -> httpx.Response:
    """Do what the menu of the editor does."""
    body = {"name": name, "graph": graph(color, **graph_), "ui": ui(color)}
    answer = await api.client.post("/api/v1/drafts", json=body, headers=who)
    assert answer.status_code == 201, answer.text
    return answer


async def check(api: Api, who: dict[str, str], name: str = "my_flow", **body: Any) -> dict[str, Any]:
    answer = await api.client.post(f"/api/v1/workflows/{name}/check", json=body, headers=who)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def picture(color: str = "red") -> bytes:
    buffer = BytesIO()
    Image.new("RGB", (700, 500), color).save(buffer, "PNG")
    return buffer.getvalue()


async def made_ready(
    api: Api, who: dict[str, str], color: str = "red", name: str = "my_flow"
) -> dict[str, Any]:
    """Check a draft and let its test run succeed."""
    begun = await check(api, who, name)
    assert begun["test_run"] is not None, begun
    claim = await api.claim(begun["test_run"]["job_id"])
    await api.output(claim, picture(color))
    await api.finish(claim)
    return await check(api, who, name)


async def publish(
    api: Api, who: dict[str, str], found: dict[str, Any], name: str = "my_flow", **more: Any
) -> httpx.Response:
    body = {"draft": found["draft"], **more}
    return await api.client.post(f"/api/v1/workflows/{name}/publish", json=body, headers=who)


async def published(api: Api, who: dict[str, str], color: int = 255, **graph_: Any) -> str:
    await hand_over(api, who, color, **graph_)
    done = await publish(api, who, await made_ready(api, who))
    assert done.status_code == 200, done.text
    return str(done.json()["version"])


async def production(api: Api, name: str = "my_flow") -> str | None:
    return await api.stores.workflows.find(WorkflowReference.parse(name))


async def test_a_draft_is_checked_tested_and_published(api: Api) -> None:
    handed = await hand_over(api, ANN)
    assert handed.json()["workflow"] == "my_flow"
    path = "/api/v1/workflows/my_flow/check"
    other = await api.client.post(path, json={"params": {"width": 8}}, headers=ANN)
    assert code(other) == (400, "invalid_request")
    assert "width has a default" in other.json()["error"]["message"]
    assert (await api.client.get("/api/v2/jobs", headers=ANN)).json()["jobs"] == []
    assert handed.json()["publish_url"].endswith("/publish/my_flow")
    begun = await check(api, ANN)
    states = {step["name"]: step["state"] for step in begun["steps"]}
    assert states == {"parameters": "passed", "nodes": "passed", "test_run": "waiting"}
    assert begun["ready"] is False and begun["production"] is None
    early = await publish(api, ANN, begun)
    assert code(early) == (409, "not_checked")
    assert early.json()["error"]["details"]["checks"] == ["test_run"]
    assert (await check(api, ANN))["test_run"]["job_id"] == begun["test_run"]["job_id"]
    job = await api.stores.jobs.get(begun["test_run"]["job_id"])
    assert job is not None
    assert (job.owner, job.workflow, job.workflow_version) == ("ann", "my_flow", begun["version"])
    found = await made_ready(api, ANN)
    assert found["ready"] is True and found["draft"] == begun["draft"]
    assert [one["content_type"] for one in found["test_run"]["outputs"]] == ["image/png"]
    done = await publish(api, ANN, found, note="the first")
    assert done.status_code == 200, done.text
    assert done.json()["version"] == found["version"] == await production(api)
    kept = await api.stores.workflows.version(WorkflowReference.parse("my_flow"))
    assert kept is not None
    assert (kept.content.graph, kept.ui) == (graph(), ui())
    assert (kept.facts.author, kept.facts.note) == ("ann", "the first")
    assert kept.thumbnail is not None and len(kept.thumbnail) <= MAX_THUMBNAIL_BYTES
    assert Image.open(BytesIO(kept.thumbnail)).size == (384, 274)
    made = await api.client.post(
        "/api/v1/workflows/my_flow/jobs", json={"params": {"width": 8}}, headers=PROG
    )
    assert made.status_code == 201 and made.json()["workflow_version"] == found["version"]
    again = await check(api, ANN)
    assert again["unchanged"] is True and again["overtaken"] is False


async def test_what_is_published_is_what_was_checked(api: Api) -> None:
    await hand_over(api, ANN, 1)
    found = await made_ready(api, ANN)
    await hand_over(api, ANN, 2)
    late = await publish(api, ANN, found)
    assert code(late) == (409, "draft_changed")
    assert await production(api) is None
    other = await check(api, ANN)
    assert other["draft"] != found["draft"] and other["ready"] is False
    assert other["test_run"]["job_id"] != found["test_run"]["job_id"]


async def test_another_look_of_the_same_graph_is_another_draft_but_needs_no_other_test(api: Api) -> None:
    await hand_over(api, ANN)
    found = await made_ready(api, ANN)
    draft = await api.stores.workflows.draft("ann", "my_flow")
    assert draft is not None
    moved = Draft(graph=draft.graph, ui={**ui(), "groups": [1]}, editor_name="My Flow")
    await api.stores.workflows.save_draft("ann", "my_flow", moved)
    assert code(await publish(api, ANN, found)) == (409, "draft_changed")
    other = await check(api, ANN)
    assert (other["version"], other["ready"]) == (found["version"], True)


async def test_a_draft_that_is_replaced_while_its_test_begins_is_not_tested_as_another(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    await hand_over(api, ANN, 1)
    stored = api.deps.submitter.stored

    async def late(owner: str, *args: Any, **more: Any) -> Any:
        await hand_over(api, ANN, 2)
        return await stored(owner, *args, **more)

    monkeypatch.setattr(api.deps.submitter, "stored", late)
    answer = await api.client.post("/api/v1/workflows/my_flow/check", headers=ANN)
    assert code(answer) == (409, "draft_changed")
    monkeypatch.undo()
    jobs = (await api.client.get("/api/v1/jobs", headers=ANN)).json()["jobs"]
    assert [job["status"] for job in jobs] == [JobStatus.CANCELED]


async def test_two_artists_publish_at_once_and_both_are_told(api: Api) -> None:
    base = await published(api, ANN, 1)
    for who, color in ((ANN, 2), (BEN, 3)):
        await hand_over(api, who, color)
    first, second = await made_ready(api, ANN), await made_ready(api, BEN)
    assert first["base_version"] == second["base_version"] == base
    mine = await publish(api, ANN, first, over=base)
    assert mine.status_code == 200
    theirs = await publish(api, BEN, second, over=base)
    assert code(theirs) == (409, "workflow_changed")
    details = theirs.json()["error"]["details"]
    assert (details["changed_by"], details["production"]) == ("ann", first["version"])
    assert await production(api) == first["version"]
    # Without saying which version was seen, it is refused, too.
    assert code(await publish(api, BEN, second)) == (409, "workflow_changed")
    shown = await check(api, BEN)
    assert shown["overtaken"] is True and shown["ready"] is True
    assert [one["field"] for one in shown["theirs"]] == ["color"]
    assert [one["field"] for one in shown["changes"]] == ["color"]
    asked = await publish(api, BEN, second, over=first["version"])
    assert asked.status_code == 200 and asked.json()["before"] == first["version"]
    history = await api.stores.workflows.history("my_flow")
    assert [(one.author, one.version) for one in history] == [
        ("ben", second["version"]),
        ("ann", first["version"]),
        ("ann", base),
    ]
    assert (await api.stores.workflows.content("my_flow", first["version"])) is not None
    told = await check(api, ANN)
    assert told["overtaken"] is True and told["production"]["changed_by"] == "ben"


@pytest.mark.parametrize("word", [True, False])
async def test_a_workflow_that_somebody_removed_does_not_come_back_unasked(api: Api, word: bool) -> None:
    base = await published(api, ANN, 1)
    await hand_over(api, ANN, 2)
    gone = await api.client.delete("/api/v1/workflows/my_flow", headers=BEN)
    assert gone.status_code == 204
    if not word:
        await api.stores.redis.delete(api.stores.redis.keyspace.workflows_removed)
    found = await made_ready(api, ANN)
    assert (found["overtaken"], found["production"], found["base_version"]) == (True, None, base)
    assert found["removed"]["removed_by"] == ("ben" if word else None)
    refused = await publish(api, ANN, found)
    assert code(refused) == (409, "workflow_changed")
    said = "ben has removed" if word else "is there no more"
    assert said in refused.json()["error"]["message"]
    page = (await api.client.get("/publish/my_flow", headers=ANN)).text
    assert ("</bdi> removed it at" in page) is word and "Publish it as a new workflow all the same" in page
    form = {"do": "publish", "draft": found["draft"], "over": "", "overtaken": "yes"}
    unasked = await api.client.post("/publish/my_flow", data=form, headers=ANN)
    assert unasked.status_code == 400
    assert await production(api) is None
    done = await publish(api, ANN, found, over="")
    assert done.status_code == 200 and done.json()["before"] == ""


async def renamed(api: Api, *names: str) -> None:
    """Give a file of Ann's one name after the other."""
    for name, to in pairwise(names):
        path = f"/userdata/{quote(f'workflows/{name}.json', safe='')}"
        done = await api.client.post(f"{path}/move/{quote(f'workflows/{to}.json', safe='')}", headers=ANN)
        assert done.status_code == 200, done.text


async def saved_as(api: Api, name: str) -> None:
    path = f"/userdata/{quote(f'workflows/{name}.json', safe='')}"
    assert (await api.client.post(path, json=ui(9), headers=ANN)).status_code == 200
    await hand_over(api, ANN, 9, name)


@pytest.mark.parametrize("removed", [False, True])
async def test_a_name_that_comes_back_is_still_told_what_others_did_with_it(api: Api, removed: bool) -> None:
    await published(api, BEN, 1)
    await saved_as(api, "My Flow")
    if removed:
        assert (await api.client.delete("/api/v1/workflows/my_flow", headers=BEN)).status_code == 204
    else:
        await published(api, BEN, 2)
    await renamed(api, "My Flow", "tmp", "My Flow")
    found = await made_ready(api, ANN)
    assert found["overtaken"] is True
    refused = await publish(api, ANN, found)
    assert code(refused) == (409, "workflow_changed") and "ben" in refused.json()["error"]["message"]


async def test_a_draft_that_gets_the_name_of_anothers_workflow_is_not_begun_from_it(api: Api) -> None:
    await published(api, BEN, 1)
    await saved_as(api, "mine")
    await renamed(api, "mine", "My Flow")
    found = await made_ready(api, ANN)
    assert (found["base_version"] or "", found["overtaken"]) == ("", True)
    refused = await publish(api, ANN, found)
    assert code(refused) == (409, "workflow_changed") and "ben" in refused.json()["error"]["message"]


async def test_what_one_removed_oneself_needs_no_question(api: Api) -> None:
    await published(api, ANN, 1)
    await hand_over(api, ANN, 2)
    await api.client.delete("/api/v1/workflows/my_flow", headers=ANN)
    found = await made_ready(api, ANN)
    assert found["overtaken"] is False and found["removed"] is None
    assert (await publish(api, ANN, found)).status_code == 200


async def test_ones_own_next_version_needs_no_question(api: Api) -> None:
    await published(api, ANN, 1)
    await hand_over(api, ANN, 2)
    done = await publish(api, ANN, await made_ready(api, ANN))
    assert done.status_code == 200
    await hand_over(api, ANN, 3)
    found = await made_ready(api, ANN)
    assert found["overtaken"] is False
    assert (await publish(api, ANN, found)).status_code == 200


async def test_breaking_changes_are_named_and_must_be_allowed(api: Api) -> None:
    await published(api, ANN, 1)
    await hand_over(api, ANN, 2, title="$width")
    found = await made_ready(api, ANN)
    assert [one["parameter"] for one in found["breaking"]] == ["height"]
    refused = await publish(api, ANN, found)
    assert code(refused) == (409, "breaking_changes")
    assert "'height' disappears" in refused.json()["error"]["message"]
    assert (await publish(api, ANN, found, breaking=True)).status_code == 200


async def test_what_was_saved_since_is_left_out_only_on_purpose(api: Api) -> None:
    await hand_over(api, ANN)
    found = await made_ready(api, ANN)
    saved = await api.client.post("/userdata/workflows%2FMy%20Flow.json", json=ui(7), headers=ANN)
    assert saved.status_code == 200
    refused = await publish(api, ANN, found)
    assert code(refused) == (409, "saved_since")
    error = refused.json()["error"]
    assert (error["details"]["field"], error["details"]["file"]) == ("leave_out_unrun", "My Flow.json")
    sent = {"do": "publish", "draft": found["draft"], "over": ""}
    page = await api.client.post("/publish/my_flow", data=sent, headers=ANN)
    assert page.status_code == 409 and 'name="leave_out_unrun" value="yes" required' in page.text
    assert await production(api) is None
    done = await publish(api, ANN, found, leave_out_unrun=True)
    assert done.status_code == 200, done.text
    sent |= {"leave_out_unrun": "yes", "over": done.json()["version"]}
    again = await api.client.post("/publish/my_flow", data=sent, headers=ANN)
    assert again.status_code == 303, again.text


@pytest.mark.parametrize(
    ("files", "shown"),
    [
        (("Red Cat.json", "red cat.json"), ("Red Cat.json", "red cat.json")),
        (
            ("Caf\u00e9.json", "Cafe\u0301.json"),
            ("Caf\u00e9.json (with U+00E9)", "Cafe\u0301.json (with U+0301)"),
        ),
        (("X.json", "X.app.json"), ("X.json", "X.app.json")),
    ],
)
async def test_of_several_files_of_one_id_one_is_published_only_on_purpose(
    api: Api, files: tuple[str, str], shown: tuple[str, str]
) -> None:
    name = slug(files[0])
    for file, color in zip(files, (1, 2), strict=True):
        path = f"/userdata/workflows%2F{quote(file)}"
        assert (await api.client.post(path, json=ui(color), headers=ANN)).status_code == 200
        run = {"prompt": graph(color), "extra_data": {"extra_pnginfo": {"workflow": ui(color)}}}
        assert (await api.client.post("/prompt", json=run, headers=ANN)).status_code == 200
        await api.deps.drafts.settled()
    sentence = f"These files have the same id, {name}: {shown[1]}, {shown[0]}. Give all but one of them"
    found = await made_ready(api, ANN, name=name)
    assert found["files_message"].startswith(sentence) and found["unrun"] == ""
    unrun = (await api.client.get("/api/v1/drafts", headers=ANN)).json()["unrun"]
    assert all(one["message"].startswith(sentence) for one in unrun)
    assert bool(unrun) is not files[1].endswith(".app.json")  # whose run makes it the draft
    page = (await api.client.get(f"/publish/{name}", headers=ANN)).text
    assert sentence in unescape(page) and "was not run yet" not in page
    assert 'name="leave_out_files" value="yes" required' in page
    refused = await publish(api, ANN, found, name=name)
    assert code(refused) == (409, "same_id_files")
    assert refused.json()["error"]["details"]["files"] == [files[1], files[0]]
    assert await production(api, name) is None
    sent = {"do": "publish", "draft": found["draft"], "over": ""}
    assert (await api.client.post(f"/publish/{name}", data=sent, headers=ANN)).status_code == 409
    done = await publish(api, ANN, found, name=name, leave_out_files=True)
    assert done.status_code == 200, done.text


async def test_what_nodes_lack_is_said_and_nothing_is_run(api: Api) -> None:
    odd = graph()
    odd["2"]["class_type"] = "SaveSomewhere"
    body = {"name": "my_flow", "graph": odd, "ui": ui()}
    assert (await api.client.post("/api/v1/drafts", json=body, headers=ANN)).status_code == 201
    await api.deps.inventories.refresh("g1")
    found = await check(api, ANN)
    nodes = next(step for step in found["steps"] if step["name"] == "nodes")
    assert nodes["state"] == "failed" and nodes["message"] == "0 of 1 nodes can run it"
    assert "SaveSomewhere" in nodes["problems"][0]
    assert found["test_run"] is None
    assert code(await publish(api, ANN, found)) == (409, "not_checked")


async def test_parameters_that_find_no_place_are_said(api: Api) -> None:
    await hand_over(api, ANN, title="$width $nowhere.at_all")
    found = await check(api, ANN)
    assert [step["state"] for step in found["steps"]] == ["failed", "waiting", "waiting"]
    assert "at_all" in " ".join(found["steps"][0]["problems"])
    refused = await publish(api, ANN, {"draft": ""})
    assert code(refused) == (409, "not_checked")


async def test_a_test_run_that_fails_can_be_made_again(api: Api) -> None:
    await hand_over(api, ANN)
    begun = await check(api, ANN)
    claim = await api.claim(begun["test_run"]["job_id"])
    await api.finish(claim, JobStatus.FAILED)
    failed = await check(api, ANN)
    assert failed["steps"][2]["state"] == "failed" and failed["ready"] is False
    again = await check(api, ANN, again=True)
    assert again["test_run"]["job_id"] != begun["test_run"]["job_id"]
    assert again["steps"][2]["state"] == "waiting"


async def test_a_run_without_an_output_is_no_test(api: Api) -> None:
    await hand_over(api, ANN)
    begun = await check(api, ANN)
    await api.finish(await api.claim(begun["test_run"]["job_id"]))
    assert (await check(api, ANN))["steps"][2]["state"] == "failed"


async def test_a_manifest_stays_with_a_new_graph_and_its_change_is_another_version(api: Api) -> None:
    await published(api, ANN, 1)
    kept = await api.stores.workflows.version(WorkflowReference.parse("my_flow"))
    assert kept is not None
    limited = {"parameters": {"width": {"max": 128}}}
    content = kept.content.__class__(graph=kept.content.graph, manifest=limited)
    done = await api.stores.workflows.publish(
        "my_flow", NewVersion(content=content, author="ann"), expected=kept.facts.version
    )
    await hand_over(api, ANN, 2)
    found = await made_ready(api, ANN)
    assert (await publish(api, ANN, found)).status_code == 200
    now = await api.stores.workflows.version(WorkflowReference.parse("my_flow"))
    assert now is not None and now.content.manifest == limited
    assert now.facts.version not in (kept.facts.version, done.version)


async def test_what_was_saved_and_not_run_is_said(api: Api) -> None:
    saved = await api.client.post("/userdata/workflows%2Fnew.json", json=ui(), headers=ANN)
    assert saved.status_code == 200
    answer = await api.client.post("/api/v1/workflows/new/check", headers=ANN)
    assert code(answer) == (404, "not_found")
    assert "run it once" in answer.json()["error"]["message"]
    page = await api.client.get("/publish/new", headers=ANN)
    assert page.status_code == 404 and "run it once" in page.text
    sentence = "new.json was saved and never run: run it once in the editor to make a draft of new"
    for path in ("/publish/new", "/workflows/new", "/workflows", "/api/v1/workflows/new/draft"):
        assert sentence in (await api.client.get(path, headers=ANN)).text
        assert sentence not in (await api.client.get(path, headers=BEN)).text
    (row,) = (await api.client.get("/api/v1/drafts", headers=ANN)).json()["unrun"]
    assert (row["workflow"], row["file"], row["message"]) == ("new", "new.json", sentence)
    ran = await api.client.post("/api/v1/workflows/new@draft/jobs", json={}, headers=ANN)
    assert code(ran) == (404, "not_found") and ran.json()["error"]["message"] == sentence
    await hand_over(api, ANN, name="new")  # the same graph
    await hand_over(api, ANN, name="old")
    listed = (await api.client.get("/api/v1/drafts", headers=ANN)).json()
    assert (listed["unrun"], len(listed["drafts"])) == ([], 2)
    changed = await api.client.post("/userdata/workflows%2Fold.json", json=ui(7), headers=ANN)
    assert changed.status_code == 200
    (row,) = (await api.client.get("/api/v1/drafts", headers=ANN)).json()["unrun"]
    assert row["file"] == "old.json"
    none = await api.client.post("/api/v1/workflows/other/check", headers=ANN)
    assert "you have no draft" in none.json()["error"]["message"]


async def test_who_may_publish(api: Api) -> None:
    await hand_over(api, PROG)  # a draft is anybody's own
    for path, body in (("check", {}), ("publish", {"draft": "x"})):
        refused = await api.client.post(f"/api/v1/workflows/my_flow/{path}", json=body, headers=PROG)
        assert code(refused) == (403, "forbidden")
    assert (await api.client.get("/publish/my_flow", headers=PROG)).status_code == 403
    other = await api.client.post("/api/v1/workflows/my_flow/check", headers=ANN)
    assert code(other) == (404, "not_found")


@pytest.mark.parametrize("path", ["/api/v1/workflows/x/publish", "/publish/x", "/workflows/x"])
async def test_the_editor_s_origin_publishes_nothing(
    redis_port: int, redis: object, tmp_path: Path, path: str
) -> None:
    async with running(redis_port, tmp_path) as api:  # without keys everybody here may do everything
        for method in ("POST", *(() if path.startswith("/api") else ("GET",))):
            answer = await api.client.request(method, path, headers={"X-Fleet-Origin": "editor"})
            assert code(answer) == (403, "console_only"), (method, path)


@pytest.mark.parametrize(
    "body",
    [
        {"name": "", "graph": {}, "ui": {}},
        {"name": "a", "graph": {}, "ui": {"nodes": []}},
        {"name": "a", "graph": GRAPH, "ui": {}},
        {"name": "a", "graph": ui(), "ui": ui()},
        {"name": "/", "graph": GRAPH, "ui": {"nodes": [1]}},
        {"name": "x" * 201, "graph": GRAPH, "ui": ui()},
        {"name": "a", "graph": GRAPH, "ui": ui(), "more": 1},
        {"name": 7, "graph": GRAPH, "ui": ui()},
    ],
)
async def test_what_is_no_graph_is_no_draft(api: Api, body: dict[str, Any]) -> None:
    answer = await api.client.post("/api/v1/drafts", json=body, headers=ANN)
    assert answer.status_code in (400, 422), answer.text
    assert await api.stores.workflows.drafts("ann") == {}


async def test_two_formats_without_a_common_node_are_of_two_graphs(api: Api) -> None:
    other = ui()
    other["nodes"] = [{**node, "id": node["id"] + 10} for node in other["nodes"]]
    for wrong in (other, {**other, "nodes": []}, {**other, "nodes": [{"id": 1, "type": "Other"}]}):
        body = {"name": "x", "graph": graph(), "ui": wrong}
        answer = await api.client.post("/api/v1/drafts", json=body, headers=ANN)
        assert code(answer) == (400, "invalid_request")
        assert answer.json()["error"]["details"]["field"] == "ui"
    inner = {f"11:{node_id}": node for node_id, node in graph().items()}
    for link in (value for node in inner.values() for value in node["inputs"].values()):
        if isinstance(link, list):
            link[0] = f"11:{link[0]}"
    answer = await api.client.post(
        "/api/v1/drafts", json={"name": "x", "graph": inner, "ui": other}, headers=ANN
    )
    assert answer.status_code == 201, answer.text


async def test_two_names_of_one_id_are_reported(api: Api) -> None:
    await hand_over(api, ANN, name="My Flow")
    await api.stores.userdata.save("ann", "workflows/My Flow.json", b"{}", overwrite=True)
    body = {"name": "my_flow!", "graph": GRAPH, "ui": ui()}
    answer = await api.client.post("/api/v1/drafts", json=body, headers=ANN)
    assert code(answer) == (409, "workflow_name_taken")
    assert "'My Flow'" in answer.json()["error"]["message"]


async def test_a_stored_workflow_opens_in_the_editor_and_a_draft_knows_where_it_began(api: Api) -> None:
    base = await published(api, ANN, 1)
    opened = await api.client.get("/api/v1/workflows/my_flow/editor-graph", headers=BEN)
    assert opened.status_code == 200
    found = opened.json()
    assert (found["editor_name"], found["version"]) == ("My Flow", base)
    assert found["ui"] == {**ui(1), "extra": {"comfy_fleet": {"workflow": "my_flow", "version": base}}}
    await published(api, ANN, 2)
    body = {"name": "My Flow", "graph": graph(3), "ui": found["ui"]}
    await api.client.post("/api/v1/drafts", json=body, headers=BEN)
    shown = await check(api, BEN)
    assert (shown["base_version"], shown["overtaken"]) == (base, True)
    mine = await api.client.get("/api/v1/workflows/my_flow@draft/editor-graph", headers=BEN)
    assert mine.json()["ui"] == found["ui"]
    listed = (await api.client.get("/api/v1/drafts", headers=BEN)).json()
    assert [one["workflow"] for one in listed["drafts"]] == ["my_flow"]


async def test_a_workflow_of_the_folder_is_not_published(
    redis_port: int, redis: object, tmp_path: Path
) -> None:
    folder = tmp_path / "flows"
    (folder / "kept").mkdir(parents=True)
    (folder / "kept" / "workflow.json").write_text('{"1": {"class_type": "A", "inputs": {}}}')
    async with running(redis_port, tmp_path, workflows=folder) as api:
        body = {"name": "kept", "graph": GRAPH, "ui": ui()}
        assert (await api.client.post("/api/v1/drafts", json=body)).status_code == 201
        answer = await api.client.post("/api/v1/workflows/kept/check")
        assert code(answer) == (409, "workflow_name_taken")
        assert str(folder) in answer.json()["error"]["message"]
        page = await api.client.get("/publish/kept")
        assert page.status_code == 409 and str(folder) in unescape(page.text)
        assert "kept in" in (await api.client.get("/workflows")).text


# -- pages -------------------------------------------------------------------------------------------------


def form(page: str) -> dict[str, str]:
    """Return the hidden fields of a page's last form."""
    last = page[page.rindex("<form") :]
    return {
        name: unescape(value)
        for name, value in re.findall(r'type="hidden" name="(\w+)" value="([^"]*)"', last)
    }


async def post(api: Api, path: str, who: dict[str, str], **fields: str) -> httpx.Response:
    return await api.client.post(path, data=fields, headers=who)


async def test_a_person_checks_publishes_and_goes_back_on_pages(api: Api) -> None:
    base = await published(api, ANN, 1)
    await hand_over(api, ANN, 2)
    page = await api.client.get("/publish/my_flow", headers=ANN)
    assert page.status_code == 200 and "Check and test" in page.text and "Refresh" not in page.headers
    for path, root in (("publish/my_flow", "../"), ("workflows/my_flow", "../"), ("workflows", "./")):
        for headers, who in ((ANN, "ann"), (BEN, "ben")):
            shown = await api.client.get(f"/{path}", headers=headers)
            assert f'Signed in as <b><bdi>{who}</bdi></b>. <a href="{root}login">' in shown.text, path
    begun = await post(api, "/publish/my_flow", ANN, do="check")
    assert (begun.status_code, begun.headers["location"]) == (303, "my_flow")
    waiting = await api.client.get("/publish/my_flow", headers=ANN)
    assert waiting.headers["Refresh"] == "2" and "The test runs" in waiting.text
    await made_ready(api, ANN, "blue")
    ready = await api.client.get("/publish/my_flow", headers=ANN)
    assert "Refresh" not in ready.headers
    assert ready.text.count("<img ") == 2 and "data:image/webp;base64," in ready.text
    assert "color" in ready.text
    fields = form(ready.text)
    assert fields["over"] == base
    done = await post(api, "/publish/my_flow", ANN, **fields, note="bluer")
    assert done.status_code == 303
    now = await production(api)
    assert done.headers["location"] == f"../workflows/my_flow?published={now}"
    shown = await api.client.get("/workflows/my_flow", params={"published": str(now)}, headers=ANN)
    assert "is in use from the next job on" in shown.text and "bluer" in shown.text
    assert "fleet_workflow=my_flow" in shown.text
    back = form(shown.text)
    assert back == {"version": base, "expected": now}
    gone = await post(api, "/workflows/my_flow", ANN, **back)
    assert gone.status_code == 303 and await production(api) == base
    stale = await post(api, "/workflows/my_flow", ANN, **back)
    assert stale.status_code == 409 or await production(api) == base
    after = await api.client.get("/workflows/my_flow", headers=ANN)
    assert "rolled back" in after.text
    digits = [str(now)[7:19], base[7:19]]
    assert f"Differences of {digits[0]} from {digits[1]}" in after.text  # by age, as before
    assert f"Differences of {digits[1]}" not in after.text
    compared = await api.client.get(
        "/workflows/my_flow", params=dict(zip("ab", digits, strict=True)), headers=ANN
    )
    assert "color" in compared.text[compared.text.index('id="diff"') :]
    assert "My Flow" not in (await api.client.get("/workflows", headers=ANN)).text
    assert "my_flow" in (await api.client.get("/workflows", headers=BEN)).text


async def test_who_comes_second_sees_who_was_first_and_is_asked_on_the_page(api: Api) -> None:
    await published(api, ANN, 1)
    for who, color in ((ANN, 2), (BEN, 3)):
        await hand_over(api, who, color)
        await made_ready(api, who)
    pages = [(await api.client.get("/publish/my_flow", headers=who)).text for who in (ANN, BEN)]
    assert all("Replace the version" not in page for page in pages)
    assert (await post(api, "/publish/my_flow", ANN, **form(pages[0]))).status_code == 303
    refused = await post(api, "/publish/my_flow", BEN, **form(pages[1]), note="mine")
    assert refused.status_code == 409
    assert "Somebody else has published" in refused.text and "ann" in refused.text
    assert 'value="mine"' in refused.text  # nothing is typed twice
    fields = form(refused.text)
    assert (await post(api, "/publish/my_flow", BEN, **fields)).status_code == 400
    assert (await post(api, "/publish/my_flow", BEN, **fields, replace="yes")).status_code == 303
    told = await api.client.get("/workflows/my_flow", params={"published": str(fields["over"])}, headers=ANN)
    assert "since then" in told.text and "ben" in told.text


EVIL = "<script>alert(1)</script>\"'><img src=x onerror=alert(1)>\u202e&amp;"


async def test_what_people_and_graphs_say_is_text_on_the_pages(api: Api) -> None:
    name = f"x {EVIL}"
    made = graph(title="$width")
    made["2"]["_meta"] = {"title": EVIL}
    made["2"]["inputs"]["filename_prefix"] = EVIL
    shown = ui()
    shown["nodes"][1]["title"] = EVIL
    answer = await api.client.post(
        "/api/v1/drafts", json={"name": name, "graph": made, "ui": shown}, headers=ANN
    )
    assert answer.status_code == 201, answer.text
    slug = answer.json()["workflow"]
    begun = await check(api, ANN, slug)
    claim = await api.claim(begun["test_run"]["job_id"])
    await api.output(claim, picture())
    await api.finish(claim)
    found = await check(api, ANN, slug)
    body = {"draft": found["draft"], "note": EVIL}
    done = await api.client.post(f"/api/v1/workflows/{slug}/publish", json=body, headers=ANN)
    assert done.status_code == 200, done.text
    made["2"]["inputs"]["filename_prefix"] = f"{EVIL}2"
    await api.client.post("/api/v1/drafts", json={"name": name, "graph": made, "ui": shown}, headers=ANN)
    pages = [
        await api.client.get(f"/publish/{slug}", headers=ANN),
        await api.client.get(f"/workflows/{slug}", headers=ANN),
        await api.client.get("/workflows", headers=ANN),
        await post(api, f"/publish/{slug}", ANN, do="publish", draft=EVIL, over=EVIL, note=EVIL),
        await api.client.get(f"/publish/{quote(EVIL, safe='')[:60]}", headers=ANN),
        await api.client.get(
            f"/workflows/{slug}", params={"a": EVIL, "b": EVIL, "published": EVIL}, headers=ANN
        ),
    ]
    for page in pages:
        assert "<script" not in page.text and "onerror=alert" not in page.text.replace("&gt;", "").replace(
            "&lt;img src=x onerror=alert", ""
        )
        assert "\u202e" not in page.text
        if page.headers["content-type"].startswith("text/html"):
            policy = page.headers["content-security-policy"]
            assert "default-src 'none'" in policy and "frame-ancestors 'none'" in policy
            assert "script-src" not in policy and "img-src 'self' data:" in policy
            assert page.headers["cross-origin-opener-policy"] == "same-origin"
            assert page.headers["cache-control"] == "no-store"


async def test_forms_of_other_sites_and_other_kinds_are_refused(api: Api) -> None:
    await published(api, ANN, 1)
    foreign = {**ANN, "Origin": "http://evil.example", "Sec-Fetch-Site": "cross-site"}
    for path in ("/publish/my_flow", "/workflows/my_flow"):
        assert (await post(api, path, foreign, do="check")).status_code == 403
        same_site = {**ANN, "Origin": "http://127.0.0.1:1", "Sec-Fetch-Site": "same-site"}
        assert (await post(api, path, same_site, do="check")).status_code == 403
        answer = await api.client.post(path, json={"do": "check"}, headers=ANN)
        assert code(answer) == (415, "unsupported_media_type")
        large = await post(api, path, ANN, note="x" * 20_000)
        assert code(large) == (413, "payload_too_large")
        many = await post(api, path, ANN, **{f"f{number}": "x" for number in range(50)})
        assert code(many) == (400, "invalid_request")
    assert (await api.client.get("/workflows/NOT-A-NAME", headers=ANN)).status_code == 400
    assert (await api.client.get("/workflows/none_such", headers=ANN)).status_code == 404
    bad = await post(api, "/workflows/my_flow", ANN, version="x", expected="")
    assert bad.status_code == 400 and "name a version" in bad.text


async def test_who_is_signed_out_is_led_to_the_page_by_way_of_the_sign_in(api: Api) -> None:
    await published(api, ANN, 1)
    for path, root in (("/publish/my_flow", "../"), ("/workflows/my_flow", "../"), ("/workflows", "")):
        out = await api.client.get(path)
        assert out.status_code == 401 and f'href="{root}login?then={path[1:]}"' in out.text
        sign_in = await api.client.get("/login", params={"then": path[1:]})
        assert f'name="then" value="{path[1:]}"' in sign_in.text
    data = {"key": ANN["X-API-Key"], "then": "workflows/my_flow"}
    done = await api.client.post("/login", data=data)
    assert (done.status_code, done.headers["location"]) == (303, "./workflows/my_flow")
    shown = await api.client.get("/workflows/my_flow")  # by the session's cookie
    assert shown.status_code == 200
    for elsewhere in ("//evil.example", "https://evil.example", "publish/../x", "/login", "publish/x?y", "x"):
        answer = await api.client.get("/login", params={"then": elsewhere}, headers={"Cookie": ""})
        assert "evil" not in answer.text and 'name="then"' not in answer.text
        moved = await api.client.post("/login", data={**data, "then": elsewhere})
        assert moved.headers["location"] == "./"
    # Programs are told in their own form, and the editor's origin nothing of the kind.
    api.client.cookies.clear()
    assert code(await api.client.get("/api/v1/drafts")) == (401, "unauthorized")
    editor = await api.client.get("/workflows", headers={"X-Fleet-Origin": "editor"})
    assert code(editor) == (401, "unauthorized")


async def test_an_operator_at_the_editors_origin_is_told_where_it_is_done(api: Api) -> None:
    path, editor = "/api/v1/workflows/my_flow/check", {"X-Fleet-Origin": "editor"}
    operator = await api.client.post(f"/k/root-key-0123456789{path}", json={}, headers=editor)
    assert code(operator) == (403, "console_only")
    nobody = await api.client.post(f"/k/prog-key-0123456789{path}", json={}, headers=editor)
    assert code(nobody) == (403, "forbidden")


BROWSER = {"Accept": "text/html,application/xhtml+xml,*/*;q=0.8"}


@pytest.mark.parametrize("session", ["", "fleet_console=forged"])
async def test_a_form_with_an_ended_session_says_how_to_send_it_again(api: Api, session: str) -> None:
    for path in ("/publish/my_flow", "/workflows/my_flow"):
        out = await api.client.post(path, data={"note": "soft"}, headers={**BROWSER, "Cookie": session})
        assert out.status_code == 401 and out.headers["content-type"].startswith("text/html")
        assert 'href="../login" target="_blank"' in out.text and "send the form again" in out.text
        assert "API-Key" not in out.text


@pytest.mark.parametrize(
    ("path", "status", "says"),
    [
        ("/workflows/my_flow@draft", 400, "name the workflow alone"),
        ("/publish/my_flow@draft", 400, "name the workflow alone"),
        ("/publish/%3Cscript%3E", 400, ""),
        ("/publish/a%2Fb", 404, ""),
        ("/workflows/none_such", 404, "none_such"),
    ],
)
async def test_errors_of_the_consoles_pages_are_pages_to_a_browser(
    api: Api, path: str, status: int, says: str
) -> None:
    shown = await api.client.get(path, headers={**BROWSER, **ANN})
    assert shown.status_code == status, shown.text
    assert shown.headers["content-type"].startswith("text/html") and "default-src" in str(shown.headers)
    assert says in shown.text and "<script" not in shown.text and "<h1>" in shown.text
    roleless = await api.client.get("/publish/my_flow", headers={**BROWSER, **PROG})
    assert roleless.headers["content-type"].startswith("text/html") or roleless.status_code == 404
    wrong = await api.client.put("/workflows/my_flow", headers={**BROWSER, **ANN})
    assert wrong.status_code == 405 and wrong.headers["allow"] and "<h1>" in wrong.text
    program = await api.client.get("/workflows/my_flow@draft", headers=ANN)
    assert program.headers["content-type"].startswith("application/json")


DEEP = "[" * 900 + "]" * 900


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b'{"name": "w", "graph": {}, "ui": {"nodes": [' + b"1," * 25_000_000 + b"1]}}", 413),
        (b'{"name": "w", "graph": {}, "ui": {"nodes": [' + b"1," * 1_000_000 + b"1]}}", 413),
        (b'{"name": "w", "graph": {}, "ui": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", 400),
        (f'{{"name": "w", "graph": {{}}, "ui": {{"nodes": [], "x": {DEEP}}}}}'.encode(), 422),
        (b'{"name": "w", "graph": {}, "ui": {"nodes": []}', 400),
    ],
    ids=["50 MB", "many values", "deep", "deep inside", "cut"],
)
async def test_a_graph_beyond_all_measure_is_refused(api: Api, body: bytes, status: int) -> None:
    headers = {**ANN, "Content-Type": "application/json"}
    answer = await api.client.post("/api/v1/drafts", content=body, headers=headers)
    assert answer.status_code == status, answer.text[:500]
    assert await api.stores.workflows.drafts("ann") == {}


async def test_a_deep_editor_s_graph_beside_a_sound_one_is_refused(api: Api) -> None:
    deep: Any = []
    for _ in range(400):
        deep = [deep]
    body = {"name": "w", "graph": GRAPH, "ui": {"nodes": [], "x": deep}}
    answer = await api.client.post("/api/v1/drafts", json=body, headers=ANN)
    assert answer.status_code == 400, answer.text
