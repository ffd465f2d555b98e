"""What is left in a person's editor when its node is killed, or the whole fleet is started again."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from subprocess import Popen

import httpx
import pytest

from tests.acceptance.up import Up, start_fleet, stop_fleet
from tests.browser import graphs
from tests.browser.chromium import Chromium
from tests.browser.conftest import KNOWN_S, Servers, named, no_tour, wait_until_known
from tests.browser.editor import Editor, editor
from tests.comfyui_server import ComfyServer, started_comfyui, wait_until_it_answers

pytestmark = [pytest.mark.comfyui, pytest.mark.timeout(900)]
SAVER = 3


@dataclass
class Mortal:
    """A fleet of two nodes, the first of which a test may kill."""

    up: Up
    nodes: list[ComfyServer]
    first: Popen[bytes]

    def restart(self) -> None:
        """Stop the fleet and start it again on its port."""
        stop_fleet(self.up)
        port = int(self.up.url.rsplit(":", 1)[1])
        self.up = start_fleet(self.up.data, *named(self.nodes), port=port, within_s=KNOWN_S)


@pytest.fixture
def fleet(comfyui_home: Path, servers: Servers, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mortal]:
    folder = tmp_path_factory.mktemp("recovery")
    (folder / "comfyui").mkdir()
    with started_comfyui(comfyui_home, folder / "comfyui") as (first, process):
        nodes = [first, *servers.take(1)]
        wait_until_it_answers(first, process)
        # The first by name of those with the newest ComfyUI serves the editor.
        made = Mortal(start_fleet(folder / "data", *named(nodes), within_s=KNOWN_S), nodes, process)
        try:
            wait_until_known(made.up.url)
            no_tour(made.up.url)
            yield made
        finally:
            stop_fleet(made.up)


@pytest.fixture
def page(browser: Chromium, fleet: Mortal) -> Iterator[Editor]:
    with editor(browser, fleet.up.url) as opened:
        yield opened


def put_subgraph(url: str, name: str) -> None:
    """Save a subgraph as the editor does: a graph whose only node is an instance of the definition."""
    kind = "0b5c1c5e-90a1-4e9d-8a51-0d9e8b8c7f10"
    inner = graphs.picture().document()
    ends = {"bounding": [0, 0, 120, 60]}
    definition = {
        "id": kind,
        "version": 1,
        "revision": 0,
        "config": {},
        "name": name,
        "inputs": [],
        "outputs": [],
        "widgets": [],
        "nodes": inner["nodes"],
        "groups": [],
        "extra": {},
        "state": {"lastGroupId": 0, "lastNodeId": 2, "lastLinkId": 1, "lastRerouteId": 0},
        "inputNode": {"id": -10, **ends},
        "outputNode": {"id": -20, **ends},
        "links": [
            {"id": 1, "origin_id": 1, "origin_slot": 0, "target_id": 2, "target_slot": 0, "type": "IMAGE"}
        ],
    }
    outer = graphs.EditorGraph()
    outer.add(kind)
    document = {**outer.document(), "definitions": {"subgraphs": [definition]}}
    answer = httpx.post(f"{url}/api/userdata/subgraphs%2F{name}.json", json=document, timeout=30)
    assert answer.status_code == 200, answer.text


def test_the_editors_node_is_killed_while_a_graph_is_open(
    page: Editor, fleet: Mortal, tmp_path: Path
) -> None:
    put_subgraph(fleet.up.url, "kept_subgraph")
    page.reload()
    page.load(graphs.picture("open", color=0x306090).write(tmp_path / "picture.json"))
    page.save_as("open when it died")
    page.close_minimap()
    page.set_widget(1, "color", 0x609030)  # and not saved
    fleet.first.kill()
    # The page is there and goes on: the fleet runs the graph elsewhere, and keeps what is saved.
    page.run()
    page.wait_for_color(2, 0x609030)
    page.save()
    page.wait_until_saved("open when it died")
    heard = len(page.page.answers)
    page.reload()
    page.wait_for_nodes(["EmptyImage", "SaveImage"])
    assert page.store("workflow.activeWorkflow.filename") == "open when it died"
    assert page.widget(1, "color") == 0x609030
    assert page.store("setting.settingValues['Comfy.Minimap.Visible']") is False
    page.page.wait(
        # Answers are heard of while something is asked.
        lambda: (
            page.page.evaluate("true")
            and any(
                status == 200 and url.endswith("subgraphs%2Fkept_subgraph.json")
                for status, url in page.page.answers[heard:]
            )
        ),
        what="the editor has read the subgraph",
    )
    page.set_widget(1, "color", 0x903060)
    page.run()
    page.wait_for_color(2, 0x903060)


def test_the_fleet_is_started_again_while_jobs_wait(page: Editor, fleet: Mortal, tmp_path: Path) -> None:
    page.load(graphs.steps("again", steps=5, seconds=4).write(tmp_path / "again.json"))
    page.save_as("open when it stopped")
    page.batch(5)
    page.run()
    page.page.wait(lambda: sum(page.counts()) == 5, what="five jobs are queued")
    page.page.wait(lambda: page.color(2) != -1, what="a preview is shown")
    fleet.restart()
    # Nobody presses F5: the page's own socket comes back.
    page.page.wait(lambda: page.counts() == (0, 0, 5), what="five jobs have ended in the page")
    found = httpx.get(f"{fleet.up.url}/history", timeout=30).json()
    pictures = {
        image["filename"] for entry in found.values() for image in entry["outputs"][str(SAVER)]["images"]
    }
    assert len(found) == len(pictures) == 5
    page.wait_for_color(SAVER, graphs.GREEN)
    page.reload()
    page.wait_for_nodes(["EmptyImage", "FleetSteps", "SaveImage"])
    assert page.store("workflow.activeWorkflow.filename") == "open when it stopped"
    page.page.wait(lambda: page.counts() == (0, 0, 5), what="the list of jobs is the same")
