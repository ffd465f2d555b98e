"""ComfyUI's editor as a person uses it: what to press, and what to look at, in both frontends."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.browser.chromium import Chromium
from tests.browser.page import CONTROL, PATIENCE_S, Page

RECORDER = (Path(__file__).parent / "recorder.js").read_text()
READY = """
  window.app?.graph && window.comfyAPI?.api?.api?.socket?.readyState === WebSocket.OPEN
  && STORES.get("execution").clientId
"""
STORES = 'document.querySelector("#vue-app").__vue_app__.config.globalProperties.$pinia._s'
FIELD = ".graphdialog input"  # a widget's value, while it is edited
MINIMAP_CLOSER = "[data-testid=close-minmap-button], [data-testid=close-minimap-button]"  # old, new


@dataclass(frozen=True)
class Words:
    """Where one frontend has what."""

    run: str
    modes: str
    mode: str
    clear: str
    jobs: str  # the button that opens the list of jobs
    panel: tuple[str, str]  # the list of jobs, and a text in it
    row: str  # one job in it
    open_job: str
    menu: str
    batch: str = ".batch-count input"
    assets: str | None = None
    asset: str = ""


OLD = Words(
    run="[data-testid=queue-button] .p-splitbutton-button",
    modes="[data-testid=queue-button] .p-splitbutton-dropdown",
    mode="[role=menuitem]",
    clear="[aria-label='Clear Pending Tasks']",
    jobs=".queue-tab-button",
    panel=(".comfy-vue-side-bar-header", "QUEUE"),
    row=".task-item",
    open_job="Load Workflow",
    menu=".comfyui-logo-wrapper",
)
NEW = Words(
    run="[data-testid=queue-button]",
    modes="[data-testid=queue-mode-menu-trigger]",
    mode="[data-reka-popper-content-wrapper] button",
    clear="[aria-label='Clear queued']",
    jobs="[data-testid=queue-overlay-toggle]",
    panel=("[data-testid=queue-progress-overlay]", ""),
    row="[data-job-id]",
    open_job="Open as workflow in new tab",
    menu=".comfy-menu-button-wrapper",
    assets="[aria-label='Assets (a)']",
    asset="[data-asset-id]",
)


class Editor:
    """The editor in one page."""

    def __init__(self, page: Page, url: str) -> None:
        self.page = page
        self.url = url
        self.words = NEW

    def open(self) -> None:
        """Open it and wait until it can be used."""
        self.page.goto(f"{self.url}/")
        self.settle()

    def reload(self) -> None:
        """Press F5 and wait until it can be used."""
        self.page.reload()
        self.settle()

    def settle(self) -> None:
        """Wait until it can be used."""
        self.page.until(READY.replace("STORES", STORES), what="the editor is ready")
        version = self.page.evaluate("window.__COMFYUI_FRONTEND_VERSION__")
        self.words = OLD if tuple(map(int, version.split(".")[:2])) < (1, 40) else NEW
        self.page.see(self.words.run)

    def store(self, expression: str) -> Any:
        """Return a value from one of the page's stores, such as ``queue.pendingTasks.length``."""
        name, _, rest = expression.partition(".")
        return self.page.evaluate(f"{STORES}.get({json.dumps(name)}).{rest}")

    def load(self, path: Path) -> None:
        """Open a graph from a file, as Ctrl+O does."""
        nodes = [node["type"] for node in json.loads(path.read_text())["nodes"]]
        self.rest()
        self.page.choose(path, lambda: self.page.press("o", modifiers=CONTROL))
        self.page.wait(
            lambda: self.store("workflow.activeWorkflow.filename") == path.stem, what=f"{path.stem} is open"
        )
        self.wait_for_nodes(nodes)

    def rest(self) -> None:
        """Leave what has the keyboard, so that keys are the editor's own."""
        self.page.evaluate("document.activeElement?.blur()")

    def nodes(self) -> list[str]:
        """Return the classes of the nodes on the canvas."""
        found: list[str] = self.page.evaluate("window.app.graph._nodes.map((node) => node.type)")
        return found

    def wait_for_nodes(self, types: list[str]) -> None:
        """Wait until exactly these nodes are on the canvas."""
        self.page.wait(lambda: sorted(self.nodes()) == sorted(types), what=f"{types} are on the canvas")

    def widget(self, node: int, name: str) -> Any:
        """Return what a widget shows."""
        return self.page.evaluate(f"{_WIDGET % (node, json.dumps(name))}.value")

    def set_widget(self, node: int, name: str, value: Any) -> None:
        """Change a widget by its own input field: a click, the value, Enter."""
        widget = _WIDGET % (node, json.dumps(name))
        where = self.page.evaluate(f"""(() => {{
          const node = window.app.graph.getNodeById({node}), widget = {widget}, canvas = window.app.canvas;
          const place = [node.pos[0] + node.size[0] / 2, node.pos[1] + widget.last_y + 10];
          const [x, y] = canvas.ds.convertOffsetToCanvas(place), box = canvas.canvas.getBoundingClientRect();
          return [box.x + x, box.y + y];
        }})()""")
        # One click: the field comes up under the mouse, and a second one would take the keyboard from it.
        self.page.click_at(*where)
        self.page.until(f"document.activeElement?.matches({json.dumps(FIELD)})", what=f"{name} can be typed")
        self.page.press("a", modifiers=CONTROL)
        self.page.type(str(value))
        self.page.press("Enter")
        self.page.wait(lambda: self.widget(node, name) == value, what=f"{name} is {value!r}")

    def menu(self, folder: str, item: str) -> None:
        """Choose something in the editor's menu."""
        self.page.click(self.words.menu)
        self.page.see("[role=menuitem]", folder)
        leaf = "[role=menuitem]:not([aria-haspopup])"

        def opened() -> bool:
            if not self.page.sees(leaf, item):
                self.page.hover("[role=menuitem]", folder)
            return self.page.sees(leaf, item)

        self.page.wait(opened, what=f"{folder} offers {item}")
        self.page.click(leaf, item)

    def run(self) -> None:
        """Press the queue button."""
        self.page.click(self.words.run)

    def run_by_keys(self) -> None:
        """Press Ctrl+Enter."""
        self.page.press("Enter", modifiers=CONTROL)

    def mode(self, name: str) -> None:
        """Choose what the queue button does: ``Run``, ``Run (Instant)``."""
        self.page.click(self.words.modes)
        self.page.click(self.words.mode, name)

    def batch(self, count: int) -> None:
        """Type a batch count."""
        self.page.click(self.words.batch, times=3)
        self.page.press("a", modifiers=CONTROL)
        self.page.type(str(count))
        self.page.press("Enter")
        self.page.wait(
            lambda: self.store("queueSettingsStore.batchCount") == count, what=f"{count} are to run"
        )
        self.rest()

    def cancel(self) -> None:
        """Press the button that stops the running job, once there is one."""
        self.page.click("[aria-label='Cancel current run']:enabled")

    def clear(self) -> None:
        """Press the button that removes what waits; the list of jobs is open."""
        self.page.click(f"{self.words.clear}:enabled")

    def open_jobs(self) -> None:
        """Open the list of jobs, unless it is open."""
        if not self.page.sees(*self.words.panel):
            self.page.click(self.words.jobs)
        self.page.see(*self.words.panel)

    def jobs(self) -> list[str]:
        """Return the texts of the rows of the list of jobs that are seen, newest first."""
        rows: list[str] = self.page.evaluate(
            f"[...document.querySelectorAll({json.dumps(self.words.row)})]"
            ".map((row) => row.textContent.trim())"
        )
        return rows

    def open_job(self, text: str = "") -> None:
        """Open the graph of the first job in the list that says so."""
        self.page.click(self.words.row, text, button="right")
        self.page.click("[role=menuitem], [role=dialog] button", self.words.open_job)

    def counts(self) -> tuple[int, int, int]:
        """Return how many jobs run, wait and have ended, as the editor knows it."""
        names = ("runningTasks", "pendingTasks", "historyTasks")
        running, pending, ended = (int(self.store(f"queue.{name}.length")) for name in names)
        return running, pending, ended

    def ended(self) -> set[str]:
        """Return the prompts that have ended, as the editor lists them."""
        return set(self.store("queue.historyTasks.map((task) => task.promptId ?? task.jobId)"))

    def idle(self, *, patience_s: float = PATIENCE_S) -> None:
        """Wait until nothing runs or waits."""
        self.page.wait(
            lambda: self.counts()[:2] == (0, 0), what="no job runs or waits", patience_s=patience_s
        )

    def active(self) -> str | None:
        """Return the prompt whose progress is shown."""
        shown: str | None = self.page.evaluate(
            f'(({STORES}).get("execution").activePromptId ?? ({STORES}).get("execution").activeJobId) || null'
        )
        return shown

    def color(self, node: int) -> int:
        """Return the color in the middle of the picture that a node shows; -1 if it shows none."""
        return int(self.page.evaluate(_COLOR % node))

    def wait_for_color(self, node: int, color: int, *, patience_s: float = PATIENCE_S) -> None:
        """Wait until a node shows a picture of one color."""
        self.page.wait(
            lambda: self.color(node) == color, what=f"node {node} shows {color:#x}", patience_s=patience_s
        )

    def shown(self) -> dict[str, Any]:
        """Return what :file:`recorder.js` has kept since the page was loaded."""
        kept: dict[str, Any] = self.page.evaluate("window.__shown")
        return kept

    def pictures(self, *, node: int) -> list[dict[str, Any]]:
        """Return the pictures that a node has been told of, in order."""
        return [one for one in self.shown()["executed"] if str(one["node"]) == str(node)]

    def wait_for_pictures(
        self, count: int, *, node: int, patience_s: float = PATIENCE_S
    ) -> list[dict[str, Any]]:
        """Wait until as many pictures have come, and see that each can be shown."""
        script = f"window.__shown.executed.filter((one) => String(one.node) === '{node}').length >= {count}"
        self.page.until(script, what=f"{count} pictures have come", patience_s=patience_s)
        found = self.pictures(node=node)
        for one in found:
            size = self.page.evaluate(_SIZE % json.dumps(one))
            assert size > 0, f"{one} can't be shown"
        return found

    def close_minimap(self) -> None:
        """Close the small map, which changes a setting."""
        self.page.click(MINIMAP_CLOSER)
        self.page.unseen(MINIMAP_CLOSER)

    def save_as(self, name: str) -> None:
        """Press Ctrl+S on a graph that has no name yet, and give it one."""
        self.rest()
        self.page.press("s", modifiers=CONTROL)
        self.page.click("[role=dialog] input")
        self.page.press("a", modifiers=CONTROL)
        self.page.type(name)
        self.page.click("[role=dialog] button", "Confirm")
        self.wait_until_saved(name)

    def save(self) -> None:
        """Press Ctrl+S on a graph that has a name."""
        self.rest()
        self.page.press("s", modifiers=CONTROL)

    def wait_until_saved(self, name: str) -> None:
        """Wait until the open graph has a name and no unsaved changes."""
        self.page.wait(
            lambda: (
                self.store("workflow.activeWorkflow.filename") == name
                and not self.store("workflow.activeWorkflow.isModified")
                and not self.store("workflow.activeWorkflow.isTemporary")  # until the server has it
            ),
            what=f"{name} is saved",
        )

    def reopen(self, name: str) -> None:
        """Open a saved graph from the list of workflows."""
        self.rest()
        if not self.page.sees(".workflows-sidebar-tab"):
            self.page.click("[aria-label='Workflows (w)']")
        self.page.click(".comfyui-workflows-browse .p-tree-node-label", name)
        self.page.wait(lambda: self.store("workflow.activeWorkflow.filename") == name, what=f"{name} is open")


_WIDGET = "window.app.graph.getNodeById(%s).widgets.find((widget) => widget.name === %s)"
_COLOR = """(() => {
  const picture = window.app.graph.getNodeById(%s)?.imgs?.at(-1);
  if (!picture?.naturalWidth) return -1;
  const canvas = document.createElement("canvas");
  canvas.width = canvas.height = 1;
  const context = canvas.getContext("2d");
  context.drawImage(picture, picture.naturalWidth / 2, picture.naturalHeight / 2, 1, 1, 0, 0, 1, 1);
  const [red, green, blue] = context.getImageData(0, 0, 1, 1).data;
  return (red << 16) | (green << 8) | blue;
})()"""
_SIZE = """(async () => {
  const picture = new Image();
  picture.src = window.comfyAPI.api.api.apiURL("/view?" + new URLSearchParams(%s));
  await picture.decode();
  return picture.naturalWidth;
})()"""


@contextmanager
def editor(browser: Chromium, url: str, prepare: Callable[[Page], None] | None = None) -> Iterator[Editor]:
    """Open the editor of a server as somebody who was never there.

    Args:
        browser: Where.
        url: The server, with no path.
        prepare: Opens it in the empty page, if more is needed than to go there, such as to sign in.
    """
    with browser.page() as page:
        page.before_load(RECORDER)
        opened = Editor(page, url)
        if prepare is None:
            opened.open()
        else:
            prepare(page)
            opened.settle()
        yield opened
