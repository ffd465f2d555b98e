"""Stored workflows from what a real ComfyUI writes, published and run on that ComfyUI through a fleet."""

import io
import json
import uuid
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from comfy_fleet.adapters.workflows.catalog import load_whole
from tests.acceptance.up import Up, start_fleet, stop_fleet
from tests.acceptance.wire import AGENT, ANN, BOB, OPS, bearer
from tests.comfyui_server import ComfyServer
from tests.integration.up_kit import until
from tests.key_files import write_keys

pytestmark = [pytest.mark.comfyui, pytest.mark.timeout(300)]

EDITOR: dict[str, Any] = {
    "id": "f2e1c6f0-96f1-4c5c-a5e6-2b4d3f7a8b9c",
    "version": 0.4,
    "nodes": [{"id": 1, "type": "EmptyImage"}, {"id": 2, "type": "SaveImage"}],
    "links": [[1, 1, 0, 2, 0, "IMAGE"]],
    "extra": {
        "linearData": {
            "inputs": [["f2e1c6f0-96f1-4c5c-a5e6-2b4d3f7a8b9c:1:color", "color", {"description": "RGB"}]],
            "outputs": [2],
        }
    },
}


def graph(kind: str, width: int = 64) -> dict[str, Any]:
    saves = {
        "png": ("SaveImage", {}),
        "webp": (
            "SaveAnimatedWEBP",
            {"fps": 6.0, "lossless": True, "quality": 80, "method": "default"},
        ),
    }
    class_type, more = saves[kind]
    return {
        "1": {
            "class_type": "EmptyImage",
            "inputs": {"width": width, "height": 64, "batch_size": 1, "color": 255},
            "_meta": {"title": "$width"},
        },
        "2": {"class_type": class_type, "inputs": {"images": ["1", 0], "filename_prefix": "f", **more}},
    }


@pytest.fixture(scope="module")
def up(comfyui_server: ComfyServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    """A fleet whose only node is the real ComfyUI."""
    folder = tmp_path_factory.mktemp("files")
    keys = folder / "keys"
    write_keys(keys, f"ann {ANN} artist\nbob {BOB}\nops {OPS} admin\n")
    keys.chmod(0o600)
    env = {"FLEET_KEYS_FILE": str(keys), "FLEET_AGENT_TOKEN": AGENT}
    fleet = start_fleet(folder / "data", "--node", f"real={comfyui_server.url}", env=env)
    yield fleet
    stop_fleet(fleet)


def made_by(server: ComfyServer, prompt: dict[str, Any]) -> bytes:
    """Return the picture that a bare ComfyUI makes of a graph that its editor submits."""
    body = {
        "prompt": prompt,
        "client_id": str(uuid.uuid4()),
        "extra_data": {"extra_pnginfo": {"workflow": EDITOR}},
    }
    answer = httpx.post(f"{server.url}/prompt", json=body, timeout=60)
    assert answer.status_code == 200, answer.text
    prompt_id = answer.json()["prompt_id"]

    def done() -> Any:
        return httpx.get(f"{server.url}/history/{prompt_id}", timeout=60).json().get(prompt_id)

    outputs = until(done, "the prompt is over")["outputs"]["2"]["images"][0]
    return httpx.get(f"{server.url}/view", params=outputs, timeout=60).content


def run(up: Up, reference: str, **params: Any) -> dict[str, Any]:
    path = f"{up.url}/api/v1/workflows/{reference}/jobs"
    answer = httpx.post(path, json={"params": params}, headers=bearer(BOB), timeout=60)
    assert answer.status_code == 201, answer.text
    job_id = answer.json()["id"]

    def over() -> Any:
        job = httpx.get(f"{up.url}/api/v1/jobs/{job_id}", headers=bearer(BOB), timeout=60).json()
        return job if job["status"] in ("succeeded", "failed") else None

    job: dict[str, Any] = until(over, "the job is over")
    assert job["status"] == "succeeded", job
    return job


@pytest.mark.parametrize("kind", ["png", "webp"])
def test_a_picture_that_comfyui_made_becomes_a_workflow_that_it_runs(
    comfyui_server: ComfyServer, up: Up, kind: str, tmp_path: Path
) -> None:
    url = f"{up.url}/api/v1/workflows/from_{kind}"
    prompt = graph(kind)
    picture = made_by(comfyui_server, prompt)
    sent = {"content": picture, "headers": {**bearer(ANN), "Content-Type": f"image/{kind}"}}
    first = httpx.put(url, timeout=60, **sent)  # type: ignore[arg-type]
    assert first.status_code == 200, first.text
    assert first.json()["parameters"] == ["width", "color"]
    whole = httpx.get(f"{url}/versions/production", headers=bearer(BOB), timeout=60).json()
    assert (whole["graph"], whole["ui"]) == (prompt, EDITOR)
    job = run(up, f"from_{kind}", width=128, color=7)
    assert job["workflow_version"] == first.json()["version"]
    wide = {"graph": graph(kind, width=96), "base_version": first.json()["version"][7:20]}
    assert httpx.put(url, json=wide, headers=bearer(BOB), timeout=60).status_code == 403
    second = httpx.put(url, json=wide, headers=bearer(ANN), timeout=60)
    assert second.status_code == 200, second.text
    assert "width 64 → 96" in str(second.json()["differences"])
    assert run(up, f"from_{kind}")["params"]["width"] == 96
    replaced = {"base_version": second.json()["version"]}
    back = httpx.post(f"{url}/rollback", json=replaced, headers=bearer(ANN), timeout=60)
    assert back.json()["version"] == first.json()["version"]
    assert run(up, f"from_{kind}")["params"]["width"] == 64
    checked = httpx.get(f"{url}/check", headers=bearer(OPS), timeout=60).json()
    assert [one["ok"] for one in checked["nodes"]] == [True]
    exported = httpx.get(f"{url}/export", headers=bearer(BOB), timeout=60)
    with zipfile.ZipFile(io.BytesIO(exported.content)) as archive:
        archive.extractall(tmp_path)
    assert load_whole(tmp_path / f"from_{kind}").workflow.version == first.json()["version"]


def test_a_picture_that_the_fleet_made_becomes_the_same_workflow(up: Up) -> None:
    url = f"{up.url}/api/v1/workflows"
    first = httpx.put(f"{url}/round", json={"graph": graph("png")}, headers=bearer(ANN), timeout=60)
    assert first.status_code == 200, first.text
    job = run(up, "round", width=80)
    (output,) = httpx.get(
        f"{up.url}/api/v1/jobs/{job['id']}/outputs", headers=bearer(BOB), timeout=60
    ).json()["outputs"]
    picture = httpx.get(output["url"], headers=bearer(BOB), timeout=60, follow_redirects=True).content
    again = httpx.put(
        f"{url}/again", content=picture, headers={**bearer(ANN), "Content-Type": "image/png"}, timeout=60
    )
    assert again.status_code == 200, again.text
    shown = httpx.get(f"{url}/again/versions/production", headers=bearer(BOB), timeout=60).json()["graph"]
    assert json.dumps(shown) == json.dumps(graph("png", width=80))
