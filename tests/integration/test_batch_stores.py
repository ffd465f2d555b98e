"""Pictures of a whole batch in a shop's bucket, under its names, on simulated nodes."""

import csv
import io
import os
import zipfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.fleet import until
from tests.integration.sharing_kit import Sharing, sharing
from tests.integration.store_kit import served_bucket
from tests.integration.test_batches import GRAPH, TABLE, ended, post
from tests.integration.test_input_urls import png
from tests.integration.webhook_kit import receiver
from tests.web_site import page, site

ITEMS = int(os.environ.get("FLEET_TEST_STORE_ITEMS", "20"))
"""More in a long run."""
DEAD = 3
LIMIT_S = 60.0 + 3 * ITEMS


@pytest.fixture
async def world(redis_port: int, redis: Any, tmp_path: Path) -> AsyncIterator[Sharing]:
    options = {"fetch_allow": "127.0.0.1", "fetch_bytes": 100_000, "webhook_allow": "127.0.0.1"}
    async with sharing(redis_port, tmp_path, "g1", "g2", manifest=TABLE, graph=GRAPH, api=options) as made:
        yield made


@pytest.mark.timeout(LIMIT_S + 60)
async def test_each_item_s_picture_is_in_the_bucket_under_its_name_and_the_dead_ones_follow(
    world: Sharing,
) -> None:
    with served_bucket() as bucket:
        added = await world.client.post("/api/v1/stores", json=bucket.record())
        assert added.status_code == 201, added.text
        async with site() as web, receiver() as hooks:
            for number in range(ITEMS - DEAD):
                web.pages[f"/{number}.png"] = page(png(number + 1))
            items = [
                {"custom_id": f"SKU-{number}", "params": {"picture": web.url(f"/{number}.png")}}
                for number in range(ITEMS)
            ]
            output = {"store": "shop", "key": "products/{custom_id}.webp", "on_conflict": "fail"}
            batch = await post(
                world,
                {"items": items, "defaults": {"output": output}, "webhook_url": f"{hooks.url}/done"},
            )
            done = await ended(world, batch)
            assert (done["counts"]["succeeded"], done["counts"]["failed"]) == (ITEMS - DEAD, DEAD)
            assert (done["storing"], done["not_stored"]) == (0, 0)
            there = {f"pictures/products/SKU-{number}.webp" for number in range(ITEMS - DEAD)}
            assert {*bucket.names()} == there, "completed means that they are there"
            assert Image.open(io.BytesIO(bucket.read(min(there)))).format == "WEBP"
            zipped = await world.client.get(f"/api/v1/batches/{batch['id']}/outputs.zip")
            with zipfile.ZipFile(io.BytesIO(zipped.content)) as archive:
                rows = [*csv.DictReader(io.StringIO(archive.read("manifest.csv").decode()))]
            stored = {row["custom_id"]: row for row in rows if row["stored_state"]}
            assert {f"pictures/{row['stored_key']}" for row in stored.values()} == there
            assert {row["stored_state"] for row in rows} == {"stored", ""}
            about = stored["SKU-0"]
            url = "s3://shop/pictures/products/SKU-0.webp"
            assert (about["store"], about["stored_url"], about["stored_error"]) == ("shop", url, "")
            failed = (await world.client.get(f"/api/v1/batches/{batch['id']}?status=failed")).json()["items"]
            assert {one["custom_id"] for one in failed} == {
                f"SKU-{number}" for number in range(ITEMS - DEAD, ITEMS)
            }
            await until(lambda: len(hooks.taken) == 1, what="one message", timeout_s=60)
            assert hooks.taken[0].message["type"] == "batch.completed"
            assert hooks.taken[0].message["data"]["not_stored"] == 0
            for number in range(ITEMS - DEAD, ITEMS):
                web.pages[f"/{number}.png"] = page(png(number + 1))
            bucket.put(f"pictures/products/SKU-{ITEMS - 1}.webp", b"somebody else's")
            again = await world.client.post(f"/api/v1/batches/{batch['id']}/retry", json={})
            assert (again.status_code, again.json()["retried"]) == (200, DEAD), again.text
            done = await ended(world, batch)
            assert done["counts"]["succeeded"] == ITEMS
            assert (done["storing"], done["not_stored"]) == (0, 1), "one name was taken meanwhile"
            assert len(bucket.names()) == ITEMS
            await until(lambda: len(hooks.taken) == 2, what="another message", timeout_s=60)
            assert hooks.taken[1].message["data"]["not_stored"] == 1
