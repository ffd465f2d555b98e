"""Take the pictures of the editor's how-to; see ``scripts/screenshots``."""

import os
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path

from tests.acceptance.up import Up
from tests.browser import graphs
from tests.browser.chromium import Chromium, chromium
from tests.browser.conftest import Servers
from tests.browser.editor import editor
from tests.browser.page import Page
from tests.browser.people import ANN, fleet_of_people, signing_in
from tests.browser.test_artists_round import whole_round

NODES = 4
MOST_BYTES = 150_000
PAGES = ("check", "history")  # of the console, which scroll
WANTED = ("running", "editor", *PAGES)


class Album:
    """The folder with the pictures; of several of one name, the last is kept."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def take(self, name: str, page: Page) -> None:
        """Take a picture of what a page shows, if it is wanted."""
        if name in WANTED:
            page.until(
                "[...document.images].every((one) => one.complete)", what="all pictures of the page are there"
            )
            path = page.screenshot(self._folder / f"edit-{name}.webp", whole=name in PAGES)
            size = path.stat().st_size
            if size > MOST_BYTES:
                sys.exit(f"screenshots: {path} has {size} bytes; {MOST_BYTES} at most")
            print(f"{path}: {size} bytes")


def running(browser: Chromium, up: Up, folder: Path, album: Album) -> None:
    """Show eight jobs on four nodes."""
    with editor(browser, up.url, signing_in(up.url, ANN)) as page:
        page.load(graphs.steps("card", steps=100, seconds=200).write(folder / "eight runs.json"))
        page.open_jobs()
        page.batch(NODES * 2)
        page.run()
        page.page.wait(lambda: page.counts()[:2] == (NODES, NODES), what="half of them run")
        page.page.wait(lambda: page.color(2) != -1, what="a preview is shown")
        album.take("running", page.page)


def main() -> None:
    folder = Path(sys.argv[1])
    with ExitStack() as stack:
        work = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="fleet-")))
        homes = iter(range(NODES))

        def new_folder() -> Path:
            made = work / f"comfyui{next(homes)}"
            made.mkdir()
            return made

        nodes = Servers(Path(os.environ["COMFYUI_HOME"]), new_folder, stack).take(NODES)
        up = stack.enter_context(fleet_of_people(nodes, work))
        browser = stack.enter_context(chromium())
        album = Album(folder)
        whole_round(browser, up, work, album.take)
        running(browser, up, work, album)


if __name__ == "__main__":
    main()
