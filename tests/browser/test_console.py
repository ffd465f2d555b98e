"""The console in a browser: for eyes, for keyboards and for screen readers, and up to date by itself."""

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import pytest
from PIL import Image
from redis.asyncio import Redis

from comfy_fleet.domain.jobs.job import JobError, JobStatus, Progress
from tests.browser.chromium import Chromium
from tests.browser.page import Page
from tests.factories import GRAPH
from tests.integration.api_kit import Api, running

AXE = (Path(__file__).parent / "vendor" / "axe.min.js").read_text()
DESK, PHONE = (1280, 800), (390, 800)

pytestmark = pytest.mark.timeout(600)


@dataclass
class Shown:
    """A fleet with a job of each kind.

    Attributes:
        done, failed, running: Ids of jobs.
    """

    api: Api
    done: str
    failed: str
    running: str

    @property
    def paths(self) -> list[str]:
        jobs = [f"jobs/{job}" for job in (self.done, self.failed, self.running)]
        workflows = ["workflows", "workflows/image_card", "workflows/image_card/versions"]
        figures = ["models", "models/missing", "models/unequal", "usage", "people"]
        return ["overview", "nodes", "nodes/g1", "queue", "jobs", *jobs, *workflows, *figures]


@pytest.fixture
async def shown(redis_port: int, redis: Redis, tmp_path: Path) -> AsyncIterator[Shown]:
    async with running(redis_port, tmp_path) as api:
        for name in ("g1", "g2", "g3"):
            await api.add_node(name)
        picture = BytesIO()
        Image.new("RGB", (96, 64), "teal").save(picture, "PNG")
        ids = [(await api.submit(GRAPH))["id"] for _ in range(4)]
        done = await api.claim(ids[0], "g1")
        await api.output(done, picture.getvalue())
        await api.finish(done)
        failed = await api.claim(ids[1], "g1")
        error = JobError(
            code="node_error", message="out of luck", details={"story": ["0.1 begun", "0.2 over"]}
        )
        await api.stores.runs.left(failed, [])
        await api.stores.runs.finish(failed, JobStatus.FAILED, error=error, duration_s=1.0)
        runs = await api.claim(ids[2], "g2")
        progress = Progress(
            value=0.4,
            nodes_done=1,
            nodes_total=2,
            current_node="1",
            current_node_class="KSampler",
            step=8,
            steps=20,
        )
        await api.stores.runs.progress(runs, progress)
        await api.stores.nodes.report("g3", verdict="down", why="no route to it")
        yield Shown(api, ids[0], ids[1], ids[2])


def look(page: Page, size: tuple[int, int], scheme: str) -> None:
    page.call(
        "Emulation.setDeviceMetricsOverride",
        width=size[0],
        height=size[1],
        deviceScaleFactor=1,
        mobile=False,
    )
    page.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])


def violations(page: Page) -> list[str]:
    run = "axe.run(document, {resultTypes: ['violations']}).then((found) => JSON.stringify(found.violations))"
    return [f"{one['id']}: {one['nodes'][0]['html'][:200]}" for one in json.loads(page.evaluate(run))]


async def test_no_page_keeps_anybody_out(shown: Shown, browser: Chromium) -> None:
    def visit() -> None:
        with browser.page() as page:
            for path in shown.paths:
                look(page, DESK, "light")
                page.goto(f"{shown.api.url}/console/{path}")
                page.see("#link-state", "live")
                page.evaluate(f"{AXE}; 0")
                for size, scheme in ((DESK, "light"), (DESK, "dark"), (PHONE, "light")):
                    look(page, size, scheme)
                    assert violations(page) == [], (path, size, scheme)
                wide = page.evaluate("document.documentElement.scrollWidth")
                assert wide <= PHONE[0], f"{path} is {wide} pixels wide on a phone"
            # Nor has a policy refused anything, or a script failed.
            assert page.complaints == []
            assert [one for one in page.answers if one[0] >= 400] == []

    await asyncio.to_thread(visit)


async def test_a_keyboard_is_enough_and_what_happens_shows_by_itself(shown: Shown, browser: Chromium) -> None:
    def focused(page: Page) -> str:
        return str(page.evaluate("document.activeElement.id || document.activeElement.className"))

    def open_and_drain(page: Page) -> None:
        page.goto(f"{shown.api.url}/console/nodes")
        page.see("#link-state", "live")
        page.press("Tab")
        assert focused(page) == "skip"
        page.press("Enter")
        page.until("location.hash === '#main'", what="the content is jumped to")
        for _ in range(60):
            page.press("Tab")
            if focused(page) == "do-g1":
                break
        assert focused(page) == "do-g1"
        page.press("Enter")
        page.see("#told", "g1 is drained")
        page.see("#node-g1 .pill", "drained")
        assert focused(page) == "do-g1"  # the button that resumes it now
        page.see("#do-g1", "Resume")

    with browser.page() as page:
        await asyncio.to_thread(open_and_drain, page)
        (node,) = [one.node for one in await shown.api.stores.nodes.states() if one.node.name == "g1"]
        assert node.cordoned
        # What somebody else does.
        await shown.api.stores.nodes.report("g3", verdict="up", why="")
        await asyncio.to_thread(page.see, "#node-g3 .pill", "idle")
        await shown.api.stores.nodes.uncordon("g1")
        await asyncio.to_thread(page.see, "#do-g1", "Drain")
        assert page.complaints == []


async def test_filters_and_cancels_need_no_new_page(shown: Shown, browser: Chromium) -> None:
    def visit() -> None:
        with browser.page() as page:
            page.goto(f"{shown.api.url}/console/jobs")
            page.evaluate("window.__same = true")
            page.see(f"#j-{shown.failed}")
            page.evaluate(
                "const one = document.querySelector('select[name=status]'); one.value = 'succeeded';"
                "one.dispatchEvent(new Event('input', {bubbles: true})); 0"
            )
            page.unseen(f"#j-{shown.failed}")
            page.see(f"#j-{shown.done}")
            assert page.evaluate("location.search") == "?status=succeeded"
            page.goto(f"{shown.api.url}/console/jobs/{shown.running}")
            page.see("#do-cancel")
            page.click("#do-cancel")
            page.see(".pill", "canceling")
            assert page.dialogs == ["Cancel this job?"]
            assert page.complaints == []

    await asyncio.to_thread(visit)
