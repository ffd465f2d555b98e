"""What a person does in ComfyUI's editor, on a bare ComfyUI and on fleets: both must show the same."""

from collections.abc import Iterator
from itertools import count
from pathlib import Path

import pytest

from tests.browser import graphs
from tests.browser.chromium import Chromium
from tests.browser.conftest import Place, leave_idle
from tests.browser.editor import MINIMAP_CLOSER, Editor, editor

pytestmark = [pytest.mark.comfyui, pytest.mark.timeout(900)]
COLORS = count(0x204060)  # a new one each time: a picture of an earlier run can't be taken for this one's
SAVER = 3  # the node that saves, in a graph of three


@pytest.fixture
def page(browser: Chromium, place: Place) -> Iterator[Editor]:
    with editor(browser, place.url) as opened:
        yield opened
    leave_idle(place.url)


def wait_until_run(page: Editor, count: int) -> None:
    page.page.wait(lambda: page.counts()[:2] == (count, 0), what=f"{count} run and none waits")


def test_a_graph_runs_and_its_picture_is_shown(page: Editor, tmp_path: Path) -> None:
    color = next(COLORS)
    page.load(graphs.picture(color=color).write(tmp_path / "picture.json"))
    assert page.color(2) == -1
    page.run()
    page.wait_for_color(2, color)
    page.idle()
    assert page.active() is None
    assert page.page.evaluate("document.title") == "*picture - ComfyUI"


def test_a_preview_is_shown(page: Editor, tmp_path: Path) -> None:
    color = next(COLORS)
    page.load(graphs.preview(color=color).write(tmp_path / "preview.json"))
    page.run_by_keys()
    page.wait_for_color(2, color)


def test_progress_and_previews_are_shown_while_a_job_runs(page: Editor, tmp_path: Path) -> None:
    page.load(graphs.steps(steps=5, seconds=2).write(tmp_path / "steps.json"))
    page.run()
    page.wait_for_color(SAVER, graphs.GREEN)
    page.idle()
    shown = page.shown()
    (prompt,) = {change["active"] for change in shown["changes"]} - {None}
    steps = [
        value
        for change in shown["changes"]
        for of, node, state, value, _ in change["progress"]
        if (of, node, state) == (prompt, "2", "running")
    ]
    assert steps == sorted(steps) and set(steps) >= {1, 2, 3, 4}
    assert shown["ends"] == [[prompt, "execution_success"]]
    assert {of for of, _ in shown["previews"]} == {prompt}


def test_the_list_of_jobs_and_the_graph_of_one_that_has_finished(page: Editor, tmp_path: Path) -> None:
    color = next(COLORS)
    page.load(graphs.picture("listed", color=color).write(tmp_path / "listed.json"))
    page.run()
    page.wait_for_color(2, color)
    page.load(graphs.preview().write(tmp_path / "other.json"))
    page.open_jobs()
    page.page.wait(lambda: any("s" in row for row in page.jobs()), what="the job is listed")
    loaded = f"[...document.querySelectorAll('{page.words.row} img')].every((one) => one.naturalWidth > 0)"
    page.page.until(f"document.querySelector('{page.words.row} img') && {loaded}", what="pictures are listed")
    page.open_job()
    page.wait_for_nodes(["EmptyImage", "SaveImage"])
    assert page.widget(1, "color") == color
    assert page.widget(2, "filename_prefix") == "listed"


def test_a_job_that_ends_after_a_later_one_is_listed_too(page: Editor, place: Place, tmp_path: Path) -> None:
    page.load(graphs.steps("slow", steps=1000, seconds=600).write(tmp_path / "slow.json"))
    page.run()
    page.page.until("document.title.includes('FleetSteps')", what="it runs")
    page.load(graphs.steps("quick", steps=2, seconds=0.1).write(tmp_path / "quick.json"))
    page.run()
    order = ["execution_interrupted", "execution_success"]
    if place.nodes:  # a bare ComfyUI runs the second one when the first one has ended
        order.reverse()
        page.page.wait(lambda: page.shown()["ends"], what="the later one has ended")
        ((quick, _),) = page.shown()["ends"]
        page.page.wait(lambda: quick in page.ended(), what="it is listed")
        page.page.wait(page.active, what="the progress of the first one is shown")
    else:
        page.page.wait(lambda: page.counts()[:2] == (1, 1), what="the second one waits")
    page.cancel()
    page.page.wait(lambda: len(page.shown()["ends"]) == 2, what="both have ended")
    assert [end for _, end in page.shown()["ends"]] == order
    prompts = {prompt for prompt, _ in page.shown()["ends"]}
    page.page.wait(lambda: prompts <= page.ended(), what="both are listed")


def test_the_assets_panel_shows_what_was_made_and_sent(page: Editor, tmp_path: Path) -> None:
    if page.words.assets is None:
        return  # this frontend has none
    color = next(COLORS)
    page.load(graphs.picture("asset", color=color).write(tmp_path / "asset.json"))
    page.run()
    page.wait_for_color(2, color)
    page.page.click(page.words.assets)
    page.page.see(page.words.asset, "asset_0000")
    page.page.until(
        f"[...document.querySelectorAll({page.words.asset!r} + ' img')].some((one) => one.naturalWidth > 0)",
        what="its picture is seen",
    )


def test_a_running_job_is_canceled(page: Editor, tmp_path: Path) -> None:
    page.load(graphs.steps(steps=1000, seconds=600).write(tmp_path / "long.json"))
    page.run()
    # What only shows as long as a job runs is looked for where it runs until somebody has seen it.
    page.page.until("document.title.includes('FleetSteps')", what="the title names the node that runs")
    page.page.wait(lambda: page.color(2) not in (-1, graphs.GREEN), what="a preview is shown")
    page.cancel()
    page.idle()
    page.page.wait(lambda: page.shown()["ends"], what="its end is told")
    ((_, end),) = page.shown()["ends"]
    assert end == "execution_interrupted"
    assert page.active() is None
    assert page.color(SAVER) == -1


def test_what_waits_is_cleared(page: Editor, place: Place, tmp_path: Path) -> None:
    page.load(graphs.steps(steps=1000, seconds=600).write(tmp_path / "long.json"))
    at_once = max(1, place.nodes)
    page.batch(at_once + 3)
    page.run()
    page.page.wait(lambda: page.counts()[:2] == (at_once, 3), what="some run and three wait")
    page.open_jobs()
    page.clear()
    wait_until_run(page, at_once)
    for left in range(at_once - 1, -1, -1):
        page.page.wait(page.active, what="the progress of one is shown")
        page.cancel()
        wait_until_run(page, left)


def test_instant_makes_five_pictures_by_itself(page: Editor, tmp_path: Path) -> None:
    page.load(graphs.steps("instant", steps=2, seconds=0.2).write(tmp_path / "instant.json"))
    page.mode("Run (Instant)")
    page.run()
    page.wait_for_pictures(5, node=SAVER)
    if page.words.assets is None:
        page.mode("Run")
    else:
        page.run()  # it says "Stop" now
    page.idle()
    names = [one["filename"] for one in page.pictures(node=SAVER)]
    assert len(names) == len(set(names)) >= 5


def test_batch_count_20_makes_20_pictures(page: Editor, tmp_path: Path) -> None:
    page.load(graphs.steps("batch", steps=2, seconds=0.2).write(tmp_path / "batch.json"))
    page.batch(20)
    page.run()
    found = page.wait_for_pictures(20, node=SAVER)
    page.idle()
    assert len({one["filename"] for one in found}) == len(found) == 20
    assert len({one["prompt"] for one in found}) == 20


def test_a_workflow_is_saved_and_opened_again(page: Editor, tmp_path: Path) -> None:
    name = f"saved {next(COLORS):x}"
    page.load(graphs.picture("saved").write(tmp_path / "unsaved.json"))
    page.save_as(name)
    page.set_widget(1, "width", 128)
    page.save()
    page.wait_until_saved(name)
    page.load(graphs.preview().write(tmp_path / "other.json"))
    page.reopen(name)
    page.wait_for_nodes(["EmptyImage", "SaveImage"])
    assert page.widget(1, "width") == 128


def test_settings_open_workflows_and_a_saved_one_survive_a_reload(page: Editor, tmp_path: Path) -> None:
    name = f"kept {next(COLORS):x}"
    page.load(graphs.picture("kept").write(tmp_path / "unsaved.json"))
    page.save_as(name)
    page.close_minimap()
    page.reload()
    page.wait_for_nodes(["EmptyImage", "SaveImage"])
    assert page.store("workflow.activeWorkflow.filename") == name
    assert page.store("setting.settingValues['Comfy.Minimap.Visible']") is False
    assert not page.page.sees(MINIMAP_CLOSER)
    page.reopen(name)
