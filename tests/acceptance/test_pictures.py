"""Whoever downloads a picture has the graph that was submitted: submit it again, and it is the same."""

import io
import json
import time
from collections.abc import Iterator
from typing import Any
from uuid import uuid4

import httpx
import pytest
from PIL import Image

from comfy_fleet.domain.graphs.graph_file import read_graph
from tests.acceptance.up import Up, start_fleet, stop_fleet
from tests.acceptance.wire import ends

pytestmark = pytest.mark.timeout(240)

WORKFLOW = {"nodes": [], "links": [], "extra": {"note": "größe"}}


@pytest.fixture(scope="module", params=["simulated", pytest.param("real", marks=pytest.mark.comfyui)])
def up(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    if request.param == "simulated":
        yield request.getfixturevalue("fleet")
        return
    data = tmp_path_factory.mktemp("pictures") / "data"
    fleet = start_fleet(data, "--node", f"real={request.getfixturevalue('comfyui_server').url}")
    yield fleet
    stop_fleet(fleet)


def node(class_type: str, **inputs: object) -> dict[str, Any]:
    return {"class_type": class_type, "inputs": inputs}


def uploaded(up: Up, name: str) -> str:
    data = io.BytesIO()
    Image.new("RGB", (64, 64), (2, 2, 2)).save(data, "PNG")
    answer = httpx.post(
        f"{up.url}/api/v2/assets", files={"file": (name, data.getvalue())}, data={"file_path": name}
    )
    assert answer.status_code in (200, 201), answer.text
    return str(answer.json()["id"])


def files(up: Up, graph: object) -> dict[str, bytes]:
    """Run a graph and return what it saved, by node."""
    extra_data = {"extra_pnginfo": {"workflow": WORKFLOW}}
    answer = httpx.post(f"{up.url}/api/v2/jobs", json={"workflow": graph, "extra_data": extra_data})
    assert answer.status_code == 201, answer.text
    job = ends(up, answer.json())
    assert job["status"] == "succeeded", job["error"]
    return {output["node_id"]: httpx.get(output["url"]).content for output in job["outputs"]}


def test_what_was_submitted_is_in_every_picture(up: Up) -> None:
    name = f"größe {uuid4()}.png"
    asset = uploaded(up, name)
    graph = {
        "named": node("LoadImage", image=name),
        "asset": node("LoadImage", image={"__type": "core/ASSET", "info": {"id": asset}}),
        "both": {**node("ImageBatch", image1=["named", 0], image2=["asset", 0]), "_meta": {"title": "ü"}},
        "unread": node("ImageInvert", image=["named", 0]),
        "png": node("SaveImage", images=["both", 0], filename_prefix="%date:yyyy-MM%/%both.image1%"),
        "preview": node("PreviewImage", images=["both", 0]),
        "webp": node(
            "SaveAnimatedWEBP",
            images=["both", 0],
            filename_prefix="x",
            fps=6.0,
            lossless=True,
            quality=80,
            method="default",
        ),
        "apng": node("SaveAnimatedPNG", images=["both", 0], filename_prefix="y", fps=6.5, compress_level=4),
    }
    again: object = graph
    for _ in range(3):  # from the second time on, all nodes that save nothing are cached
        saved = files(up, again)
        assert set(saved) == {"png", "preview", "webp", "apng"}
        for kind, data in saved.items():
            assert read_graph(data) == graph, kind
            assert b"fleet_run" not in data and b"fleet/" not in data
            assert json.dumps(WORKFLOW).encode() in data
            image = Image.open(io.BytesIO(data))
            for frame in range(getattr(image, "n_frames", 1)):
                image.seek(frame)
                assert image.convert("RGB").getpixel((5, 5)) == (2, 2, 2)
        again = read_graph(saved["webp"])


def posted(up: Up, graph: object) -> dict[str, bytes]:
    """Run a graph as ComfyUI's clients do and return what it saved, by node."""
    sent = {
        "prompt": graph,
        "client_id": str(uuid4()),
        "extra_data": {"extra_pnginfo": {"workflow": WORKFLOW}},
    }
    answer = httpx.post(f"{up.url}/prompt", json=sent)
    assert answer.status_code == 200, answer.text
    prompt_id = answer.json()["prompt_id"]
    deadline = time.monotonic() + 60
    while not (entry := httpx.get(f"{up.url}/history/{prompt_id}").json().get(prompt_id)):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert entry["status"]["status_str"] == "success", entry["status"]
    assert entry["prompt"][2] == graph
    found = {}
    for node_id, shown in entry["outputs"].items():
        (image,) = shown["images"]
        viewed = httpx.get(f"{up.url}/view", params=image)
        assert viewed.status_code == 200, (image, viewed.headers, viewed.text)
        found[node_id] = viewed.content
    return found


def test_a_client_of_comfyuis_own_routes_finds_the_graph_that_it_posted(up: Up) -> None:
    data = io.BytesIO()
    Image.new("RGB", (48, 48), (2, 2, 2)).save(data, "PNG")
    name = f"photo {uuid4()} (1).png"
    answer = httpx.post(
        f"{up.url}/upload/image", files={"image": (name, data.getvalue())}, data={"subfolder": "mine"}
    )
    assert answer.status_code == 200, answer.text
    where = f"{answer.json()['subfolder']}/{answer.json()['name']} [input]"
    again: object = {
        "1": node("LoadImage", image=where),
        "2": node("SaveImage", images=["1", 0], filename_prefix="x"),
        "3": node("PreviewImage", images=["1", 0]),
    }
    for _ in range(2):
        saved = posted(up, again)
        assert set(saved) == {"2", "3"}
        for picture in saved.values():
            assert read_graph(picture) == again
            assert b"fleet" not in picture
