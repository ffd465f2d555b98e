"""Files through ComfyUI's interface, as two people's clients use them: sent, loaded, saved, seen by name."""

import io
import json
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from PIL import Image

from tests.acceptance.up import Up, start_fleet, stop_fleet
from tests.acceptance.wire import AGENT, ANN, BOB, bearer
from tests.key_files import write_keys

pytestmark = pytest.mark.timeout(240)
COLOR = (200, 30, 90)


@pytest.fixture(scope="module", params=["simulated", pytest.param("real", marks=pytest.mark.comfyui)])
def up(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    folder = tmp_path_factory.mktemp("native-files")
    keys = folder / "keys"
    write_keys(keys, f"ann {ANN}\nbob {BOB}\n")
    nodes: tuple[str, ...] = ("--nodes", "1", "--job-seconds", "0.05")
    if request.param == "real":
        nodes = ("--node", f"real={request.getfixturevalue('comfyui_server').url}")
    env = {"FLEET_KEYS_FILE": str(keys), "FLEET_AGENT_TOKEN": AGENT}
    fleet = start_fleet(folder / "data", *nodes, env=env)
    yield fleet
    stop_fleet(fleet)


def png(color: tuple[int, ...] = COLOR) -> bytes:
    data = io.BytesIO()
    Image.new("RGBA" if len(color) == 4 else "RGB", (16, 16), color).save(data, "PNG")
    return data.getvalue()


def sent(up: Up, key: str, data: bytes, name: str, **fields: str) -> dict[str, Any]:
    answer = httpx.post(
        f"{up.url}/upload/image", data=fields, files={"image": (name, data)}, headers=bearer(key)
    )
    assert answer.status_code == 200, answer.headers
    found: dict[str, Any] = answer.json()
    return found


def posted(up: Up, key: str, image: str, prefix: str = "seen", saver: str = "SaveImage") -> httpx.Response:
    last: dict[str, Any] = {"images": ["1", 0]}
    graph = {
        "1": {"class_type": "LoadImage", "inputs": {"image": image}},
        "2": {"class_type": saver, "inputs": last},
    }
    if saver == "SaveImage":
        last["filename_prefix"] = prefix
    return httpx.post(f"{up.url}/prompt", json={"prompt": graph}, headers=bearer(key), timeout=20)


def saved(up: Up, key: str, image: str, **more: str) -> dict[str, str]:
    """Run a graph that loads a picture; return the name of the file that it makes."""
    answer = posted(up, key, image, **more)
    assert answer.status_code == 200, answer.text
    prompt = answer.json()["prompt_id"]
    deadline = time.monotonic() + 60
    while not (entry := httpx.get(f"{up.url}/history/{prompt}", headers=bearer(key)).json()):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert entry[prompt]["status"]["status_str"] == "success", entry
    (file,) = entry[prompt]["outputs"]["2"]["images"]
    found: dict[str, str] = file
    return found


def seen(up: Up, key: str, file: dict[str, str], **more: str) -> httpx.Response:
    return httpx.get(f"{up.url}/view", params={**file, **more}, headers=bearer(key))


def color_of(data: bytes) -> tuple[int, ...]:
    return Image.open(io.BytesIO(data)).convert("RGBA").getpixel((3, 3))  # type: ignore[return-value]


def test_a_picture_goes_round_by_its_names(up: Up) -> None:
    upload = sent(up, ANN, png(), "photo.png", subfolder="trip")
    first = saved(up, ANN, f"{upload['subfolder']}/{upload['name']}")
    assert first == {"filename": "seen_00001_.png", "subfolder": "", "type": "output"}
    second = saved(up, ANN, "seen_00001_.png [output]")
    assert second["filename"] == "seen_00002_.png"
    shown = saved(up, ANN, "seen_00002_.png [output]", saver="PreviewImage")
    assert shown["type"] == "temp"
    third = saved(up, ANN, f"{shown['filename']} [temp]", prefix="deep/x")
    assert (third["subfolder"], third["filename"]) == ("deep", "x_00001_.png")
    for file in (first, second, shown, third):
        got = seen(up, ANN, file)
        assert (got.status_code, color_of(got.content)) == (200, (*COLOR, 255))
        preview = seen(up, ANN, file, preview="webp;75", rand="0.5")
        assert preview.headers["content-type"] == "image/webp"
        assert seen(up, BOB, file).status_code == 404
    names = [f"seen_0000{n}_.png [output]" for n in (2, 1)]
    assert httpx.get(f"{up.url}/internal/files/output", headers=bearer(ANN)).json() == names
    assert httpx.get(f"{up.url}/internal/files/output", headers=bearer(BOB)).json() == []


def test_a_mask_is_painted_onto_an_output(up: Up) -> None:
    sent(up, BOB, png(), "bobs.png")
    output = saved(up, BOB, "bobs.png", prefix="canvas")
    answer = httpx.post(
        f"{up.url}/upload/mask",
        data={"original_ref": json.dumps(output), "subfolder": "clipspace", "type": "input"},
        files={"image": ("mask.png", png((0, 0, 0, 77)))},
        headers=bearer(BOB),
    )
    assert answer.json() == {"name": "mask.png", "subfolder": "clipspace", "type": "input"}
    place = {"filename": "mask.png", "subfolder": "clipspace", "type": "input"}
    assert color_of(seen(up, BOB, place).content) == (*COLOR, 77)
    assert color_of(seen(up, BOB, place, channel="a").content) == (0, 0, 0, 77)
    assert saved(up, BOB, "clipspace/mask.png [input]")["filename"] == "seen_00001_.png"


@pytest.mark.parametrize("image", ["anns.png", "anns.png [input]", "anns.png [temp]", "anns.png [output]"])
def test_nobody_elses_file_is_loaded(up: Up, image: str) -> None:
    for kind in ("input", "output", "temp"):
        sent(up, ANN, png(), "anns.png", type=kind)
    refused = posted(up, BOB, image)
    assert refused.status_code == 400
    body = refused.json()
    assert body["error"]["type"] == "prompt_outputs_failed_validation"
    (error,) = body["node_errors"]["1"]["errors"]
    assert error["type"] == "custom_validation_failed"
    assert error["details"] == f"image - Invalid image file: {image.removesuffix(' [input]')}"
    assert posted(up, ANN, image).status_code == 200
