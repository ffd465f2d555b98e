"""REST: publishing stored workflows, versions, labels, history, drafts and manifests, on a real Redis."""

import asyncio
import base64
import io
import json
import zipfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from httpx import Response
from PIL import ExifTags, Image
from PIL.PngImagePlugin import PngInfo
from redis.asyncio import Redis

from comfy_fleet.adapters.workflows.catalog import load_whole
from comfy_fleet.api.v1.routes import TABLE
from tests.integration.api_kit import Api, code, running
from tests.key_files import write_keys

W = "/api/v1/workflows/w"
PLAIN = "openapi-user-key-0001"
ARTIST = "artist-key-artist-0001"
OTHER = "artist-key-artist-0002"
ADMIN = "admin-key-admin-000001"


@pytest.fixture
async def api(redis_port: int, redis: Redis, tmp_path: Path) -> AsyncIterator[Api]:
    async with running(redis_port, tmp_path / "data", workflows=folder_of(tmp_path)) as started:
        await started.add_node(info=False)
        yield started


@pytest.fixture
async def keyed(redis_port: int, redis: Redis, tmp_path: Path) -> AsyncIterator[Api]:
    keys = tmp_path / "keys"
    write_keys(keys, f"pam {PLAIN}\nann {ARTIST} artist\nben {OTHER} artist\nada {ADMIN} admin\n")
    made = running(redis_port, tmp_path / "data", workflows=folder_of(tmp_path), keys_file=keys)
    async with made as started:
        await started.add_node(info=False)
        yield started


def folder_of(tmp_path: Path) -> Path:
    folder = tmp_path / "workflows"
    folder.mkdir()
    return folder


def graph(text: str = "a", seconds: float = 1.0, **more: Any) -> dict[str, Any]:
    return {
        "1": {
            "class_type": "EmptyImage",
            "inputs": {"width": 64, "height": 64, "batch_size": 1, "color": 0},
            "_meta": {"title": "$width $height"},
        },
        "2": {
            "class_type": "SaveImage",
            "inputs": {"images": ["1", 0], "filename_prefix": text, **more},
            "_meta": {"title": "$filename_prefix"},
        },
    }


def ui(*marks: Any) -> dict[str, Any]:
    return {
        "nodes": [{"id": 1, "type": "EmptyImage"}, {"id": 2, "type": "SaveImage"}],
        "links": [],
        "extra": {"linearData": {"inputs": list(marks), "outputs": [2]}},
    }


def key(value: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {value}"}


async def publish(api: Api, text: str = "a", base: str | None = None, **more: Any) -> dict[str, Any]:
    headers = more.pop("headers", {})
    body = {"graph": graph(text), "base_version": base, **more}
    answer = await api.client.put(W, json=body, headers=headers)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


async def run(api: Api, reference: str = "w", **params: Any) -> dict[str, Any]:
    answer = await api.client.post(f"/api/v1/workflows/{reference}/jobs", json={"params": params})
    assert answer.status_code == 201, answer.text
    found: dict[str, Any] = answer.json()
    return found


async def graph_of(api: Api, job: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = (await api.client.get(f"/api/v1/jobs/{job['id']}/workflow")).json()["workflow"]
    return found


async def test_what_is_published_is_run_by_the_next_job(api: Api) -> None:
    first = await publish(api, "a", note="the first")
    assert (first["changed"], first["before"], first["dry_run"]) == (True, None, False)
    assert first["parameters"] == ["width", "height", "filename_prefix"]
    job = await run(api, width=128)
    assert (job["workflow"], job["workflow_version"]) == ("w", first["version"])
    assert (await graph_of(api, job))["1"]["inputs"]["width"] == 128
    second = await publish(api, "b", first["version"])
    assert second["before"] == first["version"]
    assert [one["message"] for one in second["differences"]] == [
        'parameter filename_prefix: default "a" → "b"',
        'node 2 (SaveImage \'$filename_prefix\'): filename_prefix "a" → "b"',
    ]
    assert (await run(api))["workflow_version"] == second["version"]
    assert (await run(api, f"w@{first['version']}"))["workflow_version"] == first["version"]
    assert (await run(api, f"w@{first['version'][7:17]}"))["workflow_version"] == first["version"]
    for path, body, expected in (
        ("/api/v1/generate", {"prompt": "x", "workflow": "w@nope"}, 404),
        ("/api/v1/workflows/w@nope/jobs", {}, 404),
        ("/api/v1/workflows/w@!/jobs", {}, 400),
    ):
        assert (await api.client.post(path, json=body)).status_code == expected
    document = (await api.client.get("/api/v1/openapi.json")).json()
    assert second["version"] in document["components"]["schemas"]["WParams"]["description"]
    assert "filename_prefix" in document["components"]["schemas"]["WParams"]["properties"]
    listed = (await api.client.get("/api/v1/workflows")).json()["workflows"]
    assert [(one["name"], one["version"], one["folder"]) for one in listed] == [
        ("w", second["version"], None)
    ]


async def test_the_next_job_at_any_api_process_uses_it(
    api: Api, redis_port: int, redis: Redis, tmp_path: Path
) -> None:
    first = await publish(api, "a")
    async with running(redis_port, tmp_path / "data", workflows=tmp_path / "workflows") as other:
        assert (await run(other))["workflow_version"] == first["version"]
        second = await publish(api, "b", first["version"])
        assert (await run(other))["workflow_version"] == second["version"]
        await api.client.post(f"{W}/rollback", json={"base_version": second["version"]})
        assert (await run(other))["workflow_version"] == first["version"]


async def test_of_two_at_once_one_wins_and_the_other_hears_who_when_and_what(keyed: Api) -> None:
    first = await publish(keyed, "a", headers=key(ARTIST))
    base = first["version"]

    async def one(text: str, who: str) -> Response:
        body = {"graph": graph(text), "base_version": base[7:19]}
        return await keyed.client.put(W, json=body, headers=key(who))

    both = await asyncio.gather(one("b", ARTIST), one("c", OTHER))
    assert sorted(answer.status_code for answer in both) == [200, 409]
    (lost,) = (answer for answer in both if answer.status_code == 409)
    (won,) = (answer for answer in both if answer.status_code == 200)
    winner = "ann" if won is both[0] else "ben"
    assert code(lost) == (409, "workflow_changed")
    error = lost.json()["error"]
    assert winner in error["message"]
    details = error["details"]
    assert (details["changed_by"], details["production"], details["base_version"]) == (
        winner,
        won.json()["version"],
        base,
    )
    assert details["changed_at"] > 0
    assert any('filename_prefix "a" →' in one["message"] for one in details["theirs"])
    assert any("filename_prefix" in one["message"] for one in details["differences"])
    shown = (await keyed.client.get(W, headers=key(PLAIN))).json()
    assert shown["version"] == won.json()["version"]
    forced = await keyed.client.put(W, json={"graph": graph("d"), "force": True}, headers=key(ARTIST))
    assert forced.json()["before"] == won.json()["version"]


async def test_many_who_publish_at_once_leave_one_line_of_history(api: Api) -> None:
    version = (await publish(api, "0"))["version"]
    for _ in range(3):
        answers = await asyncio.gather(
            *(
                api.client.put(W, json={"graph": graph(f"{version[7:15]}{n}"), "base_version": version})
                for n in range(8)
            )
        )
        won = [one.json() for one in answers if one.status_code == 200]
        assert [one.status_code for one in answers].count(409) == 7 and len(won) == 1
        version = won[0]["version"]
    history = (await api.client.get(f"{W}/history")).json()["history"]
    assert [one["before"] for one in history] == [*(one["version"] for one in history[1:]), None]
    assert history[0]["version"] == version


async def test_without_a_base_an_existing_workflow_is_not_replaced(api: Api) -> None:
    first = await publish(api, "a")
    answer = await api.client.put(W, json={"graph": graph("b")})
    assert code(answer) == (409, "workflow_changed")
    assert "base_version" in answer.json()["error"]["message"]
    assert (await publish(api, "a"))["changed"] is False  # the same again
    assert (await api.client.put(W, json={"graph": graph("b"), "base_version": "nope"})).status_code == 404
    gone = await api.client.put(W, json={"graph": graph("b"), "base_version": "0123456789"})
    assert code(gone) == (409, "workflow_changed")
    assert (await api.client.get(W)).json()["version"] == first["version"]


async def test_a_new_graph_keeps_limits_choices_and_roles(api: Api) -> None:
    manifest: dict[str, Any] = {
        "title": "Wide",
        "parameters": {
            "width": {"min": 16, "max": 256, "description": "Pixels"},
            "filename_prefix": {"type": "choice", "choices": {"a": {"label": "A"}, "b": {}}, "role": "style"},
        },
    }
    first = await publish(api, "a", manifest=manifest)
    second = await publish(api, "b", first["version"])
    shown = (await api.client.get(f"{W}/manifest")).json()
    assert (shown["manifest"], shown["version"]) == (manifest, second["version"])
    width = next(one for one in shown["parameters"] if one["name"] == "width")
    assert (width["min"], width["max"], width["description"]) == (16, 256, "Pixels")
    assert width["targets"] == [{"node_id": "1", "input": "width", "form": "value"}]
    style = next(one for one in shown["parameters"] if one["name"] == "filename_prefix")
    assert (style["role"], style["default"]) == ("style", "b")
    assert style["choices"][0] == {"name": "a", "label": "A", "value": "a"}
    gone = graph("c")
    gone["1"]["_meta"]["title"] = "no more"
    refused = await api.client.put(W, json={"graph": gone, "base_version": second["version"]})
    assert code(refused) == (422, "invalid_manifest")
    error = refused.json()["error"]
    assert error["details"]["problems"][0].startswith(
        "parameters.width: no node of the graph is titled '$width'"
    )
    assert "in production is kept" in error["message"] and "send `manifest` along" in error["message"]
    narrow = {"parameters": {"filename_prefix": manifest["parameters"]["filename_prefix"]}}
    mended = {"graph": gone, "base_version": second["version"], "manifest": narrow}
    assert (await api.client.put(W, json=mended)).json()["parameters"] == ["filename_prefix"]


async def test_a_manifest_is_changed_by_itself(api: Api) -> None:
    first = await publish(api, "a", ui=ui(), manifest={"parameters": {"width": {"min": 8}}})
    patched = await api.client.patch(
        f"{W}/manifest?note=limits", json={"parameters": {"width": {"max": 512}, "height": {"max": 128}}}
    )
    assert patched.status_code == 200, patched.text
    second = patched.json()
    assert [one["parameter"] for one in second["breaking_changes"]] == ["width", "height"]
    shown = (await api.client.get(f"{W}/versions/production")).json()
    assert shown["manifest"] == {"parameters": {"width": {"min": 8, "max": 512}, "height": {"max": 128}}}
    assert (shown["version"], shown["note"], shown["ui"]) == (second["version"], "limits", ui())
    assert shown["graph"] == graph("a")
    stale = await api.client.patch(f"{W}/manifest?base_version={first['version']}", json={"title": "Mine"})
    assert code(stale) == (409, "workflow_changed")
    removed = await api.client.patch(f"{W}/manifest", json={"parameters": {"width": None}})
    assert removed.status_code == 200
    assert (await api.client.get(f"{W}/manifest")).json()["manifest"] == {
        "parameters": {"height": {"max": 128}}
    }
    for patch, field in (
        ({"nonsense": 1}, "nonsense"),
        ({"parameters": {"width": {"min": "x"}}}, "parameters.width.min"),
        ({"parameters": {"width": {"max": 1}}}, "parameters.width.default"),
        ({"parameters": {"width": 5}}, "parameters.width: must be an object"),
        ({"requires": []}, "requires: must be an object"),
    ):
        answer = await api.client.patch(f"{W}/manifest", json=patch)
        assert code(answer) == (422, "invalid_manifest")
        assert field in answer.json()["error"]["message"]
    refused = await api.client.post(f"{W}/jobs", json={"params": {"height": 1024}})
    assert code(refused) == (422, "invalid_parameter")


async def test_going_back_and_labels(api: Api) -> None:
    assert code(await api.client.post(f"{W}/rollback")) == (404, "not_found")
    first = (await publish(api, "a"))["version"]
    alone = await api.client.post(f"{W}/rollback", json={"base_version": first})
    assert code(alone) == (409, "conflict")
    second = (await publish(api, "b", first))["version"]
    third = (await publish(api, "c", second))["version"]
    staged = await api.client.put(f"{W}/labels/staging", json={"version": second[7:20], "note": "look"})
    assert staged.json() == {
        "name": "w",
        "label": "staging",
        "version": second,
        "before": None,
        "changed": True,
    }
    assert (await api.client.get("/api/v1/workflows/w@staging")).json()["version"] == second
    back = await api.client.post(f"{W}/rollback", json={"version": first, "note": "too soft"})
    assert (back.json()["version"], back.json()["before"]) == (first, third)
    assert (await run(api))["workflow_version"] == first
    again = await api.client.post(f"{W}/rollback", json={"version": third, "base_version": first})
    assert again.json()["version"] == third
    stale = await api.client.post(f"{W}/rollback", json={"version": "staging", "base_version": first})
    assert code(stale) == (409, "workflow_changed")
    listed = (await api.client.get(f"{W}/versions")).json()
    assert listed["labels"] == {"production": third, "staging": second}
    assert {one["version"]: one["labels"] for one in listed["versions"]} == {
        first: [],
        second: ["staging"],
        third: ["production"],
    }
    history = (await api.client.get(f"{W}/history")).json()["history"]
    assert [(one["action"], one["version"], one["note"]) for one in history] == [
        ("rolled_back", third, ""),
        ("rolled_back", first, "too soft"),
        ("labeled", second, "look"),
        ("published", third, ""),
        ("published", second, ""),
        ("published", first, ""),
    ]
    assert (await api.client.delete(f"{W}/labels/staging")).status_code == 204
    assert code(await api.client.delete(f"{W}/labels/staging")) == (404, "not_found")
    assert code(await api.client.delete(f"{W}/labels/production")) == (409, "conflict")
    assert code(await api.client.put(f"{W}/labels/draft", json={})) == (400, "invalid_request")
    assert code(await api.client.put(f"{W}/labels/new", json={"version": "nope"})) == (404, "not_found")


async def test_of_two_who_go_back_at_once_neither_undoes_the_other(keyed: Api) -> None:
    async def back(who: str, **body: object) -> Response:
        return await keyed.client.post(f"{W}/rollback", json=body, headers=key(who))

    first = (await publish(keyed, "a", headers=key(ARTIST)))["version"]
    second = (await publish(keyed, "b", first, headers=key(ARTIST)))["version"]
    both = await asyncio.gather(
        back(ARTIST, base_version=second[7:19]), back(OTHER, base_version=second[7:19])
    )
    assert [answer.json()["version"] for answer in both] == [first, first]
    assert sorted(answer.json()["changed"] for answer in both) == [False, True]
    repeated = await back(ARTIST, base_version=second)  # its answer was lost, for example
    assert (repeated.status_code, repeated.json()["changed"]) == (200, False)
    # Who looks only now has to say where to: what was before is what was just taken back.
    late = await back(OTHER, base_version=first)
    assert code(late) == (409, "conflict")
    assert "rolled w back from version" in late.json()["error"]["message"]
    for body in ({}, {"base_version": "production"}):
        unseen = await back(OTHER, **body)
        assert code(unseen) == (400, "invalid_request")
        assert unseen.json()["error"]["details"] == {"field": "base_version", "production": first}
    third = (await publish(keyed, "c", first, headers=key(OTHER)))["version"]
    stale = await back(ARTIST, base_version=second)
    assert code(stale) == (409, "workflow_changed")
    details = stale.json()["error"]["details"]
    assert (details["changed_by"], details["production"]) == ("ben", third)
    assert (await keyed.client.get(W, headers=key(ARTIST))).json()["version"] == third


async def test_changes_of_one_manifest_at_once_are_all_kept(api: Api) -> None:
    await publish(api, "a")
    for turn in range(3):
        changes = [{"title": f"T{turn}"}, {"description": f"D{turn}"}]
        answers = await asyncio.gather(*(api.client.patch(f"{W}/manifest", json=one) for one in changes))
        assert [answer.status_code for answer in answers] == [200, 200], [one.text for one in answers]
        manifest = (await api.client.get(f"{W}/manifest")).json()["manifest"]
        assert (manifest["title"], manifest["description"]) == (f"T{turn}", f"D{turn}")


@pytest.mark.parametrize("base", ["", "!"])
async def test_a_base_that_is_none_is_told_as_it_is_written(api: Api, base: str) -> None:
    answer = await api.client.put(W, json={"graph": graph("a"), "base_version": base})
    assert code(answer) == (400, "invalid_request")
    message = answer.json()["error"]["message"]
    assert message.startswith(f"base_version: {base!r} is neither a version") and "w@" not in message


@pytest.mark.parametrize("field", ["version", "base_version"])
async def test_what_names_no_version_is_told_by_its_field(api: Api, field: str) -> None:
    await publish(api, "a")
    for path, method in ((f"{W}/rollback", "POST"), (f"{W}/labels/x", "PUT")):
        for bad in ("", "\0", "☃"):
            body = {"version": "production", field: bad}
            answer = await api.client.request(method, path, json=body)
            assert code(answer) == (400, "invalid_request")
            assert answer.json()["error"]["details"]["field"] == field


async def test_a_version_that_is_no_longer_kept_is_told_as_that(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("comfy_fleet.adapters.redis.workflow_store.MAX_VERSIONS", 2)
    made: list[str] = []
    for text in "abc":
        made.append((await publish(api, text, made[-1] if made else None))["version"])
    first, digits = made[0], made[0].removeprefix("sha256:")
    assert first not in {one["version"] for one in (await api.client.get(f"{W}/versions")).json()["versions"]}
    for method, path, body, field in (
        ("POST", f"{W}/rollback", {"version": digits[:12]}, "version"),
        ("PUT", f"{W}/labels/x", {"version": first}, "version"),
        ("POST", f"{W}@{digits}/jobs", {}, "workflow"),
        ("GET", f"{W}/diff?a={digits}", None, "a"),
        ("GET", f"{W}/diff?a=production&b={digits}", None, "b"),
    ):
        answer = await api.client.request(method, path, json=body)
        assert code(answer) == (404, "not_found"), path
        error = answer.json()["error"]
        assert f"version {digits[:12]} of w is no longer kept" in error["message"]
        assert error["details"]["field"] == field
    # As the base of something newer it is still one.
    late = await api.client.put(W, json={"graph": graph("d"), "base_version": digits[:9]})
    assert code(late) == (409, "workflow_changed")
    assert late.json()["error"]["details"]["base_version"] == first
    draft = await api.client.put(f"{W}/draft", json={"graph": graph("d"), "base_version": digits[:9]})
    assert draft.json()["base_version"] == first


async def test_a_base_that_unknown_to_history_is_refused_also_for_the_same_graph(api: Api) -> None:
    version = (await publish(api, "a"))["version"]
    for base in ("0" * 7, "sha256:" + "0" * 64):
        answer = await api.client.put(W, json={"graph": graph("a"), "base_version": base})
        assert code(answer) == (409, "workflow_changed")
        error = answer.json()["error"]
        assert "has no version 0000000" in error["message"]
        assert (error["details"]["field"], error["details"]["production"]) == ("base_version", version)
        forced = {"graph": graph("a"), "base_version": base, "force": True}
        assert (await api.client.put(W, json=forced)).json()["changed"] is False
        draft = await api.client.put(f"{W}/draft", json={"graph": graph("a"), "base_version": base})
        assert code(draft) == (404, "not_found")
        assert draft.json()["error"]["details"]["field"] == "base_version"
    for _ in range(2):  # the same again, from where it was made
        assert (await publish(api, "a", version))["changed"] is False
    for side in ("a", "b"):
        bad = await api.client.get(f"{W}/diff", params={"a": "production", side: "\0"})
        assert (code(bad), bad.json()["error"]["details"]["field"]) == ((400, "invalid_request"), side)
    bad = await api.client.put(f"{W}/draft", json={"graph": graph("a"), "base_version": ""})
    assert (code(bad), bad.json()["error"]["details"]["field"]) == (
        (400, "invalid_request"),
        "base_version",
    )


async def test_a_label_is_not_moved_unseen(api: Api) -> None:
    first = (await publish(api, "a"))["version"]
    second = (await publish(api, "b", first))["version"]
    new = {"version": first, "base_version": None}
    assert (await api.client.put(f"{W}/labels/x", json=new)).json()["changed"] is True
    assert (await api.client.put(f"{W}/labels/x", json=new)).json()["changed"] is False
    other = await api.client.put(f"{W}/labels/x", json={"version": second, "base_version": None})
    assert code(other) == (409, "workflow_changed")
    assert other.json()["error"]["details"]["version"] == first
    moved = await api.client.put(f"{W}/labels/x", json={"version": second, "base_version": first})
    assert moved.json()["before"] == first
    late = await api.client.put(f"{W}/labels/x", json={"version": first, "base_version": first})
    assert code(late) == (409, "workflow_changed")
    assert (await api.client.put(f"{W}/labels/x", json={"version": first})).status_code == 200


async def test_differences_between_any_two(api: Api) -> None:
    first = (await publish(api, "a"))["version"]
    assert code(await api.client.get(f"{W}/diff")) == (404, "not_found")
    second = (await publish(api, "b", first))["version"]
    found = (await api.client.get(f"{W}/diff")).json()
    assert (found["a"], found["b"]) == (first, second) and len(found["differences"]) == 2
    assert (await api.client.get(f"{W}/diff?a={second}&b={first[7:20]}")).json()["b"] == first
    mine = graph("mine")
    mine["1"]["_meta"]["title"] = "$width"
    await api.client.put(f"{W}/draft", json={"graph": mine})
    found = (await api.client.get(f"{W}/diff?b=draft")).json()
    assert found["a"] == second
    assert [one["parameter"] for one in found["breaking_changes"]] == ["height"]
    assert {one["kind"] for one in found["differences"]} == {
        *("parameter_removed", "node_title", "input", "parameter")
    }
    same = (await api.client.get(f"{W}/diff?a={first}&b={first}")).json()
    assert same["differences"] == same["breaking_changes"] == []


async def test_a_draft_is_run_by_its_owner_alone(keyed: Api) -> None:
    first = await publish(keyed, "a", headers=key(ARTIST))
    saved = await keyed.client.put(
        f"{W}/draft", json={"graph": graph("mine"), "ui": ui()}, headers=key(PLAIN)
    )
    assert saved.status_code == 200, saved.text
    assert (saved.json()["base_version"], saved.json()["ui"]) == (first["version"], ui())
    job = await keyed.client.post("/api/v1/workflows/w@draft/jobs", json={}, headers=key(PLAIN))
    assert (job.json()["workflow"], job.status_code) == ("w", 201)
    assert job.json()["workflow_version"] not in ("", first["version"])
    others = await keyed.client.post("/api/v1/workflows/w@draft/jobs", json={}, headers=key(ARTIST))
    assert code(others) == (404, "not_found")
    assert code(await keyed.client.get(f"{W}/draft", headers=key(ARTIST))) == (404, "not_found")
    shown = (await keyed.client.get(f"{W}/versions/draft", headers=key(PLAIN))).json()
    assert shown["draft"] and shown["graph"] == graph("mine")
    assert (await keyed.client.delete(f"{W}/draft", headers=key(PLAIN))).status_code == 204
    assert code(await keyed.client.delete(f"{W}/draft", headers=key(PLAIN))) == (404, "not_found")


@pytest.mark.parametrize("who", [PLAIN, ARTIST, ADMIN])
async def test_artists_and_operators_publish(keyed: Api, who: str) -> None:
    allowed = who != PLAIN
    if not allowed:
        await publish(keyed, "a", headers=key(ARTIST))
    calls = [
        ("PUT", W, {"graph": graph("a")}),
        ("PATCH", f"{W}/manifest", {"title": "T"}),
        ("PUT", f"{W}/labels/x", {}),
        ("POST", f"{W}/rollback", {"version": "x"}),
        ("DELETE", f"{W}/labels/x", None),
        ("DELETE", W, None),
    ]
    for method, path, body in calls:
        answer = await keyed.client.request(method, path, json=body, headers=key(who))
        if allowed:
            assert answer.status_code in (200, 204), answer.text
        else:
            assert code(answer) == (403, "forbidden")
    for path in ("versions", "history", "manifest", "export", "versions/production"):
        seen = await keyed.client.get(f"{W}/{path}", headers=key(PLAIN))
        assert seen.status_code == (404 if allowed else 200)


def test_what_changes_the_store_is_the_consoles() -> None:
    of_store = [one for one in TABLE if one.path.startswith("/api/v1/workflows") and one.method != "GET"]
    others = {one.operation for one in of_store if not one.console}
    # These make jobs and drafts of the caller's own.
    assert others == {
        "run_workflow",
        "create_batch",
        "check_draft",
        "put_workflow_draft",
        "drop_workflow_draft",
    }
    assert len(of_store) > len(others) + 4


async def test_a_workflow_in_the_folder_is_read_and_not_changed(api: Api, tmp_path: Path) -> None:
    folder = tmp_path / "workflows" / "w"
    folder.mkdir()
    (folder / "workflow.json").write_text(json.dumps(graph("kept")))
    (folder / "workflow.toml").write_text('title = "Kept"\n[parameters.width]\nmax = 99\n')
    listed = (await api.client.get(f"{W}/versions")).json()
    assert (listed["folder"], listed["versions"]) == (str(folder), [])
    assert (await api.client.get(f"{W}/history")).json()["history"] == []
    shown = (await api.client.get(f"{W}/versions/production")).json()
    assert (shown["folder"], shown["author"], shown["manifest"]["title"]) == (str(folder), None, "Kept")
    assert (await api.client.get(f"{W}/manifest")).json()["manifest"]["parameters"] == {"width": {"max": 99}}
    for method, path, body in (
        ("PUT", W, {"graph": graph("x")}),
        ("PATCH", f"{W}/manifest", {"title": "x"}),
        ("POST", f"{W}/rollback", {}),
        ("PUT", f"{W}/labels/x", {}),
        ("DELETE", W, None),
    ):
        answer = await api.client.request(method, path, json=body)
        assert code(answer) == (409, "workflow_name_taken")
        assert f"kept in {folder}" in answer.json()["error"]["message"]
    saved = await api.client.put(f"{W}/draft", json={"graph": graph("mine")})
    assert saved.status_code == 200
    found = (await api.client.get(f"{W}/diff?a=production&b=draft")).json()
    assert "max" not in str(found["differences"]) and found["differences"]


async def test_a_name_in_both_places_is_refused_until_one_goes(api: Api, tmp_path: Path) -> None:
    await publish(api, "a")
    folder = tmp_path / "workflows" / "w"
    folder.mkdir()
    (folder / "workflow.json").write_text(json.dumps(graph("kept")))
    for path in (W, f"{W}/manifest", f"{W}/versions", f"{W}/diff?a=production"):
        answer = await api.client.get(path)
        assert code(answer) == (409, "workflow_name_taken"), path
        assert (
            str(folder) in answer.json()["error"]["message"] and "store" in answer.json()["error"]["message"]
        )
    assert code(await api.client.post(f"{W}/jobs", json={})) == (409, "workflow_name_taken")
    listed = (await api.client.get("/api/v1/workflows")).json()
    assert listed["workflows"] == [] and str(folder) in listed["broken"]["w"]
    assert (await api.client.delete(W)).status_code == 204
    assert (await api.client.get(W)).json()["folder"] == str(folder)


async def test_names_of_the_editor_become_ids(api: Api) -> None:
    first = await api.client.put("/api/v1/workflows/My%20Workflow", json={"graph": graph("a")})
    assert first.json()["name"] == "my_workflow", first.text
    listed = (await api.client.get("/api/v1/workflows/My%20Workflow/versions")).json()
    assert (listed["name"], listed["editor_name"]) == ("my_workflow", "My Workflow")
    await api.stores.userdata.save("local", "workflows/My Workflow.json", b"{}", overwrite=True)
    taken = await api.client.put("/api/v1/workflows/my%20workflow", json={"graph": graph("b"), "force": True})
    assert code(taken) == (409, "workflow_name_taken")
    assert "'my workflow' and 'My Workflow'" in taken.json()["error"]["message"]
    draft = await api.client.put("/api/v1/workflows/my%20workflow/draft", json={"graph": graph("b")})
    assert code(draft) == (409, "workflow_name_taken")
    other = await api.client.put(W, json={"graph": graph("a"), "editor_name": "Something else"})
    assert code(other) == (422, "invalid_request")
    assert code(await api.client.put("/api/v1/workflows/w@x", json={"graph": graph()})) == (
        422,
        "invalid_request",
    )
    missing = await api.client.get("/api/v1/workflows/My%20Workflow")
    assert missing.status_code == 404 and "my_workflow" in missing.json()["error"]["message"]


def png(**texts: str) -> bytes:
    info, file = PngInfo(), io.BytesIO()
    for name, text in texts.items():
        info.add_text(name, text)
    Image.new("RGB", (8, 8)).save(file, "PNG", pnginfo=info)
    return file.getvalue()


def webp(*, prompt: str, workflow: str) -> bytes:
    image, file = Image.new("RGB", (8, 8)), io.BytesIO()
    exif = image.getexif()
    exif[ExifTags.Base.Model] = f"prompt:{prompt}"
    exif[ExifTags.Base.Make] = f"workflow:{workflow}"
    image.save(file, "WEBP", exif=exif)
    return file.getvalue()


@pytest.mark.parametrize("kind", ["json", "png", "webp"])
async def test_a_file_is_published_as_it_is(api: Api, kind: str) -> None:
    shown, marks = graph("file"), ui([1, "batch_size"])
    prompt, workflow = json.dumps(shown), json.dumps(marks)
    data = {
        "json": prompt.encode("utf-16"),
        "png": png(prompt=prompt, workflow=workflow),
        "webp": webp(prompt=prompt, workflow=workflow),
    }[kind]
    headers = {"Content-Type": "application/json" if kind == "json" else f"image/{kind}"}
    answer = await api.client.put(f"{W}?note=by+file", content=data, headers=headers)
    assert answer.status_code == 200, answer.text
    assert ("batch_size" in answer.json()["parameters"]) is (kind != "json")
    whole = (await api.client.get(f"{W}/versions/production")).json()
    assert (whole["graph"], whole["note"]) == (shown, "by file")
    assert whole["ui"] == (None if kind == "json" else marks)


@pytest.mark.parametrize(
    ("content", "expected", "says"),
    [
        (b"", (400, "invalid_request"), "empty"),
        (b"{", (422, "invalid_request"), "not JSON"),
        (b"[]", (422, "invalid_workflow"), ""),
        (b"{}", (422, "invalid_workflow"), ""),
        (
            json.dumps({"nodes": [], "links": [], "version": 0.4}).encode(),
            (422, "workflow_format_ui"),
            "Export",
        ),
        (json.dumps({"graph": {"nodes": [], "links": []}}).encode(), (422, "workflow_format_ui"), "Export"),
        (png(), (422, "invalid_request"), "PNG without a graph"),
        (png(workflow='{"nodes": []}'), (422, "invalid_request"), "Export (API)"),
        (png(prompt="{"), (422, "invalid_request"), "not JSON"),
        (b"GIF89a", (422, "invalid_request"), "GIF"),
        (json.dumps({"graph": graph(), "extra": 1}).encode(), (422, "invalid_request"), "no such field"),
        (json.dumps({"graph": graph(), "note": "n" * 1001}).encode(), (422, "invalid_request"), "note"),
        (b'{"graph": null}', (422, "invalid_request"), "graph: must be an object"),
        (b'{"graph": 5, "note": "x"}', (422, "invalid_request"), "graph: must be an object"),
        (b'{"graph": [1]}', (422, "invalid_request"), "graph: must be an object"),
        (b'{"graph": {}, "note": NaN}', (400, "invalid_request"), "NaN at character 22"),
        (b'{"graph": {}, "note": ' + b"1" * 400 + b"}", (400, "invalid_request"), "character 22 is larger"),
        ('{"graph": {}}'.encode("utf-16"), (400, "invalid_request"), "send UTF-8"),
        (json.dumps({"graph": graph(), "thumbnail": "AAAA"}).encode(), (422, "invalid_request"), "WebP"),
        (b'{"a": [' + b"1," * 300_000 + b"1]}", (413, "payload_too_large"), "values"),
        (png(prompt='{"a": [' + "1," * 300_000 + "1]}"), (413, "payload_too_large"), "values"),
    ],
)
async def test_what_is_no_graph_is_refused_with_the_way_out(
    api: Api, content: bytes, expected: tuple[int, str], says: str
) -> None:
    answer = await api.client.put(W, content=content, headers={"Content-Type": "application/json"})
    assert code(answer) == expected, answer.text
    assert says in answer.json()["error"]["message"]
    assert code(await api.client.get(W)) == (404, "not_found")


@pytest.mark.parametrize("where", [W, f"{W}/draft"])
async def test_only_what_says_that_it_is_a_picture_may_be_as_large_as_one(api: Api, where: str) -> None:
    large = png(prompt=json.dumps(graph())) + b"\0" * api.deps.settings.max_json_bytes
    for kind in ("application/json", "application/octet-stream"):
        answer = await api.client.put(where, content=large, headers={"Content-Type": kind})
        assert code(answer) == (413, "payload_too_large")
        assert "Content-Type" in answer.json()["error"]["message"]
    answer = await api.client.put(where, content=large, headers={"Content-Type": "image/png"})
    assert answer.status_code == 200, answer.text
    text = b'{"a": "' + b"x" * api.deps.settings.max_json_bytes + b'"}'
    answer = await api.client.put(where, content=text, headers={"Content-Type": "image/png"})
    assert code(answer) == (413, "payload_too_large")


async def test_marks_are_parameters_at_once_and_survive_a_graph_without_them(
    api: Api, tmp_path: Path
) -> None:
    first = await publish(api, "a", ui=ui([1, "batch_size", {"description": "How many"}]))
    assert first["parameters"] == ["width", "height", "filename_prefix", "batch_size"]
    schema = (await api.client.get(W)).json()["parameters"]["properties"]["batch_size"]
    assert (schema["type"], schema["description"]) == ("integer", "How many")
    job = await run(api, batch_size=3)
    assert (await graph_of(api, job))["1"]["inputs"]["batch_size"] == 3
    second = await publish(api, "b", first["version"])
    assert "batch_size" in second["parameters"] and second["breaking_changes"] == []
    await export_is_the_same(api, tmp_path, second["version"])
    third = await publish(api, "c", second["version"], ui=ui())
    assert [one["parameter"] for one in third["breaking_changes"]] == ["batch_size"]


async def export_is_the_same(api: Api, tmp_path: Path, version: str) -> None:
    answer = await api.client.get(f"/api/v1/workflows/w@{version}/export")
    assert answer.headers["content-type"] == "application/zip"
    with zipfile.ZipFile(io.BytesIO(answer.content)) as archive:
        archive.extractall(tmp_path / "out")
    assert load_whole(tmp_path / "out" / "w").workflow.version == version


async def test_an_export_is_a_folder_with_the_same_version(api: Api, tmp_path: Path) -> None:
    manifest = {
        "title": 'Ein "Titel"\n',
        "parameters": {"width": {"max": 512, "choices": None}, "height": {"multiple_of": 0.5, "max": 1e6}},
        "requires": {"models": [{"file": "a.safetensors", "folder": "vae"}], "labels": {"x y": "z"}},
    }
    del manifest["parameters"]["width"]["choices"]  # type: ignore[index]
    first = await publish(api, "a", manifest=manifest, ui=ui([1, "color"]))
    await export_is_the_same(api, tmp_path, first["version"])


async def test_a_dry_run_says_what_would_change_and_changes_nothing(api: Api) -> None:
    would = await publish(api, "a", dry_run=True)
    assert (would["dry_run"], would["published_at"], would["changed"]) == (True, None, True)
    assert code(await api.client.get(W)) == (404, "not_found")
    first = await publish(api, "a")
    assert first["version"] == would["version"]
    would = await publish(api, "b", dry_run=True)
    assert (would["before"], len(would["differences"])) == (first["version"], 2)
    assert (await publish(api, "a", dry_run=True))["changed"] is False
    assert (await api.client.get(W)).json()["version"] == first["version"]


async def test_a_picture_comes_with_a_version(api: Api) -> None:
    file = io.BytesIO()
    Image.new("RGB", (64, 64), "red").save(file, "WEBP")
    await publish(api, "a", thumbnail=base64.b64encode(file.getvalue()).decode())
    (one,) = (await api.client.get(f"{W}/versions")).json()["versions"]
    shown = await api.client.get(one["thumbnail_url"])
    assert (shown.headers["content-type"], shown.content) == ("image/webp", file.getvalue())
    assert shown.headers["x-content-type-options"] == "nosniff"
    of_label = f"{W}/versions/production/thumbnail"
    tag = (await api.client.get(of_label)).headers["etag"]
    same = await api.client.get(of_label, headers={"If-None-Match": tag})
    assert (same.status_code, same.headers["etag"], same.content) == (304, tag, b"")
    blue = io.BytesIO()
    Image.new("RGB", (64, 64), "blue").save(blue, "WEBP")
    await publish(api, "a", "production", thumbnail=base64.b64encode(blue.getvalue()).decode())
    other = await api.client.get(of_label, headers={"If-None-Match": tag})
    assert (other.status_code, other.content) == (200, blue.getvalue())
    assert "no-cache" in other.headers["cache-control"] and "max-age" not in other.headers["cache-control"]
    await publish(api, "b", "production")
    assert code(await api.client.get(f"{W}/versions/production/thumbnail")) == (404, "not_found")


async def test_removed_is_removed_and_live_jobs_go_on(api: Api) -> None:
    first = await publish(api, "a")
    job = await run(api)
    assert (await api.client.delete(W)).status_code == 204
    assert code(await api.client.delete(W)) == (404, "not_found")
    assert code(await api.client.get(f"/api/v1/workflows/w@{first['version']}")) == (404, "not_found")
    claim = await api.claim(job["id"])
    await api.finish(claim)
    assert (await api.client.get(f"/api/v1/jobs/{job['id']}")).json()["status"] == "succeeded"
    assert (await publish(api, "a"))["before"] is None
