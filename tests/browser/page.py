"""A page in a browser, used as a person uses it.

What it clicks must be visible, still and on top; keys and clicks go in where those of a person do.
"""

import base64
import json
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

PATIENCE_S = 150.0  # for something to show up in a page; a busy machine takes its time
ALT, CONTROL, META, SHIFT = 1, 2, 4, 8  # DevTools' bits
_KEYS = {
    "Enter": (13, "\r"),
    "Escape": (27, ""),
    "Tab": (9, ""),
    "Backspace": (8, ""),
    "Delete": (46, ""),
}


class DevToolsError(Exception):
    """The browser refused a call, such as one to a page that is just being left."""


class PageError(AssertionError):
    """A script in a page threw, or a page did not show what it should."""


@dataclass
class Page:
    """One page.

    Attributes:
        session: What the browser calls the connection to it.
        target: What the browser calls it.
        context: Whom it shares cookies and storage with.
        call: Calls a method of the protocol for it.
        complaints: What scripts threw and nobody caught, and errors on the console.
        answers: Status and URL of each answer that the page got from a server.
        dialogs: Texts of ``alert``, ``confirm`` and the like; each is accepted.
        choosers: Elements that asked for a file.
    """

    session: str
    target: str
    context: str
    call: Callable[..., dict[str, Any]]
    complaints: list[str] = field(default_factory=list)
    answers: list[tuple[int, str]] = field(default_factory=list)
    dialogs: list[str] = field(default_factory=list)
    choosers: list[int] = field(default_factory=list)

    def heard(self, method: str, params: dict[str, Any]) -> None:
        """Keep an event."""
        match method:
            case "Runtime.exceptionThrown":
                details = params["exceptionDetails"]
                self.complaints.append(details.get("exception", {}).get("description") or details["text"])
            case "Runtime.consoleAPICalled" if params["type"] == "error":
                told = (str(one.get("value", one.get("description", ""))) for one in params["args"])
                self.complaints.append(" ".join(told))
            case "Network.responseReceived":
                self.answers.append((params["response"]["status"], params["response"]["url"]))
            case "Page.fileChooserOpened":
                self.choosers.append(params["backendNodeId"])
            case "Page.javascriptDialogOpening":
                self.dialogs.append(params["message"])

    def goto(self, url: str) -> None:
        """Open a URL and wait until it is there.

        Raises:
            PageError: If it can't be opened.
        """
        error = self.call("Page.navigate", url=url).get("errorText")
        if error:
            raise PageError(f"{url}: {error}")
        self.until("document.readyState === 'complete'", what=f"{url} is loaded")

    def reload(self) -> None:
        """Load the page anew, as F5 does."""
        self.evaluate("window.__before = true")
        self.call("Page.reload")
        self.until("!window.__before && document.readyState === 'complete'", what="the page is loaded again")

    def before_load(self, script: str) -> None:
        """Run a script in each document that is opened from now on, before its own scripts."""
        self.call("Page.addScriptToEvaluateOnNewDocument", source=script)

    def evaluate(self, expression: str) -> Any:
        """Return the value of a JavaScript expression, awaited.

        Raises:
            PageError: If it throws.
        """
        done = self.call("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        if "exceptionDetails" in done:
            details = done["exceptionDetails"]
            raise PageError(details.get("exception", {}).get("description") or details["text"])
        return done["result"].get("value")

    def until(self, expression: str, *, what: str, patience_s: float = PATIENCE_S) -> Any:
        """Wait until an expression is true (an exception is not), and return its value."""
        return self.wait(lambda: self.evaluate(expression), what=what, patience_s=patience_s)

    def wait(self, ready: Callable[[], Any], *, what: str, patience_s: float = PATIENCE_S) -> Any:
        """Wait until a function returns something true, and return it."""
        deadline = time.monotonic() + patience_s
        reason = ""
        while True:
            try:
                if found := ready():
                    return found
            except (PageError, DevToolsError) as error:
                reason = f": {error}"
            if time.monotonic() > deadline:
                raise PageError(f"waited {patience_s:.0f} s in vain until {what}{reason}{self._seen()}")
            time.sleep(0.03)

    def _seen(self) -> str:
        """Return where a picture of the page lies, for who reads why a test failed."""
        with tempfile.NamedTemporaryFile(prefix="page-", suffix=".png", delete=False) as file:
            try:
                return f"; seen then: {self.screenshot(Path(file.name))}"
            except (PageError, DevToolsError):
                return ""

    def sees(self, css: str, text: str = "") -> bool:
        """Tell whether something visible matches a selector and has a text."""
        return bool(self.evaluate(f"!!({_FIND})({json.dumps(css)}, {json.dumps(text)})"))

    def see(self, css: str, text: str = "", *, patience_s: float = PATIENCE_S) -> None:
        """Wait until something visible matches a selector and has a text."""
        self.wait(lambda: self.sees(css, text), what=f"{css} {text!r} is seen", patience_s=patience_s)

    def unseen(self, css: str, text: str = "", *, patience_s: float = PATIENCE_S) -> None:
        """Wait until nothing visible matches a selector and has a text."""
        self.wait(lambda: not self.sees(css, text), what=f"{css} {text!r} is gone", patience_s=patience_s)

    def count(self, css: str) -> int:
        """Return how many visible elements match a selector."""
        return int(
            self.evaluate(f"[...document.querySelectorAll({json.dumps(css)})].filter({_VISIBLE}).length")
        )

    def click(self, css: str, text: str = "", *, button: str = "left", times: int = 1) -> None:
        """Click what is visible, still and on top, once it is."""
        script = f"({_PLACE})({json.dumps(css)}, {json.dumps(text)})"
        where = self.until(script, what=f"{css} {text!r} can be clicked")
        self.click_at(*where, button=button, times=times)

    def hover(self, css: str, text: str = "") -> None:
        """Move the mouse over what is visible, still and on top."""
        x, y = self.until(
            f"({_PLACE})({json.dumps(css)}, {json.dumps(text)})", what=f"{css} {text!r} is there"
        )
        for right in (0, 1):  # what has just come up under the mouse hears of the second one
            self.call("Input.dispatchMouseEvent", type="mouseMoved", x=x + right, y=y)

    def click_at(self, x: float, y: float, *, button: str = "left", times: int = 1) -> None:
        """Click a place, in CSS pixels from the top left corner."""
        self.call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)
        for number in range(1, times + 1):
            for kind, buttons in (("mousePressed", 1 if button == "left" else 2), ("mouseReleased", 0)):
                self.call(
                    "Input.dispatchMouseEvent",
                    type=kind,
                    x=x,
                    y=y,
                    button=button,
                    buttons=buttons,
                    clickCount=number,
                )

    def press(self, key: str, *, modifiers: int = 0) -> None:
        """Press a key: one of a few names, or a character."""
        code, text = _KEYS.get(key) or (ord(key.upper()), key)
        name = f"Key{key.upper()}" if len(key) == 1 and key.isalpha() else key
        common = {"key": key, "code": name, "windowsVirtualKeyCode": code, "modifiers": modifiers}
        typed = {"text": text} if text and not modifiers & (CONTROL | ALT | META) else {}
        self.call("Input.dispatchKeyEvent", type="keyDown" if typed else "rawKeyDown", **common, **typed)
        self.call("Input.dispatchKeyEvent", type="keyUp", **common)

    def type(self, text: str) -> None:
        """Press the keys of a text."""
        for character in text:
            self.press(character)

    def choose(self, path: Path, by: Callable[[], None]) -> None:
        """Choose a file in the dialog that something opens."""
        self.choosers.clear()
        self.call("Page.setInterceptFileChooserDialog", enabled=True)
        by()
        # Nothing is asked of the page: a call lets its events be heard.
        self.wait(lambda: self.evaluate("true") and self.choosers, what="a file can be chosen")
        self.call("DOM.setFileInputFiles", files=[str(path)], backendNodeId=self.choosers.pop())

    def screenshot(self, path: Path, *, whole: bool = False) -> Path:
        """Write a picture of what is seen, or of the whole page: PNG, or WebP if the name ends so."""
        how: dict[str, Any] = {"format": "png"}
        if path.suffix == ".webp":
            how = {"format": "webp", "quality": 80}
        if whole:
            size = self.call("Page.getLayoutMetrics")["cssContentSize"]
            how |= {"captureBeyondViewport": True, "clip": {**size, "scale": 1}}
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot", **how)["data"]))
        return path


_VISIBLE = """(one) => {
  const box = one.getBoundingClientRect();
  const looks = { opacityProperty: true, visibilityProperty: true };
  return box.width > 0 && box.height > 0 && one.checkVisibility(looks);
}"""

# The smallest visible element that has the text: `Run` is a button's, and all of its ancestors'.
_FIND = f"""(css, text) => {{
  const shown = [...document.querySelectorAll(css)].filter({_VISIBLE});
  const having = shown.filter((one) => `${{one.innerText}} ${{one.ariaLabel ?? ""}}`.includes(text));
  return having.find((one) => !having.some((other) => other !== one && one.contains(other)));
}}"""

_PLACE = f"""async (css, text) => {{
  const one = ({_FIND})(css, text);
  if (!one) return null;
  one.scrollIntoView({{ block: "nearest", inline: "nearest" }});
  const place = () => one.getBoundingClientRect();
  const frame = () => new Promise((resolve) => requestAnimationFrame(() => resolve(place())));
  const was = await frame();
  const box = await frame();
  if (was.x !== box.x || was.y !== box.y) return null;
  const x = box.x + box.width / 2, y = box.y + box.height / 2;
  const top = document.elementFromPoint(x, y);
  return top && (one.contains(top) || top.contains(one)) ? [x, y] : null;
}}"""
