"""Headless Chromium, driven over its DevTools protocol: one browser, and pages that share nothing."""

import itertools
import json
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect

from tests.browser.page import PATIENCE_S, DevToolsError, Page, PageError
from tests.children import mortal

START_S = 150.0
CALL_S = 150.0  # for an answer of the browser itself
FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --disable-dev-shm-usage --mute-audio --hide-scrollbars"
)
# Pages get no further than this machine: what they show must not depend on somebody's servers.
INDOORS = "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1, EXCLUDE localhost"


def program() -> str | None:
    """Return the path of Chromium or Chrome on this machine, if there is one."""
    names = ("chromium", "chromium-browser", "google-chrome")
    return next((found for name in names if (found := shutil.which(name))), None)


@contextmanager
def chromium(*, width: int = 1280, height: int = 800) -> Iterator["Chromium"]:
    """Run a browser of its own, with a new profile.

    Raises:
        FileNotFoundError: If this machine has none.
    """
    found = program()
    if found is None:
        raise FileNotFoundError("Chromium is missing (Debian: chromium)")
    with tempfile.TemporaryDirectory(prefix="chromium-", ignore_cleanup_errors=True) as profile:
        command = [found, *FLAGS.split(), INDOORS, f"--user-data-dir={profile}", "--remote-debugging-port=0"]
        command += [f"--window-size={width},{height}", "about:blank"]
        process = subprocess.Popen(mortal(command), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            with connect(
                _address(process, Path(profile)), max_size=None, proxy=None, ping_interval=None
            ) as socket:
                yield Chromium(socket, (width, height))
        finally:
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _address(process: subprocess.Popen[bytes], profile: Path) -> str:
    """Wait until the browser says where its DevTools listen."""
    told = profile / "DevToolsActivePort"
    deadline = time.monotonic() + START_S
    while True:
        lines = told.read_text().split() if told.exists() else []
        if len(lines) == 2:
            return f"ws://127.0.0.1:{lines[0]}{lines[1]}"
        if process.poll() is not None or time.monotonic() > deadline:
            raise PageError(f"Chromium did not start (exit status {process.poll()})")
        time.sleep(0.02)


class Chromium:
    """A running browser."""

    def __init__(self, socket: ClientConnection, size: tuple[int, int]) -> None:
        self._socket = socket
        self._size = size
        self._ids = itertools.count(1)
        self._answers: dict[int, dict[str, Any]] = {}
        self._pages: dict[str, Page] = {}

    def call(self, method: str, *, session: str | None = None, **params: Any) -> dict[str, Any]:
        """Call a method of the protocol and return its result.

        Raises:
            DevToolsError: If the browser refuses.
        """
        number = self._send(method, session, params)
        deadline = time.monotonic() + CALL_S
        while number not in self._answers:
            self._hear(deadline, f"{method} was not answered")
        answer = self._answers.pop(number)
        if "error" in answer:
            raise DevToolsError(f"{method}: {answer['error']['message']}")
        result: dict[str, Any] = answer["result"]
        return result

    @contextmanager
    def page(self) -> Iterator[Page]:
        """Open an empty page with cookies and storage of its own."""
        context = self.call("Target.createBrowserContext")["browserContextId"]
        try:
            yield self._open(context)
        finally:
            self.call("Target.disposeBrowserContext", browserContextId=context)

    def _open(self, context: str) -> Page:
        target = self.call("Target.createTarget", url="about:blank", browserContextId=context)["targetId"]
        return self._attach(target, context)

    def _attach(self, target: str, context: str) -> Page:
        session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        page = self._pages[session] = Page(session, target, context, partial(self.call, session=session))
        for domain in ("Page", "Runtime", "Network"):
            page.call(f"{domain}.enable")
        width, height = self._size
        page.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=False,
        )
        page.call("Emulation.setFocusEmulationEnabled", enabled=True)
        return page

    def tab(self, of: Page, patience_s: float = PATIENCE_S) -> Page:
        """Wait for a tab that a page opened, and return it as a page."""
        target = of.wait(lambda: self._unknown(of.context), what="a new tab is opened", patience_s=patience_s)
        return self._attach(target, of.context)

    def _unknown(self, context: str) -> str | None:
        known = {page.target for page in self._pages.values()}
        found = (
            info["targetId"]
            for info in self.call("Target.getTargets")["targetInfos"]
            if info["type"] == "page" and info.get("browserContextId") == context
        )
        return next((target for target in found if target not in known), None)

    def close(self, page: Page) -> None:
        """Close a tab."""
        del self._pages[page.session]
        self.call("Target.closeTarget", targetId=page.target)

    def _send(self, method: str, session: str | None, params: dict[str, Any]) -> int:
        number = next(self._ids)
        body = {"id": number, "method": method, "params": params}
        self._socket.send(json.dumps(body | ({"sessionId": session} if session else {})))
        return number

    def _hear(self, deadline: float, else_: str) -> None:
        try:
            said = json.loads(self._socket.recv(max(0.001, deadline - time.monotonic())))
        except TimeoutError:
            raise PageError(f"{else_} within {CALL_S:.0f} s") from None
        except ConnectionClosed:
            raise PageError("the browser has ended") from None
        if "id" in said:
            self._answers[said["id"]] = said
        elif page := self._pages.get(said.get("sessionId", "")):
            page.heard(said["method"], said["params"])
            if said["method"] == "Page.javascriptDialogOpening":  # it stops everything until it is answered
                self._send("Page.handleJavaScriptDialog", page.session, {"accept": True})
