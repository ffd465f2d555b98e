"""What a real ComfyUI takes, the fleet takes; what it refuses, the fleet tells at submit."""

import io
import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image

from comfy_fleet.domain.graphs.inventory import OWN_CHECKS
from tests.acceptance.up import Up, start_fleet, stop_fleet
from tests.acceptance.wire import ends
from tests.comfyui_server import ComfyServer, interpreter

pytestmark = [pytest.mark.comfyui, pytest.mark.timeout(240)]

LIST_CHECKS = """
import asyncio, inspect, json, logging, sys
home, sys.argv = sys.argv[1], ["main.py", "--cpu"]
sys.path.insert(0, home)
import comfy.options
comfy.options.enable_args_parsing()
import nodes
logging.disable(logging.CRITICAL)
asyncio.run(nodes.init_extra_nodes(init_custom_nodes=False))
from comfy_api.internal import _ComfyNodeInternal, first_real_override
found = {}
for name, made in nodes.NODE_CLASS_MAPPINGS.items():
    newer = issubclass(made, _ComfyNodeInternal)
    check = first_real_override(made, "validate_inputs") if newer else getattr(made, "VALIDATE_INPUTS", None)
    if check is not None:
        taken, kinds = inspect.getfullargspec(check), made.INPUT_TYPES()
        inputs = [key for part in ("required", "optional") for key in kinds.get(part) or {}]
        found[name] = [key for key in inputs if taken.varkw or key in taken.args]
print("\\n" + json.dumps(found))
"""


@pytest.fixture(scope="module")
def up(comfyui_server: ComfyServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    fleet = start_fleet(tmp_path_factory.mktemp("graphs") / "data", "--node", f"real={comfyui_server.url}")
    yield fleet
    stop_fleet(fleet)


def node(class_type: str, **inputs: object) -> dict[str, Any]:
    return {"class_type": class_type, "inputs": inputs}


IMAGE = node("EmptyImage", width=32, height=32, batch_size=1, color=7)
SAVE = node("SaveImage", images=["1", 0], filename_prefix="x")
SHOWN = node("PreviewAny", source=["1", 0])
SIZE = {"resize_type": "scale dimensions", "resize_type.width": 16, "resize_type.height": 16}
CROPPED = {**SIZE, "resize_type.crop": "center"}
INVERTED = node("ImageInvert", image=["9", 0])


def resized(**inputs: object) -> dict[str, Any]:
    resize = node("ResizeImageMaskNode", input=["3", 0], scale_method="lanczos", **inputs)
    return {"1": resize, "2": SAVE, "3": IMAGE}


def wide(value: object) -> dict[str, Any]:
    return {"1": {**IMAGE, "inputs": {**IMAGE["inputs"], "width": value}}, "2": SAVE}


def scaled(method: object) -> dict[str, Any]:
    scale = node("ImageScale", image=["3", 0], upscale_method=method, width=8, height=8, crop="disabled")
    return {"1": scale, "2": SAVE, "3": IMAGE}


GRAPHS: dict[str, dict[str, Any]] = {
    "a growing group left out": {"1": node("StringFormat", f_string="hi"), "2": SHOWN},
    "a growing group given": {
        "1": node("StringFormat", f_string="{a}", **{"values.a": ["3", 0]}),
        "2": SHOWN,
        "3": node("PrimitiveString", value="x"),
    },
    "too few of a growing group": {"1": node("BatchImagesNode"), "2": SAVE},
    "a list that users fill": {
        "1": node("CustomCombo", choice="b", index=1, option1="a", option2="b", option3=""),
        "2": SHOWN,
    },
    "a group": resized(**CROPPED),
    "a bad choice in a group": resized(**{**CROPPED, "resize_type.crop": "bad"}),
    "a bad number in a group": resized(**{**CROPPED, "resize_type.width": -5}),
    "a group's member missing": resized(**SIZE),
    "a listed value": scaled("lanczos"),
    "a wrapped value": scaled({"__value__": "lanczos"}),
    "an unlisted value": scaled("nonsense"),
    "an unlisted value, wrapped": scaled({"__value__": "nonsense"}),
    "a number as text": wide("32"),
    "a text for a number": wide("many"),
    "a number too large, as text": wide("99999"),
    "a bare list": wide([1, 2, 3]),
    "an unread node with a lost link": {"1": IMAGE, "2": SAVE, "8": INVERTED},
    "unread nodes in a circle": {
        "1": IMAGE,
        "2": SAVE,
        "8": INVERTED,
        "9": node("ImageInvert", image=["8", 0]),
    },
    "an unread node with nothing given": {"1": IMAGE, "2": SAVE, "9": node("ImageScale")},
    "keys that nobody knows": {"1": {**IMAGE, "widgets": [1], "_meta": None}, "2": SAVE},
}  # fmt: skip


@pytest.mark.parametrize("name", GRAPHS)
def test_the_fleet_and_the_server_agree(up: Up, comfyui_server: ComfyServer, name: str) -> None:
    graph = GRAPHS[name]
    listed = httpx.get(f"{comfyui_server.url}/object_info", timeout=30).json()
    if missing := {entry["class_type"] for entry in graph.values()} - listed.keys():
        answer = httpx.post(f"{up.url}/api/v2/jobs", json={"workflow": graph}, timeout=30)
        assert answer.status_code == 422
        assert f"has no class `{min(missing)}`" in answer.json()["error"]["message"]
        return
    native = httpx.post(f"{comfyui_server.url}/prompt", json={"prompt": graph}, timeout=30)
    answer = httpx.post(f"{up.url}/api/v2/jobs", json={"workflow": graph}, timeout=30)
    if native.status_code == 200:
        assert answer.status_code == 201, answer.text
        assert ends(up, answer.json())["status"] == "succeeded"
    else:
        assert native.status_code == 400, native.text
        assert answer.status_code == 422, answer.text
        told = answer.json()["error"]["details"]["node_errors"]
        assert told.keys() == native.json()["node_errors"].keys()


def test_pictures_carry_the_editors_graph_whole(up: Up) -> None:
    info = {"workflow": {"nodes": [{"id": 1}, {"id": 9, "type": "Unread"}], "links": [], "x": "é"}}
    body = {"workflow": {"1": IMAGE, "2": SAVE, "8": INVERTED}, "extra_data": {"extra_pnginfo": info}}
    answer = httpx.post(f"{up.url}/api/v2/jobs", json=body, timeout=30)
    assert answer.status_code == 201, answer.text
    job = ends(up, answer.json())
    (output,) = job["outputs"]
    content = httpx.get(output["url"], timeout=30, follow_redirects=True).content
    texts = Image.open(io.BytesIO(content)).info
    assert json.loads(texts["workflow"]) == info["workflow"]
    assert json.loads(texts["prompt"]).keys() == body["workflow"].keys()  # what was submitted, not what ran


def test_classes_that_check_inputs_by_themselves_are_known(comfyui_home: Path, tmp_path: Path) -> None:
    python = os.environ.get("COMFYUI_PYTHON") or interpreter(comfyui_home)
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
    told = subprocess.run(
        [python, "-c", LIST_CHECKS, str(comfyui_home)],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=200,
        check=True,
    )
    checks = {name: frozenset(inputs) for name, inputs in json.loads(told.stdout.splitlines()[-1]).items()}
    assert len(checks) > 5
    unknown = {name: inputs - OWN_CHECKS.get(name, frozenset()) for name, inputs in checks.items()}
    assert {name: inputs for name, inputs in unknown.items() if inputs} == {}
