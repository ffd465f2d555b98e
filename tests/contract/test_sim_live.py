"""The simulated node beside a real ComfyUI: the same requests to both must look the same."""

import json
import re
import uuid
from collections.abc import AsyncIterator
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image, ImageChops
from PIL.PngImagePlugin import PngImageFile

from comfy_fleet.sim import NodeOptions, SimNode, SimTiming
from tests.comfyui_server import ComfyServer
from tests.contract.test_sim_recordings import normal, steps
from tests.native_client import NativeClient

pytestmark = pytest.mark.comfyui

Graph = dict[str, Any]


def node(class_type: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": class_type, "inputs": inputs}


def empty(color: int = 255, size: int = 64, batch: int = 1) -> dict[str, Any]:
    return node("EmptyImage", width=size, height=size, batch_size=batch, color=color)


def save(source: str, prefix: str = "live") -> dict[str, Any]:
    return node("SaveImage", images=[source, 0], filename_prefix=prefix)


GRAPHS: dict[str, Graph] = {
    "one picture": {"1": empty(0x204060), "2": save("1")},
    "a batch in a folder": {"1": empty(77, batch=3), "2": save("1", "a/b/live")},
    "two outputs": {"1": empty(5), "2": node("PreviewImage", images=["1", 0]), "3": save("1")},
    "a websocket picture": {"1": empty(6), "2": node("SaveImageWebsocket", images=["1", 0])},
    "a longer chain": {
        "9": save("5"),
        "5": node("ImageBlend", image1=["3", 0], image2=["4", 0], blend_factor=0.25, blend_mode="normal"),
        "3": node("ImageInvert", image=["1", 0]),
        "4": node(
            "ImageScale", image=["2", 0], upscale_method="bilinear", width=64, height=64, crop="disabled"
        ),
        "1": empty(0x102030),
        "2": empty(0x405060, size=32),
    },
    "text and branches": {
        "1": node("PrimitiveInt", value=48),
        "2": node("EmptyImage", width=["1", 0], height=32, batch_size=1, color=9),
        "3": node("StringConcatenate", string_a="a", string_b="b", delimiter="-"),
        "4": node("PreviewAny", source=["3", 0]),
        "5": save("2"),
        "6": node("ImageCrop", image=["2", 0], width=16, height=16, x=4, y=4),
        "7": node("PreviewImage", images=["6", 0]),
    },
    "an unknown input": {"1": {**empty(3), "inputs": {**empty(3)["inputs"], "nonsense": 1}}, "2": save("1")},
    "an error on the way": {
        "1": empty(8),
        "2": node("TestSyncError", value=["1", 0]),
        "3": save("2"),
        "4": node("PreviewImage", images=["1", 0]),
    },
    "an unchecked mode": {
        "1": empty(4),
        "2": node("ImageBlend", image1=["1", 0], image2=["1", 0], blend_factor=0.5, blend_mode="nope"),
        "3": save("2"),
    },
}
REFUSED: dict[str, Any] = {
    "no outputs": {"1": empty()},
    "unknown class": {"1": node("Nope"), "2": save("1")},
    "no class": {"1": {"inputs": {}}},
    "no inputs": {"1": {"class_type": "PreviewImage"}},
    "missing input": {"1": node("SaveImage", filename_prefix="x")},
    "out of range": {"1": empty(color=1 << 30), "2": save("1")},
    "not a number": {"1": node("EmptyImage", width="abc", height=1, batch_size=1, color=0), "2": save("1")},
    "wrong link": {"1": empty(), "2": node("SaveImage", images=["1", 0, 0], filename_prefix="x")},
    "wrong type": {"1": node("PrimitiveInt", value=1), "2": save("1")},
    "no such output": {"1": empty(), "2": node("SaveImage", images=["1", 1], filename_prefix="x")},
    "link to nowhere": {"2": save("99")},
    "inner link to nowhere": {"1": node("ImageInvert", image=["99", 0]), "2": save("1")},
    "a cycle": {"1": node("ImageInvert", image=["1", 0]), "2": save("1")},
    "no such file": {"1": node("LoadImage", image="missing.png"), "2": save("1")},
    "not in the list": {
        "1": empty(),
        "2": node("ImageScale", image=["1", 0], upscale_method="magic", width=8, height=8, crop="disabled"),
        "3": save("2"),
    },
}


@pytest.fixture
async def both(comfyui_server: ComfyServer, tmp_path: Path) -> AsyncIterator[tuple[str, str]]:
    """URLs of the real and of a simulated node, both with an empty history."""
    options = NodeOptions(name="twin", timing=SimTiming(scale=0), folder=tmp_path)
    async with SimNode(options) as sim, httpx.AsyncClient() as http:
        await http.post(f"{comfyui_server.url}/history", json={"clear": True})
        # Both begin with an empty cache: the real one acts on the flag before the next prompt.
        await http.post(f"{comfyui_server.url}/free", json={"free_memory": True})
        yield comfyui_server.url, sim.url


def comparable(value: Any) -> Any:
    """Take out file and prompt numbers, which differ because the real server has run other tests."""
    if isinstance(value, dict):
        changed = {key: comparable(item) for key, item in value.items()}
        if isinstance(changed.get("exception_type"), str):
            changed["exception_type"] = changed["exception_type"].rpartition(".")[2]
        if "prompt" in changed and isinstance(changed["prompt"], list):
            changed["prompt"][0] = 0
        return changed
    if isinstance(value, list | tuple):
        return [comparable(item) for item in value]
    return re.sub(r"_\d{5}_", "_N_", value) if isinstance(value, str) else value


@pytest.mark.parametrize("name", GRAPHS)
async def test_a_run_looks_the_same(name: str, both: tuple[str, str]) -> None:
    graph, prompt_id = GRAPHS[name], str(uuid.uuid4())
    seen: list[Any] = []
    for url in both:
        async with NativeClient(url, "twin-client") as client:
            again = f"{prompt_id[:-1]}x"
            first = await client.run(graph, prompt_id)
            second = await client.run(graph, again)  # from the cache
            entries = [comparable(normal(entry)) for entry in (first, second)]
            seen.append((entries, comparable(steps(client.frames))))
    outputs = len(seen[0][0][0]["prompt"][4])
    if outputs > 1:  # ComfyUI keeps the outputs in a set, so their order is drawn anew with each start
        seen = [(unordered(entries), unordered(frames)) for entries, frames in seen]
    assert seen[1][0] == seen[0][0]
    assert seen[1][1] == seen[0][1]


def unordered(value: Any) -> Any:
    """Sort what depends on the order of outputs; sums of progress are left out, they grow in that order."""
    if isinstance(value, dict):
        return {key: unordered(item) for key, item in value.items()}
    if isinstance(value, list):
        parts = [
            unordered(item)
            for item in value
            if not (isinstance(item, list) and item[:1] == ["progress_state"])
        ]
        return sorted(parts, key=lambda part: json.dumps(part, sort_keys=True))
    return value


@pytest.mark.parametrize("name", REFUSED)
async def test_a_refusal_looks_the_same(name: str, both: tuple[str, str]) -> None:
    answers = []
    async with httpx.AsyncClient() as http:
        for url in both:
            answer = await http.post(f"{url}/prompt", json={"prompt": REFUSED[name]})
            answers.append((answer.status_code, normal(without_texts(answer.json()))))
    assert answers[1] == answers[0]
    assert answers[0][0] == 400


def without_texts(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: without_texts(item) for key, item in value.items() if key != "tooltip"}
    return [without_texts(item) for item in value] if isinstance(value, list) else value


async def test_a_partly_valid_graph_is_taken_with_errors(both: tuple[str, str]) -> None:
    graph = {"1": empty(21), "2": save("1"), "3": node("SaveImage", filename_prefix="x")}
    seen = []
    for url in both:
        async with NativeClient(url, "twin-client") as client:
            answer = await client.post(graph)
            prompt_id = answer.json()["prompt_id"]
            await client.until(partial(client.finished, prompt_id))
            entry = (await client.http.get(f"/history/{prompt_id}")).json()[prompt_id]
            seen.append(
                (answer.status_code, answer.json()["node_errors"], entry["prompt"][4], list(entry["outputs"]))
            )
    assert seen[1] == seen[0]
    assert seen[0][0] == 200


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("POST", "/prompt", b"no json"),
        ("POST", "/prompt", b'{"prompt": [1]}'),
        ("POST", "/prompt", b"[]"),
        ("POST", "/prompt", b"{}"),
        ("POST", "/queue", b""),
        ("POST", "/interrupt", b""),
        ("POST", "/interrupt", b'{"prompt_id": "unknown"}'),
        ("POST", "/free", b"{}"),
        ("POST", "/upload/image", b""),
        ("GET", "/view", b""),
        ("GET", "/view?filename=../x", b""),
        ("GET", "/view?filename=/etc/passwd", b""),
        ("GET", "/view?filename=x&subfolder=../../..", b""),
        ("GET", "/view?filename=x&type=nope", b""),
        ("GET", "/view?filename=missing.png", b""),
        ("GET", "/history/unknown", b""),
        ("GET", "/object_info/Nope", b""),
        ("GET", "/models/nope", b""),
        ("GET", "/api/queue", b""),
        ("GET", "/nope", b""),
        ("PUT", "/queue", b""),
    ],
)
async def test_odd_requests_get_the_same_answer(
    method: str, path: str, body: bytes, both: tuple[str, str]
) -> None:
    async with httpx.AsyncClient() as http:
        real, sim = [await http.request(method, f"{url}{path}", content=body) for url in both]
    assert sim.status_code == real.status_code
    if (
        real.headers.get("content-type", "").startswith(("application/json", "text/plain"))
        and method != "PUT"
    ):
        assert sim.headers["content-type"] == real.headers["content-type"]
        assert (sim.json() if "json" in real.headers["content-type"] else sim.text) == (
            real.json() if "json" in real.headers["content-type"] else real.text
        )


@pytest.mark.parametrize("origin", ["http://evil.example", "http://127.0.0.1:1", "http://127.0.0.1"])
async def test_foreign_origins_get_the_same_answer(origin: str, both: tuple[str, str]) -> None:
    async with httpx.AsyncClient() as http:
        real, sim = [await http.get(f"{url}/queue", headers={"Origin": origin}) for url in both]
    assert sim.status_code == real.status_code


async def test_an_upload_is_loaded_and_its_pixels_are_worked_on(both: tuple[str, str]) -> None:
    buffer = BytesIO()
    Image.linear_gradient("L").convert("RGB").resize((32, 32)).save(buffer, "PNG")
    graph = {
        "1": node("LoadImage", image="up/gradient.png"),
        "2": node("ImageInvert", image=["1", 0]),
        "3": save("2", f"up/{uuid.uuid4().hex}"),
    }
    pictures, uploads = [], []
    for url in both:
        async with NativeClient(url, "twin-client") as client:
            files = {"image": ("gradient.png", buffer.getvalue(), "image/png")}
            for _ in range(2):
                answer = await client.http.post("/upload/image", files=files, data={"subfolder": "up"})
                uploads.append(answer.json())
            entry = await client.run(graph)
            shown = entry["outputs"]["3"]["images"][0]
            picture = PngImageFile(BytesIO((await client.http.get("/view", params=shown)).content))
            assert json.loads(picture.text["prompt"])["3"]["class_type"] == "SaveImage"
            pictures.append(picture.convert("RGB"))
    assert uploads[2:] == uploads[:2]
    # ComfyUI calculates with fractions and cuts them off at the end: one step of 255 may be lost.
    assert max(ImageChops.difference(*pictures).tobytes()) <= 1


async def test_classes_agree_with_the_live_object_info(both: tuple[str, str]) -> None:
    async with httpx.AsyncClient() as http:
        real, sim = [(await http.get(f"{url}/object_info")).json() for url in both]
    for name in set(sim) & set(real):
        for category in ("required", "optional"):
            wanted, seen = (side[name]["input"].get(category, {}) for side in (real, sim))
            assert list(seen) == list(wanted), name
            for key in wanted:
                limits = [
                    {
                        k: v
                        for k, v in (spec[1] if len(spec) > 1 else {}).items()
                        if k in ("min", "max", "default")
                    }
                    for spec in (wanted[key], seen[key])
                ]
                assert limits[1] == limits[0], (name, key)
        assert seen_outputs(sim[name]) == seen_outputs(real[name]), name
    assert {name for name in sim if name not in real} == {"SimSaveFiles", "SimWork"}


def seen_outputs(entry: dict[str, Any]) -> tuple[Any, ...]:
    return entry["output"], entry["output_node"], entry["output_is_list"]
