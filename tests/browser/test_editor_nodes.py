"""ComfyUI's editor from a fleet's editor node: it loads whole, extensions work, another node takes over."""

import subprocess
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.acceptance.up import start_fleet, stop_fleet
from tests.browser import graphs
from tests.browser.chromium import Chromium
from tests.browser.conftest import no_tour, wait_until_known
from tests.browser.editor import Editor, editor
from tests.browser.page import PageError
from tests.comfyui_chooser import SCRIPT, write_pack
from tests.comfyui_server import ComfyServer, started_comfyui, wait_until_it_answers

pytestmark = [pytest.mark.comfyui, pytest.mark.timeout(900)]
COLORS = count(0x305070)
CHOSEN = 3  # the node that saves what was chosen
CLOSED = {"/internal/folder_paths"}
"""What tells of a machine. The editor asks for it some time after it has opened a graph that lacks models,
and does without."""


@dataclass(frozen=True)
class House:
    """A fleet of two ComfyUIs: ``a``, whose editor people get, and ``b``, which alone has the chooser.

    Attributes:
        url: What a person types.
        bare: The node ``b`` itself, with all that it has.
        dying: The process of ``a``.
    """

    url: str
    bare: ComfyServer
    dying: subprocess.Popen[bytes]


@pytest.fixture(scope="module")
def house(comfyui_home: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    with ExitStack() as stack:
        (first, dying), (second, other) = (
            stack.enter_context(
                started_comfyui(comfyui_home, tmp_path_factory.mktemp(f"node-{name}"), packs=packs)
            )
            for name, packs in (("a", []), ("b", [write_pack]))
        )
        wait_until_it_answers(first, dying)
        wait_until_it_answers(second, other)
        named = ("--node", f"a={first.url}", "--node", f"b={second.url}")
        env = {"FLEET_EXTENSION_ROUTES": "/chooser"}
        up = start_fleet(tmp_path_factory.mktemp("house") / "data", *named, env=env)
        stack.callback(stop_fleet, up)
        wait_until_known(up.url)
        for url in (up.url, second.url):
            no_tour(url)
        yield House(up.url, second, dying)


def chooser(*, color: int) -> graphs.EditorGraph:
    """EmptyImage -> FleetChooser -> SaveImage."""
    graph = graphs.EditorGraph()
    made = graph.add("EmptyImage", 64, 64, 2, color, gives="IMAGE")
    asked = graph.add("FleetChooser", source=made, into="images", gives="IMAGE")
    graph.add("SaveImage", "chosen", source=asked, into="images")
    return graph


def complaints_of(page: Editor) -> set[str]:
    """Return what went wrong in the page, without its address."""
    page.page.evaluate("true")  # events are heard of while something is asked
    return {one.replace(page.url, "") for one in page.page.complaints}


def loaded(answers: Counter[tuple[int, str]]) -> set[str]:
    """Return the paths that were there."""
    return {path for status, path in answers if status < 400}


def paths(page: Editor) -> Counter[tuple[int, str]]:
    """Return what the page asked its server for, and how that was answered, but for its icon.

    The icon changes while the page is loading: it depends on the moment which of them the browser asks for.
    """
    page.page.evaluate("true")
    place = urlsplit(page.url).netloc
    asked = ((status, urlsplit(url)) for status, url in page.page.answers)
    return Counter(
        (status, url.path) for status, url in asked if url.netloc == place and "favicon" not in url.path
    )


def test_the_editor_loads_whole_and_without_a_complaint(browser: Chromium, house: House) -> None:
    with editor(browser, house.bare.url) as bare, editor(browser, house.url) as ours:

        def differences() -> dict[str, set[object]]:
            usual, complaints = complaints_of(bare), complaints_of(ours)
            theirs, its = paths(bare), paths(ours)
            wrong = {one for one in its.keys() - theirs.keys() if one[0] >= 400 and one[1] not in CLOSED}
            lacking = loaded(theirs) - loaded(its) - CLOSED
            return {"complaints": {*complaints - usual}, "wrong": {*wrong}, "lacking": {*lacking}}

        # Each goes on to load things when it can be used already.
        with suppress(PageError):
            ours.page.wait(lambda: not any(differences().values()), what="both have loaded the same")
        assert not any((found := differences()).values()), found
        got = loaded(paths(ours))
        assert SCRIPT in got  # `a` lacks it
        assert any(path.startswith("/assets/") for path in got)


def test_a_chooser_asks_in_the_page_and_the_run_goes_on(
    browser: Chromium, house: House, tmp_path: Path
) -> None:
    color = next(COLORS)
    with editor(browser, house.url) as page:
        page.load(chooser(color=color).write(tmp_path / "chooser.json"))
        page.run()
        page.wait_for_color(CHOSEN, color)
        page.idle()
        assert page.page.evaluate("window.fleetChoices") == [200]
        ((_, end),) = page.shown()["ends"]
        assert end == "execution_success"


def test_two_people_choose_at_once(browser: Chromium, house: House, tmp_path: Path) -> None:
    """One node has the chooser: the second run waits, and each choice gets to the run that it is for."""
    with editor(browser, house.url) as ann, editor(browser, house.url) as bob:
        colors = [next(COLORS), next(COLORS)]
        for page, color in zip((ann, bob), colors, strict=True):
            page.load(chooser(color=color).write(tmp_path / f"{color:x}.json"))
        for page in (ann, bob):
            page.run()
        for page, color in zip((ann, bob), colors, strict=True):
            page.wait_for_color(CHOSEN, color)
            assert page.page.evaluate("window.fleetChoices") == [200]


def test_when_the_editor_node_dies_a_reload_gives_the_others_editor(
    browser: Chromium, house: House, tmp_path: Path
) -> None:
    with editor(browser, house.url) as page:
        assert ticket(page).startswith("a~")
        page.load(graphs.picture("kept").write(tmp_path / "unsaved.json"))
        name = f"kept {next(COLORS):x}"
        page.save_as(name)
        house.dying.kill()
        house.dying.wait()
        # What is open goes on: the run is the other node's, and saving is the fleet's.
        color = next(COLORS)
        page.load(graphs.picture("after", color=color).write(tmp_path / "after.json"))
        page.run()
        page.wait_for_color(2, color)
        page.reload()
        assert ticket(page).startswith("b~")
        page.reopen(name)
        page.wait_for_nodes(["EmptyImage", "SaveImage"])
        assert page.widget(2, "filename_prefix") == "kept"


def ticket(page: Editor) -> str:
    """Return the cookie that names the person's editor node."""
    cookies = page.page.call("Network.getCookies", urls=[page.url])["cookies"]
    return str(next(one["value"] for one in cookies if one["name"] == "fleet_editor"))
