"""An artist's whole round on real nodes: draw, publish, change, publish again, go back; programs follow."""

import io
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from PIL import Image

from tests.acceptance.up import Up
from tests.browser import graphs
from tests.browser.chromium import Chromium
from tests.browser.conftest import Servers
from tests.browser.editor import Editor, editor
from tests.browser.page import Page
from tests.browser.people import ANN, EVE, client_of, fleet_of_people, signing_in

pytestmark = [pytest.mark.comfyui, pytest.mark.timeout(900)]
TEAL, AMBER = 0x208080, 0xE0A020
JOB_S = 150.0


@pytest.fixture(scope="module")
def up(servers: Servers, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    with fleet_of_people(servers.take(2), tmp_path_factory.mktemp("round")) as started:
        yield started


def card(color: int) -> graphs.EditorGraph:
    """A picture in one color, whose width is a parameter."""
    graph = graphs.EditorGraph()
    made = graph.add("EmptyImage", 64, 48, 1, color, gives="IMAGE", title="$width")
    graph.add("SaveImage", "card", source=made, into="images")
    return graph


def program_gets(up: Up, reference: str, width: int) -> tuple[int, tuple[int, int]]:
    """Run a stored workflow as a program does; returns the color and the size of its picture."""
    with client_of(up, EVE) as program:
        made = program.post(f"/api/v1/workflows/{reference}/jobs", json={"params": {"width": width}})
        assert made.status_code in (200, 201, 202), made.text
        place = f"/api/v1/jobs/{made.json()['id']}"
        deadline = time.monotonic() + JOB_S
        while (job := program.get(place).json())["status"] not in ("succeeded", "failed", "canceled"):
            assert time.monotonic() < deadline, f"the job did not end: {job}"
            time.sleep(0.05)
        assert job["status"] == "succeeded", job
        picture = Image.open(io.BytesIO(program.get(job["outputs"][0]["url"]).content)).convert("RGB")
        red, green, blue = picture.getpixel((1, 1))  # type: ignore[misc] # of an RGB picture: three numbers
        return (red << 16) | (green << 8) | blue, picture.size


def publish(browser: Chromium, page: Editor, note: str, look: Callable[[str, Page], object]) -> None:
    """Publish the open graph: the menu's command, the checks with their test run, and the confirmation."""
    page.menu("File", "Publish to fleet")
    console = browser.tab(page.page)
    console.click("button", "Check and test")
    console.see("h2", "Publish")
    look("check", console)
    console.click("input[name=note]")
    console.type(note)
    console.click("form[aria-labelledby=publish] button")
    console.until("location.search.includes('published=')", what="it is published")
    look("published", console)
    browser.close(console)


def whole_round(
    browser: Chromium, up: Up, folder: Path, look: Callable[[str, Page], object] = lambda *_: None
) -> None:
    """Do what :file:`docs/howto/edit-a-workflow.md` says.

    Args:
        browser: Where.
        up: A fleet of real nodes, in which Ann is an artist.
        folder: For the file that she starts with.
        look: Called with a name and a page wherever there is something to see.
    """
    with editor(browser, up.url, signing_in(up.url, ANN)) as page:
        page.load(card(TEAL).write(folder / "card.json"))
        page.save_as("Greeting card")
        page.run()
        page.wait_for_color(2, TEAL)
        look("editor", page.page)
        publish(browser, page, "the first one", look)
        assert program_gets(up, "greeting_card", 32) == (TEAL, (32, 48))

        page.set_widget(1, "color", AMBER)
        page.run()
        page.wait_for_color(2, AMBER)
        assert program_gets(up, "greeting_card", 32) == (TEAL, (32, 48)), "nothing is published by running"
        publish(browser, page, "warmer", look)
        assert program_gets(up, "greeting_card", 40) == (AMBER, (40, 48))

        page.menu("File", "Stored workflows of the fleet")
        console = browser.tab(page.page)
        console.click("a", "greeting_card")
        console.see("h1", "greeting_card")
        look("history", console)
        console.click("button", "Go back to it")
        console.wait(
            lambda: program_gets(up, "greeting_card", 24)[0] == TEAL, what="programs get the first one"
        )
        browser.close(console)

        # What is in production now opens in the editor again, as it was.
        page.page.goto(f"{up.url}/?fleet_workflow=greeting_card")
        page.page.wait(lambda: page.widget(1, "color") == TEAL, what="the first one is open")


def test_an_artists_whole_round(browser: Chromium, up: Up, tmp_path: Path) -> None:
    whole_round(browser, up, tmp_path)


RECORD_TOASTS = """(() => {
  const toasts = window.app.extensionManager.toast, add = toasts.add;
  window.__told = [];
  toasts.add = (toast) => { window.__told.push(toast.detail ?? ""); return add.call(toasts, toast); };
  return true;
})()"""
NEEDS_RUN = "Run it once to make a draft that can be published."


def test_a_save_that_was_never_run_says_once_that_it_needs_a_run(
    browser: Chromium, up: Up, tmp_path: Path
) -> None:
    with editor(browser, up.url, signing_in(up.url, ANN)) as page:
        page.page.evaluate(RECORD_TOASTS)

        def told() -> int:
            said: list[str] = page.page.evaluate("window.__told")
            return said.count(NEEDS_RUN)

        page.load(card(TEAL).write(tmp_path / "ran.json"))
        page.run()
        page.wait_for_color(2, TEAL)
        page.save_as("Was run")
        page.load(card(AMBER - 1).write(tmp_path / "plain.json"))
        page.save_as("Never run")
        page.page.see(".p-toast", NEEDS_RUN)
        page.set_widget(1, "color", AMBER - 3)
        page.save()
        page.wait_until_saved("Never run")
        page.load(card(AMBER - 2).write(tmp_path / "other.json"))
        page.save_as("Never run either")
        page.page.wait(lambda: told() >= 2, what="the other one is told of")
        assert told() == 2
