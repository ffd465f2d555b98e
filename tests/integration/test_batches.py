"""Many jobs at once, through the API, on real Redis and simulated nodes."""

import asyncio
import csv
import io
import json
import os
import zipfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from comfy_fleet.cli.app import build
from comfy_fleet.cli.exits import Exit, Fail
from tests.fleet import until
from tests.integration.sharing_kit import Sharing, sharing
from tests.integration.test_input_urls import MANIFEST, PICTURE, png
from tests.integration.webhook_kit import receiver
from tests.web_site import page, site

LIMIT_S = 60.0
ITEMS = int(os.environ.get("FLEET_TEST_BATCH_ITEMS", "20"))
"""Of the long batch."""
TABLE = (
    MANIFEST
    + """
[parameters.prefix]
type = "string"
target = { title = "Save", input = "filename_prefix" }
max_length = 20
default = "out"
"""
)

GRAPH = {**PICTURE, "2": {**PICTURE["2"], "_meta": {"title": "Save"}}}


@pytest.fixture
async def world(redis_port: int, redis: Any, tmp_path: Path) -> AsyncIterator[Sharing]:
    options = {"fetch_allow": "127.0.0.1", "fetch_bytes": 100_000, "webhook_allow": "127.0.0.1"}
    async with sharing(redis_port, tmp_path, "g1", "g2", manifest=TABLE, graph=GRAPH, api=options) as made:
        yield made


async def ended(world: Sharing, batch: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}

    async def over() -> bool:
        nonlocal found
        found = (await world.client.get(f"/api/v1/batches/{batch['id']}")).json()
        return bool(found["status"] == "completed")

    async with asyncio.timeout(LIMIT_S + ITEMS):
        while not await over():
            await asyncio.sleep(0.1)
    return found


async def post(world: Sharing, body: Any, status: int = 201, **more: Any) -> dict[str, Any]:
    answer = await world.client.post("/api/v1/workflows/noise/batches", json=body, **more)
    assert answer.status_code == status, answer.text
    found: dict[str, Any] = answer.json()
    return found


async def test_many_items_three_dead_urls_one_webhook_and_a_retry_of_three(world: Sharing) -> None:
    good = ITEMS - 3
    async with site() as web, receiver() as hooks:
        for number in range(good):
            web.pages[f"/{number}.png"] = page(png(number % 250 + 1))
        items = [
            {"custom_id": f"SKU-{number}", "params": {"picture": web.url(f"/{number}.png")}}
            for number in range(ITEMS)
        ]
        batch = await post(world, {"items": items, "webhook_url": f"{hooks.url}/done"})
        assert batch["total"] == ITEMS
        done = await ended(world, batch)
        assert (done["counts"]["succeeded"], done["counts"]["failed"]) == (good, 3)
        failed = (await world.client.get(f"/api/v1/batches/{batch['id']}?status=failed")).json()["items"]
        assert [one["custom_id"] for one in failed] == [f"SKU-{number}" for number in range(good, ITEMS)]
        assert all("404" in one["error"]["message"] for one in failed)
        await until(lambda: len(hooks.taken) == 1, what="one message")
        told = hooks.taken[0].message
        assert told["type"] == "batch.completed"
        assert told["data"]["id"] == batch["id"]
        assert told["data"]["counts"] == {
            "succeeded": good,
            "failed": 3,
            "canceled": 0,
            "expired": 0,
            "refused": 0,
        }
        assert (told["data"]["round"], told["data"]["round_counts"]) == (1, told["data"]["counts"])
        for number in range(good, ITEMS):
            web.pages[f"/{number}.png"] = page(png(number % 250 + 1))
        again = await world.client.post(f"/api/v1/batches/{batch['id']}/retry", json={})
        assert (again.status_code, again.json()["retried"]) == (200, 3), again.text
        done = await ended(world, batch)
        assert done["counts"]["succeeded"] == ITEMS
        await until(lambda: len(hooks.taken) == 2, what="another message, of what was run again")
        assert len(set(hooks.counts)) == 2
        told = hooks.taken[1].message["data"]
        assert (told["round"], done["round"], told["counts"]["succeeded"]) == (2, 2, ITEMS)
        assert {state: count for state, count in told["round_counts"].items() if count} == {"succeeded": 3}
        shown = await world.client.get(f"/api/v1/batches/{batch['id']}?limit=2&signed=60")
        for item in shown.json()["items"]:
            assert "signature=" in item["outputs"][0]["url"]
            assert item["outputs"][0]["thumbnail_url"] == f"{item['outputs'][0]['url']}&format=webp&width=256"
        zipped = await world.client.get(f"/api/v1/batches/{batch['id']}/outputs.zip")
        with zipfile.ZipFile(io.BytesIO(zipped.content)) as archive:
            assert archive.testzip() is None
            assert set(archive.namelist()) == {"manifest.csv", *(f"SKU-{n}.png" for n in range(ITEMS))}
            rows = list(csv.DictReader(io.StringIO(archive.read("manifest.csv").decode())))
        assert [row["custom_id"] for row in rows] == [f"SKU-{n}" for n in range(ITEMS)]
        assert {row["status"] for row in rows} == {"succeeded"}


async def test_the_commands_for_batches(world: Sharing, tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    (photos / "a.png").write_bytes(png(1))
    table = tmp_path / "table.csv"

    async def fleet(*argv: str, code: Exit = Exit.OK) -> str:
        def call() -> Any:
            return CliRunner().invoke(build(argv), [*argv, "--api", world.api.url])

        done = await asyncio.to_thread(call)
        found = done.exception.exit if isinstance(done.exception, Fail) else done.exit_code
        assert found == code, (done.output, done.exception)
        return str(done.stdout)

    async with site() as web:
        table.write_text(f"custom_id,picture\nhere,@a.png\naway,{web.url('/b.png')}\n")
        out = tmp_path / "out"
        base = ("submit", "noise", "--from", str(table), "--files", str(photos))
        await fleet(*base, "--wait", "--download", str(out), code=Exit.JOB_FAILED)
        assert {one.name for one in out.iterdir()} == {"here.png", "manifest.csv"}
        (listed,) = json.loads(await fleet("batch", "ls", "--json"))["batches"]
        batch = listed["id"]
        assert batch in await fleet("batch", "ls")
        shown = await fleet("batch", "show", batch, "--status", "failed")
        assert "away" in shown and "404" in shown and "here" not in shown
        again = await fleet("batch", "retry", batch, "--wait", code=Exit.JOB_FAILED)
        assert "completed: 1 succeeded, 1 failed" in again
        web.pages["/b.png"] = page(png(2))
        ended = json.loads(await fleet("batch", "retry", batch, "--wait", "--json"))
        assert (ended["round"], ended["counts"]["succeeded"]) == (3, 2)
        await fleet("batch", "download", batch, "--wait", "--out", str(out), "--force")
        assert {one.name for one in out.iterdir()} == {"here.png", "away.png", "manifest.csv"}
        assert json.loads(await fleet("batch", "cancel", batch, "--json"))["counts"]["succeeded"] == 2
        await fleet("batch", "rm", batch)
        await fleet("batch", "show", batch, code=Exit.NOT_FOUND)
        assert json.loads(await fleet("batch", "ls", "--json"))["batches"] == []
