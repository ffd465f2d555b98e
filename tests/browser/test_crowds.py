"""Many jobs at once on four real nodes, as one person's editor shows them, alone and beside a stranger."""

from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest

from tests.acceptance.up import Up
from tests.browser import graphs
from tests.browser.chromium import Chromium
from tests.browser.conftest import Servers
from tests.browser.editor import Editor, editor
from tests.browser.people import ANN, EVE, client_of, fleet_of_people, signing_in

pytestmark = [pytest.mark.comfyui, pytest.mark.timeout(900)]
SAVER = 3
NODES = 4


@pytest.fixture(scope="module")
def keyed(servers: Servers, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    """A fleet of four real nodes and several people."""
    with fleet_of_people(servers.take(NODES), tmp_path_factory.mktemp("crowds")) as up:
        yield up


@pytest.fixture
def ann(browser: Chromium, keyed: Up) -> Iterator[Editor]:
    """Ann's editor, once she has signed in."""
    with editor(browser, keyed.url, signing_in(keyed.url, ANN)) as opened:
        yield opened


def never_jumps(shown: dict[str, Any], prompts: set[str]) -> None:
    """Check that the progress of each prompt was shown in one go, and only ever rose.

    The end of another prompt comes in between, with its pictures, but none of its progress.
    """
    changes = shown["changes"]
    assert {change["active"] for change in changes} - {None} == prompts
    of = [{of for of, *_ in change["progress"]} for change in changes]
    assert all(len(prompts_of) <= 1 for prompts_of in of), "progress of two prompts at once"
    order = [prompt for prompt, _ in groupby(next(iter(one)) for one in of if one)]
    assert len(order) == len(set(order)) > 0, f"progress went back: {order}"
    assert set(order) <= prompts
    reached: dict[tuple[str, str], float] = {}
    for change in changes:
        for prompt, node, _, value, _ in change["progress"]:
            assert value >= reached.get((prompt, node), 0), f"progress of {prompt} fell"
            reached[prompt, node] = value
    assert all(prompt in (active, None) for prompt, active in shown["previews"] if active)


def test_eight_queued_runs_are_shown_one_after_the_other(ann: Editor, tmp_path: Path) -> None:
    ann.load(graphs.steps("eight", steps=8, seconds=2).write(tmp_path / "eight.json"))
    for _ in range(8):
        ann.run()
    found = ann.wait_for_pictures(8, node=SAVER)
    ann.idle()
    prompts = {one["prompt"] for one in found}
    assert len(prompts) == len(found) == len({one["filename"] for one in found}) == 8
    shown = ann.shown()
    assert sorted(shown["ends"]) == sorted([prompt, "execution_success"] for prompt in prompts)
    never_jumps(shown, prompts)


def test_a_run_beside_a_stranger_with_fifty_queued_jobs(ann: Editor, keyed: Up, tmp_path: Path) -> None:
    with client_of(keyed, EVE) as eve:
        long: dict[str, Any] = {
            "1": {
                "class_type": "EmptyImage",
                "inputs": {"width": 8, "height": 8, "batch_size": 1, "color": 1},
            },
            "2": {
                "class_type": "FleetSteps",
                "inputs": {"image": ["1", 0], "steps": 4, "seconds": 2.0, "seed": 0},
            },
            "3": {"class_type": "SaveImage", "inputs": {"images": ["2", 0], "filename_prefix": "eve"}},
        }
        held: list[str] = []  # a prompt on each node, until Ann's slow browser has shown that hers wait
        for number in range(50):
            long["2"]["inputs"] |= {"seed": number, "seconds": 600.0 if number < NODES else 2.0}
            sent = eve.post("/prompt", json={"prompt": long})
            assert sent.status_code == 200, sent.text
            if number < NODES:
                held.append(sent.json()["prompt_id"])
        ann.page.wait(
            lambda: len(eve.get("/queue").json()["queue_running"]) == NODES, what="Eve has all nodes"
        )
        color = 0x10A0B0
        ann.load(graphs.picture("ann", color=color).write(tmp_path / "ann.json"))
        ann.batch(3)
        ann.run()
        ann.page.wait(lambda: ann.counts()[:2] == (0, 3), what="Ann's three wait behind the stranger's")
        assert ann.shown()["changes"][-1]["progress"] == [], "nobody sees a stranger's progress"
        ann.open_jobs()
        ann.clear()
        ann.idle()
        assert eve.get("/queue").json()["queue_pending"], "who clears the queue clears one's own"
        for prompt in held:
            assert eve.post("/interrupt", json={"prompt_id": prompt}).status_code == 200

        ann.batch(1)
        ann.run()
        ann.wait_for_color(2, color)
        ann.load(graphs.steps("ann", steps=4, seconds=1).write(tmp_path / "steps.json"))
        ann.batch(3)
        ann.run()
        ann.page.wait(lambda: ann.color(2) not in (-1, graphs.GREEN), what="a preview is shown")
        found = ann.wait_for_pictures(3, node=SAVER)
        ann.idle()
        prompts = {one["prompt"] for one in ann.shown()["executed"]}
        assert len(prompts) == 4 and len(found) == 3
        never_jumps(ann.shown(), prompts)
        ann.page.wait(lambda: len(ann.jobs()) >= 4, what="four jobs are listed")
        assert not any("eve" in row for row in ann.jobs())
        ended = eve.get("/history").json()
        assert not prompts & set(ended)
