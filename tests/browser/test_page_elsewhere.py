"""The page in ``docs/howto/own-page.md``, as printed, in a browser, at another address than the fleet."""

import asyncio
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, TypeVar

import httpx
import pytest
from PIL import Image
from redis.asyncio import Redis

from comfy_fleet.domain.jobs.job import Progress
from tests.browser.chromium import Chromium
from tests.browser.page import Page
from tests.children import mortal
from tests.conftest import free_port
from tests.fakes.nodes import FakeNodeRegistry
from tests.fleet import until
from tests.integration import haproxy_kit
from tests.integration.api_kit import Api, running
from tests.unit.test_docs import split

DOCUMENT = Path(__file__).parents[2] / "docs" / "howto" / "own-page.md"
KEY = "shop-key-shop-key-shop"
SHORT_S = 3
R = TypeVar("R")

pytestmark = pytest.mark.timeout(600)


@dataclass
class Shop:
    """A fleet, and a shop whose page follows jobs there.

    Attributes:
        fleet: The fleet's address.
        url: The shop's, by a name of its own that the fleet lists.
        unlisted: The same by a name that it does not list.
        brief: Another one, whose URLs hold for a moment only.
    """

    api: Api
    fleet: str
    url: str
    unlisted: str
    brief: str

    async def running_job(self, number: int) -> Any:
        """Wait until so many jobs were made, and start the last one."""

        async def made() -> list[str]:
            listed = (await self.api.client.get("/api/v1/jobs")).json()["jobs"]
            return [one["id"] for one in listed][: 1 if len(listed) == number else 0]

        await until(made, what="the job is there")
        return await self.api.claim((await made())[0])


@contextmanager
def _serving(folder: Path, fleet: str, port: int, lasts_s: int) -> Iterator[None]:
    env = {**os.environ, "FLEET": fleet, "FLEET_API_KEY": KEY, "PORT": str(port), "LASTS_S": str(lasts_s)}
    command = mortal([sys.executable, "server.py"])
    process = subprocess.Popen(command, cwd=folder, env=env, stderr=subprocess.DEVNULL)
    try:
        yield
    finally:
        process.terminate()
        process.wait(30)


@pytest.fixture
async def shop(redis_port: int, redis: Redis, tmp_path: Path) -> AsyncIterator[Shop]:
    """A real edge in front of an API, and the server that the page's document has."""
    blocks, _ = split(DOCUMENT.read_text())
    for name, language in (("server.py", "python"), ("index.html", "html")):
        (found,) = [text for kind, text in blocks if kind == language]
        (tmp_path / name).write_text(found)
    keys = tmp_path / "keys"
    keys.write_text(f"shop {KEY}\n")
    keys.chmod(0o600)
    folder = tmp_path / "e"
    folder.mkdir()
    port, brief = free_port(), free_port()
    listed: dict[str, Any] = {"cors_origins": f"http://localhost:{port}"}
    async with running(redis_port, tmp_path / "data", keys_file=keys, **listed) as api:
        await api.add_node(info=False)
        api.client.headers["Authorization"] = f"Bearer {KEY}"
        settings = haproxy_kit.make_settings(folder, api_port=httpx.URL(api.url).port, **listed)
        fleet = f"http://127.0.0.1:{settings.port}"
        async with haproxy_kit.running(folder, FakeNodeRegistry([]), settings=settings):
            with _serving(tmp_path, fleet, port, 600), _serving(tmp_path, fleet, brief, SHORT_S):
                await until(lambda: _answers(port) and _answers(brief), what="the shop is open")
                here = "http://127.0.0.1"
                yield Shop(api, fleet, f"http://localhost:{port}", f"{here}:{port}", f"{here}:{brief}")


def _answers(port: int) -> bool:
    try:
        return httpx.get(f"http://127.0.0.1:{port}/").is_success
    except httpx.TransportError:
        return False


async def _seen(look: Callable[[], R]) -> R:
    """Let the browser work in a thread: the fleet is served by this one."""
    return await asyncio.to_thread(look)


def _draw(page: Page, url: str) -> None:
    page.goto(url)
    page.click("input")
    page.type("a fox")
    page.click("button", "Draw it")
    page.see("p", "waits for its turn")


def _png() -> bytes:
    made = BytesIO()
    Image.new("RGB", (64, 48), "#2a9d8f").save(made, "PNG")
    return made.getvalue()


async def test_a_page_elsewhere_shows_progress_and_picture_without_a_key(
    browser: Chromium, shop: Shop, tmp_path: Path
) -> None:
    with browser.page() as page:
        await _seen(lambda: _draw(page, shop.unlisted))
        claim = await shop.running_job(1)
        for share in (0.25, 0.75):
            await shop.api.stores.runs.progress(claim, Progress(value=share, nodes_done=1, nodes_total=4))
            await _seen(
                lambda at=share: page.until(  # type: ignore[misc]
                    f"document.querySelector('progress').value === {at}", what="the progress moves"
                )
            )
        await _seen(lambda: page.see("p", "It is being drawn"))
        await shop.api.output(claim, _png())
        await shop.api.finish(claim)
        shown = "document.querySelector('img').naturalWidth"
        for _ in range(2):  # and once more, loaded again
            await _seen(lambda: page.see("p", "It is ready."))
            assert await _seen(lambda: page.until(shown, what="the picture is shown")) == 64
            assert await _seen(lambda: page.sees("img")) and not await _seen(lambda: page.sees("progress"))
            await _seen(lambda: page.screenshot(tmp_path / "ready.png"))
            await _seen(page.reload)
        assert not page.complaints
        asked = [url for _, url in page.answers]
        assert any(url.startswith(f"{shop.fleet}/api/v2/assets/") for url in asked)
        whole = await _seen(lambda: page.evaluate("document.documentElement.outerHTML"))
        assert not any(KEY in text for text in (whole, *asked))

        # A signature reads this job alone; all else needs a key, which only a listed page may show.
        job = f"{shop.fleet}/api/v2/jobs/{claim.job.id}"
        fetched = """fetch(%r, {headers: %s}).then((answer) => answer.status, () => "blocked")"""
        bare, with_key = "{}", f"{{Authorization: 'Bearer {KEY}'}}"
        assert await _seen(lambda: page.evaluate(fetched % (job, bare))) == "blocked"
        assert await _seen(lambda: page.evaluate(fetched % (job, with_key))) == "blocked"
        await _seen(lambda: page.goto(shop.url))
        assert await _seen(lambda: page.evaluate(fetched % (job, bare))) == 401
        assert await _seen(lambda: page.evaluate(fetched % (job, with_key))) == 200


async def test_a_page_says_that_its_link_holds_no_more_and_goes_on(browser: Chromium, shop: Shop) -> None:
    with browser.page() as page:
        await _seen(lambda: _draw(page, shop.brief))
        claim = await shop.running_job(1)
        await _seen(lambda: page.see("p", "longer than your link holds"))
        assert any(status == 403 and "/events?expires=" in url for status, url in page.answers)
        await shop.api.output(claim, _png())
        await shop.api.finish(claim)
        await _seen(lambda: page.click("button", "Go on"))
        await _seen(lambda: page.see("p", "It is ready."))
        await _seen(lambda: page.until("document.querySelector('img').naturalWidth", what="it is shown"))
        # Removed: told, too.
        assert (await shop.api.client.delete(f"/api/v1/jobs/{claim.job.id}")).is_success
        await _seen(page.reload)
        await _seen(lambda: page.see("p", "can't be reached"))
