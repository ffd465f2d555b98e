"""How the console's pages are made: templates that escape all they are given, and the rules for browsers."""

import time
from datetime import UTC, datetime
from functools import cache
from html import escape
from typing import Any

import orjson
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

from comfy_fleet.api.console.static_files import static_files
from comfy_fleet.api.deps import deps, principal
from comfy_fleet.api.errors import HttpError
from comfy_fleet.domain.text import clip

MOST_TEXT = 300
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "form-action 'self'; frame-ancestors 'none'; base-uri 'none'"
)
_HEADERS = {
    "Content-Security-Policy": _POLICY,
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-store",
    "Vary": "HX-Request",
}
NAV = (
    ("overview", "Overview", True),
    ("nodes", "Nodes", True),
    ("queue", "Queue", True),
    ("jobs", "Jobs", False),
    ("workflows", "Workflows", False),
    ("models", "Models", True),
    ("usage", "Usage", False),
    ("people", "People", True),
)
"""The pages in their order: path below ``/console``, name, and whether only operators have it."""


def page(
    request: Request, template: str, *, title: str, here: str, status: int = 200, **context: Any
) -> Response:
    """Return a page, or, to who asks for its changing part alone, that part: the block ``live``.

    Args:
        request: Asks for it.
        template: Its name.
        title: Plain text.
        here: Its place in the navigation.
        status: The answer's.
        context: What the template shows. All of it is escaped.
    """
    found = _environment().get_template(template)
    who = principal(request)
    root = "../" * request.scope["path"].strip("/").count("/") or "./"
    context |= {"root": root, "title": plain(title), "here": here, "now": time.time()}
    if is_part(request):
        part = "".join(found.blocks["live"](found.new_context(context)))
        return HTMLResponse(part, status, dict(_HEADERS))
    context |= {
        "who": "" if deps(request).keys.open else who.owner,
        "nav": [(path, name) for path, name, only in NAV if who.operator or not only],
    }
    return HTMLResponse(found.render(context), status, dict(_HEADERS))


def is_part(request: Request) -> bool:
    """Return whether a page's script asks, for the part of it that changes."""
    return request.headers.get("hx-request") == "true"


def changing(request: Request) -> None:
    """Refuse a change that a page's own script does not ask for: only that can send the header.

    Raises:
        HttpError: 403.
    """
    if not is_part(request):
        raise HttpError(403, "forbidden", "this takes the console's own forms only; reload the page")


def done(message: str) -> Response:
    """Answer a change: the page says so, and asks for its changing part.

    Args:
        message: Plain text.
    """
    told = orjson.dumps({"done": clip(message, MOST_TEXT)}).decode()
    # Headers are Latin-1: what is beyond, JSON can say in ASCII.
    told = "".join(sign if " " <= sign < "\x7f" else _escaped(sign) for sign in told)
    return Response(status_code=204, headers={"HX-Trigger": told, "Cache-Control": "no-store"})


def _escaped(sign: str) -> str:
    units = sign.encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{units[at]:02x}{units[at + 1]:02x}" for at in range(0, len(units), 2))


@cache
def _environment() -> Environment:
    made = Environment(
        loader=PackageLoader("comfy_fleet.api.console"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters |= {one.__name__: one for one in (said, plain, size, ago, span, clock, share)}
    made.globals["static"] = lambda name: f"console/static/{static_files()[name].address}"
    made.globals["parts"] = made.get_template("parts.html").module  # a part of a page has no imports
    return made


# -- what templates show -----------------------------------------------------


def said(text: object, most: int = MOST_TEXT) -> Markup:
    """Return what somebody wrote: no markup, nothing that turns the text around it, and not too long."""
    shown = plain(text, most)
    return Markup(f"<bdi>{escape(shown)}</bdi>") if shown else Markup("")  # noqa: S704 - escaped


def plain(text: object, most: int = MOST_TEXT) -> str:
    """Return the same for where no markup may be: titles, attributes, choices."""
    return "".join(sign if sign.isprintable() else " " for sign in clip(str(text), most)).strip()


def size(bytes_: float) -> str:
    """Return a size in bytes, such as ``12.4 GiB``."""
    value, unit = float(bytes_), "B"
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if abs(value) < 1024 or unit == "TiB":
            break
        value /= 1024
    return f"{value:.0f} {unit}" if unit == "B" or value >= 100 else f"{value:.1f} {unit}"


def span(seconds: float) -> str:
    """Return a duration, such as ``3 min``."""
    seconds = max(0.0, seconds)
    if seconds < 0.9995:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 10:
        return f"{seconds:.1f} s"
    for most, each, unit in ((120, 1, "s"), (7200, 60, "min"), (172_800, 3600, "h")):
        if seconds < most:
            return f"{seconds / each:.0f} {unit}"
    return f"{seconds / 86_400:.0f} d"


def ago(at: float, now: float) -> str:
    """Return how long ago a time in Unix seconds was."""
    return f"{span(max(0.0, now - at)) if now - at >= 10 else f'{max(0.0, now - at):.0f} s'} ago"


def clock(at: float) -> Markup:
    """Return a time in Unix seconds, in UTC."""
    when = datetime.fromtimestamp(at, UTC)
    return Markup(f'<time datetime="{when:%Y-%m-%dT%H:%M:%SZ}">{when:%Y-%m-%d %H:%M:%S}</time>')  # noqa: S704


def share(part: float, whole: float) -> int:
    """Return a part in percent, 0 to 100."""
    return max(0, min(100, round(100 * part / whole))) if whole > 0 else 0
