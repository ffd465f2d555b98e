"""An artist's round on a real ComfyUI, by the requests that its editor makes: save, run, publish, go back.

What is saved and run are graphs that the editor of this version made, plain and with a subgraph.
"""

import copy
import gzip
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.acceptance.up import Up, start_fleet, stop_fleet
from tests.comfyui_server import ComfyServer
from tests.key_files import write_keys

pytestmark = [pytest.mark.comfyui, pytest.mark.timeout(240)]

GRAPHS: dict[str, dict[str, Any]] = json.loads(
    gzip.decompress((Path(__file__).parents[1] / "data" / "editor_graphs.json.gz").read_bytes())
)
ANN, BEN, PROG = ("ann-0123456789-key", "ben-0123456789-key", "prog-0123456789-key")
PATIENCE_S = 60.0


@pytest.fixture(scope="module")
def up(comfyui_server: ComfyServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    """A fleet of several people whose only node is a real ComfyUI."""
    folder = tmp_path_factory.mktemp("publishing")
    write_keys((folder / "keys"), f"ann {ANN} artist\nben {BEN} artist\nprog {PROG}\n")
    fleet = start_fleet(
        folder / "data",
        "--node",
        f"real={comfyui_server.url}",
        env={"FLEET_KEYS_FILE": str(folder / "keys"), "FLEET_AGENT_TOKEN": "agents-0123456789"},
    )
    with person(fleet, PROG) as asks:
        deadline = time.monotonic() + PATIENCE_S
        while not asks.get("/object_info/EmptyImage").json().get("EmptyImage"):
            assert time.monotonic() < deadline, "the fleet does not know yet what its node has"
            time.sleep(0.1)
    yield fleet
    stop_fleet(fleet)


@pytest.fixture(scope="module")
def version(comfyui_server: ComfyServer) -> str:
    told = httpx.get(f"{comfyui_server.url}/system_stats", timeout=30).json()
    return str(told["system"]["comfyui_version"])


def person(up: Up, key: str) -> httpx.Client:
    return httpx.Client(base_url=up.url, headers={"X-API-Key": key}, timeout=60)


def changed(graph: dict[str, Any], width: int) -> dict[str, Any]:
    """Change a width in one of the editor's graphs, or in one in API format."""
    other = copy.deepcopy(graph)
    levels = [other, *other.get("definitions", {}).get("subgraphs", [])] if "nodes" in other else []
    for node in (node for level in levels for node in level["nodes"]):
        if node["type"] == "EmptyImage":
            node["widgets_values"][0] = width
            if "widgets_values_named" in node:
                node["widgets_values_named"]["width"] = width
        elif (node.get("widgets_values") or [None])[1:] == [64]:  # the subgraph's outside
            node["widgets_values"][1] = width
            if "widgets_values_named" in node:
                node["widgets_values_named"]["width"] = width
    for node in () if levels else other.values():
        if node["class_type"] == "EmptyImage":
            node["inputs"]["width"] = width
    return other


def save_and_run(asks: httpx.Client, name: str, found: dict[str, Any], width: int) -> None:
    path = f"/api/userdata/workflows%2F{name}.json"
    saved = asks.post(path, params={"overwrite": "true"}, content=json.dumps(changed(found["saved"], width)))
    assert saved.status_code == 200, saved.text
    body = {
        "client_id": "c",
        "prompt": changed(found["prompt"], width),
        "extra_data": {"extra_pnginfo": {"workflow": changed(found["run"], width)}},
    }
    ran = asks.post("/api/prompt", json=body)
    assert ran.status_code == 200, ran.text


def checked(asks: httpx.Client, name: str) -> dict[str, Any]:
    """Check a draft until its test run is over."""
    deadline = time.monotonic() + PATIENCE_S
    while True:
        answer = asks.post(f"/api/v1/workflows/{name}/check")
        found: dict[str, Any] = answer.json()
        # A draft is made a moment after the run was taken: until then the one before is shown.
        fresh = answer.status_code == 200 and not found["unrun"]
        over = fresh and all(step["state"] != "waiting" for step in found["steps"])
        if over:
            return found
        assert time.monotonic() < deadline, found
        time.sleep(0.1)


def width_of_next_job(up: Up, name: str, prefix: str) -> int:
    """Run the workflow as a program does, and return its picture's width."""
    with person(up, PROG) as asks:
        made = asks.post(f"/api/v1/workflows/{name}/jobs", json={"params": {"prefix": prefix}}).json()
        deadline = time.monotonic() + PATIENCE_S
        while (job := asks.get(f"/api/v1/jobs/{made['id']}").json())["status"] not in ("succeeded", "failed"):
            assert time.monotonic() < deadline, job
            time.sleep(0.05)
        assert job["status"] == "succeeded", job
        picture = next(one for one in job["outputs"] if one["content_type"] == "image/png")
        content = asks.get(picture["url"]).content
    return int.from_bytes(content[16:20], "big")


@pytest.mark.parametrize("kind", ["plain", "subgraph"])
def test_an_artist_publishes_what_was_saved_and_run_and_goes_back(up: Up, version: str, kind: str) -> None:
    found = GRAPHS[f"{kind} {'0.3.64' if version == '0.3.64' else '0.33.0'}"]
    name = f"flow_{kind}"
    with person(up, ANN) as ann, person(up, BEN) as ben:
        save_and_run(ann, name, found, 64)
        first = checked(ann, name)
        assert first["ready"], first
        assert [one["content_type"] for one in first["test_run"]["outputs"]].count("image/png") == 1
        done = ann.post(f"/api/v1/workflows/{name}/publish", json={"draft": first["draft"]})
        assert done.status_code == 200, done.text
        assert width_of_next_job(up, name, "a") == 64

        opened = ben.get(f"/api/v1/workflows/{name}/editor-graph").json()
        assert opened["ui"]["nodes"] == changed(found["run"], 64)["nodes"]
        save_and_run(ben, name, found, 72)
        second = checked(ben, name)
        assert second["ready"] and second["overtaken"] is False
        assert any("width" in change["message"] for change in second["changes"]), second["changes"]
        save_and_run(ann, name, found, 80)
        third = checked(ann, name)
        body = {"draft": second["draft"], "over": first["version"], "note": "wider"}
        assert ben.post(f"/api/v1/workflows/{name}/publish", json=body).status_code == 200
        assert width_of_next_job(up, name, "b") == 72
        late = ann.post(f"/api/v1/workflows/{name}/publish", json={"draft": third["draft"]})
        assert late.status_code == 409 and late.json()["error"]["details"]["changed_by"] == "ben"

        assert ann.get(f"/publish/{name}").status_code == 404  # the pages are the console's
        page = ann.get(f"{up.console}/publish/{name}")
        assert "Somebody else has published" in page.text and page.text.count("<img ") == 2
        expected, back = second["version"], first["version"]
        gone = ann.post(f"{up.console}/workflows/{name}", data={"version": back, "expected": expected})
        assert gone.status_code == 303, gone.text
        assert width_of_next_job(up, name, "c") == 64
