"""Equal jobs and batches on a real ComfyUI; a shared result beside one that ComfyUI has in its own cache."""

import base64
import csv
import io
import os
import sys
import zipfile
from collections.abc import AsyncIterator, Iterator
from io import BytesIO
from typing import Any
from uuid import uuid4

import httpx
import mcp
import orjson
import pytest
from PIL import Image

from tests.acceptance.up import Up, start_fleet, stop_fleet
from tests.acceptance.wire import ends
from tests.comfyui_server import ComfyServer
from tests.fleet import until
from tests.integration.native.socket_kit import Client, client_of
from tests.integration.sharing_kit import NOISE
from tests.integration.store_kit import served_bucket

pytestmark = [pytest.mark.comfyui, pytest.mark.timeout(240)]

BATCH = 25


@pytest.fixture(scope="module")
def up(comfyui_server: ComfyServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    """A fleet whose only node is a real ComfyUI, and which has a stored workflow."""
    folder = tmp_path_factory.mktemp("results")
    made = folder / "workflows" / "noise"
    made.mkdir(parents=True)
    (made / "workflow.json").write_bytes(orjson.dumps(NOISE))
    env = {"FLEET_WORKFLOWS": str(folder / "workflows")}
    fleet = start_fleet(folder / "data", "--node", f"real={comfyui_server.url}", env=env)
    yield fleet
    stop_fleet(fleet)


def submit(up: Up, seed: int, **headers: str) -> dict[str, Any]:
    answer = httpx.post(
        f"{up.url}/api/v1/workflows/noise/jobs", json={"params": {"seed": seed}}, headers=headers, timeout=30
    )
    assert answer.status_code == 201, answer.text
    job: dict[str, Any] = answer.json()
    return job


async def test_what_a_real_comfyui_makes_is_put_into_a_bucket(up: Up) -> None:
    with served_bucket() as bucket:
        async with httpx.AsyncClient(timeout=60) as client:
            added = await client.post(f"{up.console}/api/v1/stores", json=bucket.record())
            assert added.status_code == 201, added.text
            output = {"store": "shop", "key": "noise/{params.seed}-{index}.webp", "on_conflict": "fail"}
            body = {"params": {"seed": 77}, "output": output}
            job = (await client.post(f"{up.url}/api/v1/workflows/noise/jobs", json=body)).json()
            found: list[dict[str, Any]] = []

            async def stored() -> bool:
                nonlocal found
                shown = (await client.get(f"{up.url}/api/v1/jobs/{job['id']}")).json()
                assert shown["status"] in ("queued", "running", "succeeded"), shown
                found = [one["stored"] for one in shown["outputs"] if one["stored"]]
                return bool(found) and not shown["storing"]

            await until(stored, what="the bucket has it", timeout_s=180)
            assert [(one["state"], one["key"]) for one in found] == [("stored", "noise/77-1.webp")]
            there = bucket.read("pictures/noise/77-1.webp")
            assert (await client.get(found[0]["signed_url"])).content == there
            assert Image.open(BytesIO(there)).format == "WEBP"
            assert (await client.delete(f"{up.console}/api/v1/stores/shop")).status_code == 204


async def test_an_agent_sees_what_a_real_comfyui_makes(up: Up) -> None:
    agent_s = mcp.StdioServerParameters(
        command=sys.executable,
        args=["-m", "comfy_fleet", "mcp", "--api", up.console],
        env={"PATH": os.environ["PATH"]},
    )
    async with mcp.Client(agent_s) as agent:
        made = await agent.call_tool("noise", {"seed": 11, "strength": 0.5})
        assert not made.is_error, made
        (shown,) = [one for one in made.content if one.type == "image"]
        with Image.open(io.BytesIO(base64.b64decode(shown.data))) as picture:
            assert (picture.format, picture.size) == ("WEBP", (64, 64))
        wrong = await agent.call_tool("noise", {"seed": 11, "strength": "much"})
        assert wrong.is_error and any("strength" in one.text for one in wrong.content if one.type == "text")


def contents(job: dict[str, Any]) -> list[bytes]:
    return [httpx.get(output["url"], timeout=30).content for output in job["outputs"]]


def prompts_of(server: ComfyServer) -> int:
    """How many prompts the node has run."""
    return len(httpx.get(f"{server.url}/history", params={"max_items": 10_000}).json())


def test_a_shared_result_is_what_the_run_made(up: Up, comfyui_server: ComfyServer) -> None:
    before = prompts_of(comfyui_server)
    one = ends(up, submit(up, 1))
    two = submit(up, 1)
    assert (one["status"], one["cached"]) == ("succeeded", False)
    assert (two["status"], two["cached"]) == ("succeeded", True)
    assert prompts_of(comfyui_server) == before + 1
    assert contents(one) == contents(two)
    computed = ends(up, submit(up, 1, **{"Cache-Control": "no-cache"}))
    assert not computed["cached"]
    assert contents(one)[0] == contents(computed)[0], "a run makes the same file, with its metadata"


def test_many_equal_jobs_are_one_prompt(up: Up, comfyui_server: ComfyServer) -> None:
    before = prompts_of(comfyui_server)
    jobs = [ends(up, job) for job in [submit(up, 2) for _ in range(BATCH)]]
    assert {job["status"] for job in jobs} == {"succeeded"}
    assert prompts_of(comfyui_server) == before + 1
    assert len({output["id"] for job in jobs for output in job["outputs"]}) == 2 * BATCH
    assert len({output["hash"] for job in jobs for output in job["outputs"]}) <= 2


def test_a_table_becomes_pictures_under_their_names(up: Up) -> None:
    table = "custom_id,seed,strength\nred,11,0.5\nblue,12,\nwrong,much,0.5\n"
    path, headers = f"{up.url}/api/v1/workflows/noise/batches", {"Content-Type": "text/csv"}
    refused = httpx.post(path, content=table, headers=headers, timeout=60).json()["error"]
    assert [one["custom_id"] for one in refused["details"]["errors"]] == ["wrong"]
    made = httpx.post(path, params={"partial": True}, content=table, headers=headers, timeout=60)
    assert made.status_code == 201, made.text
    batch = made.json()
    with httpx.stream("GET", batch["urls"]["events"], timeout=200) as events:
        last = events.read().decode().strip().rpartition("\n")[2]
    assert '"status":"completed"' in last and '"succeeded":2' in last
    packed = httpx.get(batch["urls"]["outputs"], timeout=60).content
    with zipfile.ZipFile(io.BytesIO(packed)) as archive:
        assert sorted(archive.namelist()) == ["blue.png", "manifest.csv", "red.png"]
        sizes = {Image.open(archive.open(name)).size for name in ("red.png", "blue.png")}
        rows = list(csv.DictReader(io.TextIOWrapper(archive.open("manifest.csv"))))
    assert sizes == {(64, 64)}
    assert [(row["custom_id"], row["status"]) for row in rows] == [
        ("red", "succeeded"),
        ("blue", "succeeded"),
        ("wrong", "refused"),
    ]


@pytest.fixture
async def client(up: Up) -> AsyncIterator[Client]:
    async with client_of(up.url, uuid4().hex) as one:
        yield one


async def test_a_websocket_is_told_what_a_comfyui_tells_that_has_all_of_it(
    up: Up, comfyui_server: ComfyServer, client: Client
) -> None:
    graph = {key: one for key, one in NOISE.items() if key != "3"}  # a saved file is always another one
    async with client_of(comfyui_server.url, uuid4().hex) as direct:
        theirs = await _last_of_two(direct, graph)
    client.http.headers["Cache-Control"] = "max-age=600"
    prompt = await _last_of_two(client, graph)
    assert client.of(prompt) == direct.of(theirs)
    entry = (await client.http.get(f"/history/{prompt}")).json()[prompt]
    assert set(entry["outputs"]) == {"4"}
    job = (await client.http.get(f"/api/v1/jobs/{prompt}")).json()
    assert job["cached"]


async def _last_of_two(client: Client, graph: dict[str, Any]) -> str:
    """Post a graph twice, and return the second prompt when it has ended."""
    await client.ended(await client.post(graph))
    prompt = await client.post(graph)
    await client.ended(prompt)
    return prompt


def test_a_submit_that_waits_is_answered_with_the_picture(up: Up) -> None:
    url = f"{up.url}/api/v1/workflows/noise/jobs"
    headers = {"Prefer": "wait=100", "Accept": "image/webp"}
    answer = httpx.post(url, json={"params": {"seed": 77}}, headers=headers, timeout=120)
    assert answer.status_code == 200, answer.text
    made = Image.open(BytesIO(answer.content))
    assert (made.format, made.size) == ("WEBP", (64, 64))
    job = httpx.get(answer.headers["location"], timeout=30).json()
    assert (job["id"], job["status"]) == (answer.headers["x-fleet-job"], "succeeded")
    again = httpx.post(url, json={"params": {"seed": 77}}, headers={"Prefer": "wait=100"}, timeout=120)
    assert (again.status_code, again.json()["cached"]) == (200, True)


def test_a_graph_is_kept_in_a_picture_of_another_form_or_not(up: Up) -> None:
    job = ends(up, submit(up, 78))
    url = next(one["url"] for one in job["outputs"] if not one["temporary"])
    asked = {"format": "webp", "width": "32", "metadata": "keep"}
    kept = Image.open(BytesIO(httpx.get(url, params=asked, timeout=60).content))
    assert kept.size == (32, 32)
    assert orjson.loads(kept.getexif()[0x0110].removeprefix("prompt:"))["1"]["class_type"] == "EmptyImage"
    for query in ({"metadata": "strip"}, {"format": "jpeg"}):
        stripped = httpx.get(url, params=query, timeout=60)
        assert stripped.status_code == 200 and b"EmptyImage" not in stripped.content
