"""A stored workflow's form in a browser: what is typed, wrong, and uploaded, and what comes of it."""

import asyncio
import json
from collections.abc import AsyncIterator
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from redis.asyncio import Redis

from comfy_fleet.domain.graphs.workflow import MAX_SEED
from comfy_fleet.domain.jobs.job import Progress
from tests.browser.chromium import Chromium
from tests.browser.page import Page
from tests.integration.api_kit import Api, running

GRAPH: dict[str, Any] = {
    "1": {"class_type": "LoadImage", "inputs": {"image": "example.png"}},
    "2": {
        "class_type": "ImageScale",
        "inputs": {
            "image": ["1", 0],
            "upscale_method": "bicubic",
            "width": 64,
            "height": 64,
            "crop": "disabled",
        },
    },
    "3": {"class_type": "ImageAddNoise", "inputs": {"image": ["2", 0], "seed": 0, "strength": 0.5}},
    "4": {"class_type": "SaveImage", "inputs": {"images": ["3", 0], "filename_prefix": "t"}},
}
MANIFEST = """
[parameters.photo]
type = "image"
required = true
target = { class = "LoadImage", input = "image" }
[parameters.name]
type = "string"
required = true
max_length = 20
target = { class = "SaveImage", input = "filename_prefix" }
[parameters.width]
type = "integer"
default = 64
min = 16
max = 512
target = { class = "ImageScale", input = "width" }
[parameters.seed]
type = "seed"
target = { class = "ImageAddNoise", input = "seed" }
"""

pytestmark = pytest.mark.timeout(600)


@pytest.fixture
async def api(redis_port: int, redis: Redis, tmp_path: Path) -> AsyncIterator[Api]:
    folder = tmp_path / "workflows/blurred"
    folder.mkdir(parents=True)
    (folder / "workflow.json").write_text(json.dumps(GRAPH))
    (folder / "workflow.toml").write_text(MANIFEST)
    async with running(redis_port, tmp_path, workflows=tmp_path / "workflows") as api:
        await api.add_node("g1")
        yield api


def picture() -> bytes:
    made = BytesIO()
    Image.new("RGB", (96, 64), "teal").save(made, "PNG")
    return made.getvalue()


def fill(page: Page, css: str, text: str) -> None:
    page.click(css)
    page.evaluate(f"document.querySelector('{css}').select?.(); 0")
    page.type(text)


async def test_a_form_says_what_is_wrong_and_shows_what_comes_of_it(
    api: Api, browser: Chromium, tmp_path: Path
) -> None:
    (photo := tmp_path / "photo.png").write_bytes(picture())

    def fill_in(page: Page) -> str:
        page.goto(f"{api.url}/console/workflows/blurred")
        page.see("#link-state", "live")
        page.click("#go")
        page.see("#e-0", "required")
        page.see("#e-1", "required")
        assert page.evaluate("document.activeElement.id") == "f-0"
        page.choose(photo, lambda: page.click("#f-0"))
        page.see("[data-said]", "uploaded")
        page.see(".file img")
        fill(page, "#f-1", "a name")
        fill(page, "#f-2", "999")
        fill(page, "#f-3", str(MAX_SEED))
        page.press("Enter", modifiers=2)
        page.see("#e-2", "512")  # as the fleet says it
        page.unseen("#e-1")
        assert page.evaluate("document.querySelector('#f-1').value") == "a name"
        fill(page, "#f-2", "32")
        page.press("Enter", modifiers=2)
        page.see(".result .pill", "queued")
        return str(page.evaluate("document.querySelector('.result').dataset.job"))

    with browser.page() as page:
        id_ = await asyncio.to_thread(fill_in, page)
        job = await api.stores.jobs.get(id_)
        assert job is not None
        assert (job.params["width"], job.params["seed"], job.params["name"]) == (32, MAX_SEED, "a name")
        claim = await api.claim(id_)
        progress = Progress(
            value=0.4,
            nodes_done=1,
            nodes_total=2,
            current_node="2",
            current_node_class="ImageScale",
            step=8,
            steps=20,
        )
        await api.stores.runs.progress(claim, progress)
        await asyncio.to_thread(page.see, ".result progress")
        await api.output(claim, picture())
        await api.finish(claim)
        await asyncio.to_thread(page.see, ".result .pill", "succeeded")
        await asyncio.to_thread(page.see, ".result .made img")
        await asyncio.to_thread(page.reload)
        await asyncio.to_thread(page.see, ".result .made img")
        assert page.complaints == []
