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
from comfy_fleet.sim.versions import VERSIONS
from tests.comfyui_server import ComfyServer
from tests.contract.test_sim_recordings import GLB, OLD, RECORDED_MODELS, normal, steps, without_texts
from tests.native_client import NativeClient

pytestmark = pytest.mark.comfyui

Graph = dict[str, Any]


def node(class_type: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": class_type, "inputs": inputs}


def empty(color: int = 255, size: int = 64, batch: int = 1) -> dict[str, Any]:
    return node("EmptyImage", width=size, height=size, batch_size=batch, color=color)


def save(source: str, prefix: str = "live") -> dict[str, Any]:
    return node("SaveImage", images=[source, 0], filename_prefix=prefix)


CYCLE = "a cycle that appears while it runs"
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
    "an alpha channel": {
        "1": empty(4),
        "2": node("SolidMask", value=0.25, width=64, height=64),
        "3": node("JoinImageWithAlpha", image=["1", 0], alpha=["2", 0]),
        "4": save("3"),
    },
    CYCLE: {
        "1": empty(9),
        "2": node("TestDynamicDependencyCycle", input1=["1", 0], input2=["1", 0]),
        "3": save("2"),
    },
}
MODEL = node(
    "Load3DAdvanced",
    model_file="3d/m.glb",
    viewport_state={"camera_info": {}, "model_3d_info": []},
    width=64,
    height=64,
)
SIDES = {"viewport_state": {}, "width": 64, "height": 64}
#: Graphs that 0.3.64 runs and later versions refuse.
EARLY_GRAPHS: dict[str, Graph] = {
    "an unchecked mode": {
        "1": empty(4),
        "2": node("ImageBlend", image1=["1", 0], image2=["1", 0], blend_factor=0.5, blend_mode="nope"),
        "3": save("2"),
    },
}
#: Graphs that later versions run and 0.3.64 refuses.
LATER_GRAPHS: dict[str, Graph] = {
    "a group that grows": {
        "1": empty(10, size=16),
        "2": empty(11, size=32),
        "3": node("BatchImagesNode", **{"images.image0": ["1", 0], "images.image2": ["2", 0]}),
        "4": save("3"),
    },
    "a group with nothing in it": {
        "1": node("StringFormat", f_string="hi"),
        "2": node("PreviewAny", source=["1", 0]),
    },
    "a text from a group": {
        "1": node("PrimitiveInt", value=5),
        "2": node("StringFormat", f_string="{a}-{b}", **{"values.a": ["1", 0], "values.b": "x"}),
        "3": node("PreviewAny", source=["2", 0]),
    },
    "a choice with members": {
        "1": empty(12),
        "2": node(
            "ResizeImageMaskNode",
            input=["1", 0],
            resize_type="scale dimensions",
            scale_method="area",
            **{"resize_type.width": 32, "resize_type.height": "16", "resize_type.crop": "disabled"},
        ),
        "3": save("2"),
    },
    "a choice that is not offered": {
        "1": empty(13),
        "2": node("ResizeImageMaskNode", input=["1", 0], resize_type="bogus", scale_method="area"),
        "3": save("2"),
    },
    "a choice of the user's own": {
        "1": node("CustomCombo", choice="b", index=1, option1="a", option2="b"),
        "2": node("PreviewAny", source=["1", 0]),
    },
    "a picture on the way": {
        "1": empty(14),
        "2": node("ImageCropV2", image=["1", 0], crop_region={"x": 8, "y": 0, "width": 16, "height": 16}),
        "3": save("2"),
    },
    "an output on the way": {
        "1": empty(15),
        "2": save("1", "middle"),
        "3": node("PreviewAny", source=["4", 0]),
        "4": node("CustomCombo", choice="x"),
        "5": node("ImageInvert", image=["2", 0]),
        "6": save("5"),
    },
    "a comparison": {"1": empty(16), "2": node("ImageCompare", compare_view={}, image_a=["1", 0])},
    "a saved text": {
        "1": node("PrimitiveString", value="a b"),
        "2": node("SaveText", text=["1", 0], filename_prefix="t/live", format="md"),
    },
    "3D models": {
        "1": MODEL,
        "2": node("SaveGLB", mesh=["1", 0], filename_prefix="3d/x"),
        "3": node("Save3DAdvanced", model_3d=["1", 0], filename_prefix="3d/y", **SIDES),
        "4": node("Preview3D", model_file=["1", 0]),
        "5": node("Preview3DAdvanced", model_3d=["1", 0], **SIDES),
    },
    "a 3D model by name, and a mask": {
        "4": node("CustomCombo", choice="x"),
        "1": node("Preview3D", model_file="some.glb"),
        "2": node("SolidMask", value=0.5, width=8, height=8),
        "3": node("MaskPreview", mask=["2", 0]),
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
    "a longer cycle": {
        "0": node("ImageInvert", image=["1", 0]),
        "1": node("ImageInvert", image=["2", 0]),
        "2": node("ImageInvert", image=["1", 0]),
        "4": save("0"),
    },
    "an unknown class with a title": {"1": {**node("Nope"), "_meta": {"title": "Mine"}}, "2": save("1")},
    "no class but a title": {"1": {"inputs": {}, "_meta": {"title": "Mine"}}},
    "a class that was replaced": {
        "1": {**node("T2IAdapterLoader", t2i_adapter_name="x"), "_meta": {"title": "t"}},
        "2": node("PreviewAny", source=["1", 0]),
    },
    "a group without its first member": {
        "1": empty(),
        "2": node("BatchImagesNode", **{"images.image1": ["1", 0]}),
        "3": save("2"),
    },
    "a bad member": {
        "1": empty(),
        "2": node(
            "ResizeImageMaskNode",
            input=["1", 0],
            resize_type="scale by multiplier",
            scale_method="area",
            **{"resize_type.multiplier": -5},
        ),
        "3": save("2"),
    },
    "a member that is not in the list": {
        "1": empty(),
        "2": node(
            "ResizeImageMaskNode",
            input=["1", 0],
            resize_type="scale dimensions",
            scale_method="area",
            **{"resize_type.width": 8, "resize_type.height": 8, "resize_type.crop": "bad"},
        ),
        "3": save("2"),
    },
    "a list that is no link": {
        "1": empty(),
        "2": node("ImageCropV2", image=["1", 0], crop_region=[1, 2]),
        "3": save("2"),
    },
    "a text for a choice": {
        "1": node("PrimitiveString", value="normal"),
        "2": empty(),
        "3": node("ImageBlend", image1=["2", 0], image2=["2", 0], blend_factor=0.5, blend_mode=["1", 0]),
        "4": save("3"),
    },
    "no such file": {"1": node("LoadImage", image="missing.png"), "2": save("1")},
    "not in the list": {
        "1": empty(),
        "2": node("ImageScale", image=["1", 0], upscale_method="magic", width=8, height=8, crop="disabled"),
        "3": save("2"),
    },
}


@pytest.fixture
async def version(comfyui_server: ComfyServer) -> str:
    """The real server's version; a test is skipped if there is no simulated node of it."""
    async with httpx.AsyncClient() as http:
        system = (await http.get(f"{comfyui_server.url}/system_stats")).json()["system"]
    name = str(system["comfyui_version"])
    if name not in VERSIONS:
        pytest.skip(f"there is no simulated ComfyUI {name}")
    return name


@pytest.fixture
async def both(comfyui_server: ComfyServer, version: str, tmp_path: Path) -> AsyncIterator[tuple[str, str]]:
    """URLs of the real and of a simulated node of its version, both with an empty history."""
    models, timing = RECORDED_MODELS, SimTiming(scale=0)
    options = NodeOptions(name="twin", comfyui=version, models=models, timing=timing, folder=tmp_path)
    for folder in (tmp_path, comfyui_server.folder):
        (folder / "input" / "3d").mkdir(parents=True, exist_ok=True)
        (folder / "input" / "3d" / "m.glb").write_bytes(GLB)
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
    return re.sub(r"_\d{5}([_.])", r"_N\1", value) if isinstance(value, str) else value


@pytest.mark.parametrize("name", [*GRAPHS, *EARLY_GRAPHS, *LATER_GRAPHS])
async def test_a_run_looks_the_same(name: str, both: tuple[str, str], version: str) -> None:
    graph = {**GRAPHS, **EARLY_GRAPHS, **LATER_GRAPHS}[name]
    if name in (LATER_GRAPHS if version == OLD else EARLY_GRAPHS):
        await the_refusals_are_equal(graph, both)
        return
    ids = [str(uuid.uuid4()), str(uuid.uuid4())]
    seen: list[Any] = []
    for url in both:
        async with NativeClient(url, "twin-client") as client:
            runs = [await client.run(graph, ids[0])]
            if name != CYCLE:  # whose parts come from the cache on a real server
                runs.append(await client.run(graph, ids[1]))  # from the cache
            entries = [comparable(normal(entry)) for entry in runs]
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
    await the_refusals_are_equal(REFUSED[name], both)


async def the_refusals_are_equal(graph: Graph, both: tuple[str, str], **more: Any) -> None:
    answers = []
    async with httpx.AsyncClient() as http:
        for url in both:
            answer = await http.post(f"{url}/prompt", json={"prompt": graph, **more})
            answers.append((answer.status_code, normal(without_texts(answer.json()))))
    assert answers[1] == answers[0]
    assert answers[0][0] == 400


HEX = "0123456789abcdef0123456789abcdef"


@pytest.mark.parametrize(
    "wrong", ["", "x", 5, True, HEX, f"{{{uuid.UUID(HEX)}}}", str(uuid.UUID(HEX)).upper()]
)
async def test_ids_that_are_no_uuids_get_the_same_answer(
    wrong: object, both: tuple[str, str], version: str
) -> None:
    if version != OLD:
        await the_refusals_are_equal(GRAPHS["one picture"], both, prompt_id=wrong)
        return
    async with httpx.AsyncClient() as http:
        for url in both:
            answer = await http.post(
                f"{url}/prompt", json={"prompt": GRAPHS["one picture"], "prompt_id": wrong}
            )
            assert answer.json()["prompt_id"] == str(wrong)


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
        ("GET", "/features", b""),
        ("GET", "/models", b""),
        ("GET", "/node_replacements", b""),
        ("GET", "/jobs", b""),
        ("GET", "/api/jobs/unknown", b""),
        ("GET", "/api/jobs?status=running", b""),
        ("GET", "/api/jobs?limit=0", b""),
        ("GET", "/api/jobs?limit=x", b""),
        ("GET", "/api/jobs?offset=x", b""),
        ("GET", "/api/jobs?sort_by=x", b""),
        ("GET", "/api/jobs?sort_order=x", b""),
        ("GET", "/api/jobs?status=pending,in_progress&limit=200", b""),
        ("GET", "/api/tags", b""),
        ("GET", "/tags", b""),
        ("GET", "/api/assets", b""),
        ("GET", "/api/assets/seed/status", b""),
        ("GET", "/api/internal/files/input", b""),
        ("GET", "/internal/files/nope", b""),
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


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/api/jobs/unknown/cancel", b""),
        ("/api/jobs/cancel", b"no json"),
        ("/api/jobs/cancel", b"[]"),
        ("/api/jobs/cancel", b"{}"),
        ("/api/jobs/cancel", b'{"job_ids": []}'),
        ("/api/jobs/cancel", b'{"job_ids": ["x", 3]}'),
        ("/api/assets", b""),
    ],
)
async def test_posts_to_the_later_parts_of_the_api_get_the_same_answer(
    path: str, body: bytes, both: tuple[str, str], version: str
) -> None:
    async with httpx.AsyncClient() as http:
        real, sim = [await http.post(f"{url}{path}", content=body) for url in both]
    if version == OLD:  # which answers 405 to a POST anywhere
        assert (real.status_code, sim.status_code) == (405, 404)
    else:
        assert (sim.status_code, sim.json()) == (real.status_code, real.json())


JOBS: dict[str, Graph] = {
    **{name: GRAPHS[name] for name in ("two outputs", "text and branches", "an error on the way")},
    "a saved text": LATER_GRAPHS["a saved text"],
    "a 3D model by a bare string": {"1": MODEL, "2": LATER_GRAPHS["3D models"]["3"]},
}


@pytest.mark.parametrize("name", JOBS)
async def test_a_job_looks_the_same_in_the_jobs_api(name: str, both: tuple[str, str], version: str) -> None:
    if version == OLD:  # has no such API, as another test shows
        return
    seen = []
    for url in both:
        async with NativeClient(url, "twin-client") as client:
            prompt_id = (await client.post(JOBS[name])).json()["prompt_id"]
            await client.until(partial(client.finished, prompt_id))
            one = (await client.http.get(f"/api/jobs/{prompt_id}")).json()
            (listed,) = (await client.http.get("/api/jobs?limit=1")).json()["jobs"]
        seen.append([{**comparable(normal(job)), "id": 0, "priority": 0} for job in (one, listed)])
    for first, second in zip(*(unordered(json.loads(json.dumps(jobs))) for jobs in seen), strict=True):
        for key in set(first) | set(second):
            if key not in ("execution_status", "execution_error"):
                assert second.get(key) == first.get(key), key


async def test_files_are_listed_and_shown_with_the_same_headers(
    both: tuple[str, str], comfyui_server: ComfyServer, tmp_path: Path, version: str
) -> None:
    names = ["a.html", "a.svg", "a.css", "a.xml", "a.txt", "noext"]
    if version != OLD:  # which has a type of its own for scripts
        names.append("a.js")
    for folder in (tmp_path, comfyui_server.folder):
        for name in names:
            (folder / "output" / name).write_bytes(b"x")
    async with httpx.AsyncClient() as http:
        for name in names:
            real, sim = [await http.get(f"{url}/view?filename={name}") for url in both]
            for header in ("content-type", "content-disposition", "x-content-type-options"):
                assert sim.headers.get(header) == real.headers.get(header), (name, header)
        real, sim = [(await http.get(f"{url}/internal/files/output")).json() for url in both]
    assert set(sim) <= set(real)
    assert len(sim) == len(names)


@pytest.mark.parametrize("site", ["same-origin", "same-site", "none", "cross-site"])
async def test_requests_from_other_sites_get_the_same_answer(site: str, both: tuple[str, str]) -> None:
    async with httpx.AsyncClient() as http:
        real, sim = [await http.get(f"{url}/queue", headers={"Sec-Fetch-Site": site}) for url in both]
    assert sim.status_code == real.status_code


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
