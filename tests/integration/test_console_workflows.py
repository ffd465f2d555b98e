"""The console's pages about stored workflows, over HTTP: lists, forms, versions, and whom they serve."""

import json
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis

from comfy_fleet.domain.jobs.job import JobStatus
from tests.integration.api_kit import Api, code, running
from tests.integration.test_console import (
    ANN,
    BEN,
    CONSOLE,
    HOSTILE,
    OPS,
    PART,
    Elements,
    change,
    harmless,
    shown,
)
from tests.key_files import write_keys

ART = {"X-API-Key": "art-key-0123456789"}
ODD = json.dumps(HOSTILE.replace("\x00", ""))  # a manifest can't have a NUL
TEXT = json.dumps(re.sub(r"[^ -~]", "", HOSTILE))  # what is in a field is sent as it is, whatever it holds
EVERY = f"""
title = {ODD}
description = {ODD}
[requires]
note = {ODD}
[parameters.prompt]
type = "string"
title = {ODD}
description = {ODD}
default = {TEXT}
target = {{ class = "Any", input = "text" }}
[parameters.name]
type = "string"
max_length = 20
required = true
target = {{ class = "Any", input = "name" }}
[parameters.steps]
type = "integer"
default = 8
min = 1
max = 50
target = {{ class = "Any", input = "steps" }}
[parameters.width]
type = "integer"
default = 512
min = 64
max = 9000000
multiple_of = 16
target = {{ class = "Any", input = "width" }}
[parameters.cfg]
type = "number"
default = 1.5
min = 0
max = 20
target = {{ class = "Any", input = "cfg" }}
[parameters.hires]
type = "boolean"
default = true
target = {{ class = "Any", input = "hires" }}
[parameters.style]
type = "choice"
default = "b"
target = {{ class = "Any", input = "style" }}
[parameters.style.choices]
a = {{ label = {ODD}, value = 1 }}
b = {{ value = 2 }}
[parameters.seed]
type = "seed"
target = {{ class = "Any", input = "seed" }}
[parameters.photo]
type = "image"
default = "example.png"
max_bytes = 1000
accept = ["image/png"]
target = {{ class = "Any", input = "photo" }}
"""


@pytest.fixture
async def api(redis_port: int, redis: Redis, tmp_path: Path) -> AsyncIterator[Api]:
    inputs = ["text", "name", "steps", "width", "cfg", "hires", "style", "seed", "photo"]
    every = {"1": {"class_type": "Any", "inputs": dict.fromkeys(inputs, 0)}}
    write(tmp_path / "workflows/every", every, EVERY)
    write(tmp_path / "workflows/broken", every, 'title = "x"\n[parameters.steps]\ntype = "nothing"\n')
    keys = "ann ann-key-0123456789\nben ben-key-0123456789\nart art-key-0123456789 artist\n"
    write_keys(tmp_path / "keys", f"{keys}ops ops-key-0123456789 operator\n")
    folder = tmp_path / "workflows"
    async with running(redis_port, tmp_path, keys_file=tmp_path / "keys", workflows=folder) as api:
        await api.add_node("g1")
        yield api


def write(folder: Path, graph: dict[str, Any], manifest: str) -> None:
    folder.mkdir(parents=True)
    (folder / "workflow.json").write_text(json.dumps(graph))
    (folder / "workflow.toml").write_text(manifest)


def card(color: int = 1) -> dict[str, Any]:
    size = {"width": 64, "height": 64, "batch_size": 1, "color": color}
    return {
        "1": {"class_type": "EmptyImage", "inputs": size, "_meta": {"title": "$width"}},
        "2": {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": "t"}},
    }


async def publish(api: Api, graph: dict[str, Any], note: str = "", name: str = "card") -> str:
    answer = await api.client.put(
        f"/api/v1/workflows/{name}", json={"graph": graph, "note": note, "force": True}, headers=OPS
    )
    assert answer.status_code == 200, answer.text
    return str(answer.json()["version"])


async def test_workflows_are_listed_with_their_faults(api: Api) -> None:
    await publish(api, card())
    text = await shown(api, "workflows", ANN)
    harmless(text)
    assert re.search(r'w-usable">usable', text) and re.search(r'w-unusable">unusable', text)
    assert "console/workflows/card" in text and "type" in text
    (api.deps.settings.workflows_dir / "every/workflow.toml").write_text("title = 1\n")
    again = await shown(api, "workflows?q=every", ANN)
    assert "Its last good version is served meanwhile" in again and "console/workflows/card" not in again
    assert "Its last good version is served meanwhile" in await shown(api, "workflows/every", ANN)
    missing = await api.client.get(
        "/console/workflows/none", headers={**CONSOLE, **ANN, "Accept": "text/html"}
    )
    assert missing.status_code == 404 and "<h1>" in missing.text


async def test_a_form_has_a_field_for_each_kind_of_parameter(api: Api) -> None:
    text = await shown(api, "workflows/every", ANN)
    harmless(text)
    found = Elements(text).found
    widgets = {one["data-field"]: one["data-widget"] for _, one in found if "data-field" in one}
    assert widgets == {
        "prompt": "text",
        "name": "line",
        "steps": "number",
        "width": "number",
        "cfg": "number",
        "hires": "switch",
        "style": "choice",
        "seed": "seed",
        "photo": "file",
    }
    boxes = [one for tag, one in found if tag in ("input", "select", "textarea")]
    by_id = {one["id"]: one for one in boxes if "id" in one}
    assert len(by_id) == len([one for one in boxes if "id" in one])
    labels = {one["for"] for tag, one in found if tag == "label" and "for" in one}
    assert labels == by_id.keys()
    assert by_id["f-1"]["maxlength"] == "20" and "required" in by_id["f-1"] and "required" not in by_id["f-0"]
    steps, width = by_id["f-2"], by_id["f-3"]
    assert (steps["min"], steps["max"], steps["step"], steps["value"]) == ("1", "50", "1", "8")
    assert (width["min"], width["step"]) == ("64", "16")
    assert sum("data-slider" in one for one in boxes) == 2  # of a width, there are too many
    assert "checked" in by_id["f-5"]
    assert next(one for tag, one in found if tag == "option" and "selected" in one)["value"] == "b"
    assert by_id["f-8"]["accept"] == "image/png" and "example.png" in text
    (form,) = (one for tag, one in found if tag == "form" and "data-submit" in one)
    assert form["data-submit"] == "../../api/v1/workflows/every/jobs"


async def test_a_form_can_be_filled_in_from_ones_own_earlier_job(api: Api) -> None:
    await publish(api, card())
    made = await api.client.post(
        "/api/v1/workflows/card/jobs", json={"params": {"width": 128}}, headers={**CONSOLE, **ANN}
    )
    job = made.json()["id"]
    assert 'value="128"' in await shown(api, f"workflows/card?from={job}", ANN)
    others = await api.client.get(f"/console/workflows/card?from={job}", headers={**CONSOLE, **BEN})
    assert code(others) == (404, "not_found")


async def test_what_a_job_makes_is_shown_to_whom_it_belongs_to(api: Api) -> None:
    await publish(api, card())
    made = await api.client.post("/api/v1/workflows/card/jobs", json={}, headers={**CONSOLE, **ANN})
    job = made.json()["id"]
    assert "queued" in await shown(api, f"made/{job}", ANN, PART)
    claim = await api.claim(job)
    assert "<progress" in await shown(api, f"made/{job}", ANN, PART)
    output = await api.output(claim, b"x", name=HOSTILE.replace("\x00", "")[:80])
    await api.finish(claim, JobStatus.SUCCEEDED)
    text = await shown(api, f"made/{job}", ANN, PART)
    harmless(text)
    assert f"../../api/v2/assets/{output.asset_id}/content?" in text and "data-ended" in text
    assert "<html" not in text and "Cancel" not in text
    for who in (BEN, OPS):
        refused = await api.client.get(f"/console/made/{job}", headers={**CONSOLE, **PART, **who})
        assert code(refused) == (404, "not_found")
    whole = await api.client.get(f"/console/made/{job}", headers={**CONSOLE, **ANN})
    assert (whole.status_code, whole.headers["location"]) == (303, f"../jobs/{job}")


async def test_versions_are_compared_and_gone_back_to(api: Api) -> None:
    odd = HOSTILE.replace("\x00", "")
    first, second = await publish(api, card(1), odd), await publish(api, card(2), odd)
    a, b = (one.removeprefix("sha256:")[:12] for one in (first, second))
    text = await shown(api, "workflows/card/versions", ANN)
    harmless(text)
    assert f'id="v-{a}"' in text and f'id="v-{b}"' in text and "Go back" not in text
    compared = await shown(api, f"workflows/card/versions?a={a}&b={b}", ANN)
    harmless(compared)
    assert "color" in compared and f"?a={a}&amp;b={b}#diff" in compared
    assert "alarm" in await shown(api, "workflows/card/versions?a=ffff&b=draft", ANN)
    there, form = "workflows/card/versions/back", {"version": first, "expected": second}
    assert code(await change(api, there, ANN, **form)) == (403, "forbidden")
    assert code(await change(api, there, ART, version="x", expected="")) == (400, "invalid_request")
    plain = await api.client.post(f"/console/{there}", data=form, headers={**CONSOLE, **ART})
    assert code(plain) == (403, "forbidden")
    assert (await change(api, there, ART, **form)).status_code == 204
    late = await change(api, there, ART, **form)  # somebody was faster
    assert late.status_code == 409 or (late.status_code == 204 and first != second)
    found = (await api.client.get("/api/v1/workflows/card/versions", headers=ANN)).json()
    assert found["production"] == first
    audit = (await api.client.get("/api/v1/audit", headers=OPS)).json()["entries"]
    assert "workflow.rolled_back" in [one["event"] for one in audit]
    assert "kept in" in await shown(api, "workflows/every/versions", ANN)
    for name, status in (("none", 404), ("card@1", 400)):
        answer = await api.client.get(f"/console/workflows/{name}/versions", headers={**CONSOLE, **ANN})
        assert answer.status_code == status


async def test_a_draft_can_be_compared_and_tried_by_its_owner(api: Api) -> None:
    await publish(api, card(1))
    drafted = await api.client.put("/api/v1/workflows/card/draft", json={"graph": card(3)}, headers=ART)
    assert drafted.status_code == 200, drafted.text
    text = await shown(api, "workflows/card/versions", ART)
    assert "../../../publish/card" in text and "card@draft" in text
    assert "your draft" in await shown(api, "workflows/card/versions?a=production&b=draft", ART)
    assert "your draft" in await shown(api, "workflows/card@draft", ART)
    assert "publish/card" in await shown(api, "workflows", ART)
    assert "publish/card" not in await shown(api, "workflows", ANN)
