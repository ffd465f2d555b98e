"""Many jobs at once on four real nodes, as one person's editor shows them, alone and beside a stranger."""

from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.acceptance.up import Up
from tests.browser import graphs
from tests.browser.chromium import Chromium
from tests.browser.conftest import Servers, fleet_of_real, no_tour, wait_until_known
from tests.browser.editor import Editor, editor
from tests.browser.page import Page

pytestmark = [pytest.mark.comfyui, pytest.mark.timeout(240)]
ANN, EVE, OPS = "ann-key-0123456789abcdef", "eve-key-0123456789abcdef", "ops-key-0123456789abcdef"
AGENT = "agent-token-0123456789abcdef"
SAVER = 3


@pytest.fixture(scope="module")
def keyed(servers: Servers, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    """A fleet of four real nodes and several people."""
    folder = tmp_path_factory.mktemp("crowds")
    keys = folder / "keys"
    keys.write_text(f"ann {ANN}\neve {EVE}\nops {OPS} admin\n")
    env = {"FLEET_KEYS_FILE": str(keys), "FLEET_AGENT_TOKEN": AGENT}
    with fleet_of_real(servers.take(4), folder / "data", **env) as up:
        wait_until_known(up.url, **{"X-API-Key": ANN})
        no_tour(up.url, **{"X-API-Key": ANN})
        yield up


def signed_in(url: str, key: str) -> Any:
    """Return what signs a person in, in an empty page."""

    def sign_in(page: Page) -> None:
        page.goto(f"{url}/")
        page.click("input[name=key]")
        page.type(key)
        page.press("Enter")
        page.until("!!document.querySelector('#vue-app')", what="the editor is served", patience_s=40)

    return sign_in


@pytest.fixture
def ann(browser: Chromium, keyed: Up) -> Iterator[Editor]:
    """Ann's editor, once she has signed in."""
    with editor(browser, keyed.url, signed_in(keyed.url, ANN)) as opened:
        yield opened


def never_jumps(shown: dict[str, Any], prompts: set[str]) -> None:
    """Check that the progress of each prompt was shown in one go, and only ever rose."""
    changes = shown["changes"]
    active = [one for one, _ in groupby(change["active"] for change in changes) if one is not None]
    assert len(active) == len(set(active)), f"shown in parts: {active}"
    assert set(active) <= prompts
    of = [{of for of, *_ in change["progress"]} for change in changes]
    assert all(len(prompts_of) <= 1 for prompts_of in of), "progress of two prompts at once"
    order = [next(iter(one)) for one, _ in groupby(of) if one]
    assert len(order) == len(set(order)), f"progress went back: {order}"
    reached: dict[tuple[str, str], float] = {}
    for change in changes:
        for prompt, node, _, value, _ in change["progress"]:
            assert value >= reached.get((prompt, node), 0), f"progress of {prompt} fell"
            reached[prompt, node] = value
    assert all(prompt == shown_one for prompt, shown_one in shown["previews"] if shown_one is not None)


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
    with httpx.Client(base_url=keyed.url, headers={"X-API-Key": EVE}, timeout=60) as eve:
        long: dict[str, Any] = {
            "1": {
                "class_type": "EmptyImage",
                "inputs": {"width": 8, "height": 8, "batch_size": 1, "color": 1},
            },
            "2": {
                "class_type": "FleetSteps",
                "inputs": {"image": ["1", 0], "steps": 20, "seconds": 2.0, "seed": 0},
            },
            "3": {"class_type": "SaveImage", "inputs": {"images": ["2", 0], "filename_prefix": "eve"}},
        }
        for number in range(50):
            long["2"]["inputs"] |= {"seed": number}
            assert eve.post("/prompt", json={"prompt": long}).status_code == 200
        color = 0x10A0B0
        ann.load(graphs.picture("ann", color=color).write(tmp_path / "ann.json"))
        ann.run()
        ann.wait_for_color(2, color, patience_s=60)
        ann.load(graphs.steps("ann", steps=4, seconds=1).write(tmp_path / "steps.json"))
        ann.batch(3)
        ann.run()
        ann.page.wait(
            lambda: ann.color(2) not in (-1, graphs.GREEN), what="a preview is shown", patience_s=60
        )
        found = ann.wait_for_pictures(3, node=SAVER)
        ann.idle()
        waiting = len(eve.get("/queue").json()["queue_pending"])
        assert waiting > 10, "the stranger's jobs should not be over yet"
        prompts = {one["prompt"] for one in ann.shown()["executed"]}
        assert len(prompts) == 4 and len(found) == 3
        never_jumps(ann.shown(), prompts)
        ann.open_jobs()
        ann.page.wait(lambda: len(ann.jobs()) >= 4, what="Ann's jobs are listed")
        assert not any("eve" in row for row in ann.jobs())
        assert eve.post("/queue", json={"clear": True}).status_code == 200
