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
from tests.comfyui_server import ANSWER_S, ComfyServer
from tests.contract.live_graphs import (
    CYCLE,
    EARLY_GRAPHS,
    GRAPHS,
    LATER_GRAPHS,
    MODEL,
    REFUSED,
    Graph,
    empty,
    node,
    save,
)
from tests.contract.test_sim_recordings import GLB, OLD, RECORDED_MODELS, normal, steps, without_texts
from tests.native_client import NativeClient

pytestmark = pytest.mark.comfyui


@pytest.fixture
async def version(comfyui_server: ComfyServer) -> str:
    """The real server's version; a test is skipped if there is no simulated node of it."""
    async with httpx.AsyncClient(timeout=ANSWER_S) as http:
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
    async with SimNode(options) as sim, httpx.AsyncClient(timeout=ANSWER_S) as http:
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
    async with httpx.AsyncClient(timeout=ANSWER_S) as http:
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
    async with httpx.AsyncClient(timeout=ANSWER_S) as http:
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
    async with httpx.AsyncClient(timeout=ANSWER_S) as http:
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
    async with httpx.AsyncClient(timeout=ANSWER_S) as http:
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
    async with httpx.AsyncClient(timeout=ANSWER_S) as http:
        for name in names:
            real, sim = [await http.get(f"{url}/view?filename={name}") for url in both]
            for header in ("content-type", "content-disposition", "x-content-type-options"):
                assert sim.headers.get(header) == real.headers.get(header), (name, header)
        real, sim = [(await http.get(f"{url}/internal/files/output")).json() for url in both]
    assert set(sim) <= set(real)
    assert len(sim) == len(names)


@pytest.mark.parametrize("site", ["same-origin", "same-site", "none", "cross-site"])
async def test_requests_from_other_sites_get_the_same_answer(site: str, both: tuple[str, str]) -> None:
    async with httpx.AsyncClient(timeout=ANSWER_S) as http:
        real, sim = [await http.get(f"{url}/queue", headers={"Sec-Fetch-Site": site}) for url in both]
    assert sim.status_code == real.status_code


@pytest.mark.parametrize("origin", ["http://evil.example", "http://127.0.0.1:1", "http://127.0.0.1"])
async def test_foreign_origins_get_the_same_answer(origin: str, both: tuple[str, str]) -> None:
    async with httpx.AsyncClient(timeout=ANSWER_S) as http:
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
    async with httpx.AsyncClient(timeout=ANSWER_S) as http:
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
