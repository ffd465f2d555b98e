"""The console's pages about stored workflows: their frame, and how what people and graphs say is shown.

Names, titles, notes and texts of graphs may hold anything. All of it goes through :func:`said`.
"""

import json
from base64 import b64encode
from collections.abc import Iterable
from datetime import UTC, datetime
from html import escape
from urllib.parse import parse_qs

from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response
from starlette.types import Scope

from comfy_fleet.api.body import read_body
from comfy_fleet.api.deps import deps, principal
from comfy_fleet.api.errors import HttpError
from comfy_fleet.api.origins import Origin
from comfy_fleet.api.page import page
from comfy_fleet.domain.graphs.workflow_diff import WorkflowDifference
from comfy_fleet.domain.graphs.workflow_names import short
from comfy_fleet.domain.text import clip

JSON_TYPE = "application/json"
_ERROR = """<main>
<nav><a href="{root}workflows">Stored workflows</a></nav>
<h1>{title}</h1>
{text}
</main>"""
_SIGN_IN = '<p><a class="button" href="{root}login">Sign in</a></p>'
_SEND_AGAIN = """<p class="notice alarm" role="alert">You are not signed in any more, and nothing
was done.</p>
<p>What you typed is not lost: <a href="{root}login" target="_blank">sign in in another tab</a>, then come
back to this one and reload it. Your browser asks whether to send the form again: say yes.</p>"""
MAX_FORM_BYTES = 16 * 1024
MOST_TEXT = 300
MOST_ROWS = 100
_MOST_FIELDS = 20
_STYLE = """body{max-width:56rem}
nav{margin-bottom:1.5rem}
.who{margin:0 0 1.5rem;color:var(--faint)}
table{border-collapse:collapse;width:100%;margin:.75rem 0}
th,td{text-align:left;vertical-align:top;padding:.5rem .75rem .5rem 0;border-top:1px solid var(--line)}
th{font-weight:600;color:var(--faint)}
td code,td time,td button{white-space:nowrap}
.long,main>p bdi,h1 bdi,li bdi,.notice bdi{overflow-wrap:anywhere}
ul{padding-left:1.25rem;margin:.4rem 0}
li{margin:.2rem 0;overflow-wrap:anywhere}
figure{margin:0;flex:1 1 15rem;min-width:0}
figure img{display:block;width:100%;max-height:24rem;object-fit:contain;background:var(--soft);
border:1px solid var(--line);border-radius:8px}
figcaption{color:var(--faint);margin-top:.4rem}
.pictures{display:flex;flex-wrap:wrap;gap:1.25rem;margin:1rem 0}
.state{display:inline-block;min-width:4.5rem;font-weight:600}
.passed{color:var(--right)}.failed{color:var(--wrong)}.waiting{color:var(--faint)}
.notice{border:1px solid var(--line);border-left:4px solid var(--button);border-radius:8px;
padding:.6rem 1rem;margin:1rem 0;background:var(--soft)}
.notice.alarm{border-left-color:var(--wrong)}
.choice{display:flex;gap:.6rem;align-items:baseline}
.choice input{width:auto;flex:none}
button.second{background:none;color:var(--link);border:1px solid var(--line)}
form.inline{display:inline}form.inline button{margin:.1rem 0;padding:.25rem .7rem}
a:focus-visible,button:focus-visible,input:focus-visible{outline:3px solid var(--link);outline-offset:2px}
:root{--right:#1a7f37}
@media(prefers-color-scheme:dark){:root{--right:#56d364}}
@media(max-width:34rem){table,tbody,tr,td{display:block}thead{position:absolute;left:-999rem}
td{border:0;padding:.1rem 0}tr{border-top:1px solid var(--line);padding:.6rem 0}
td[data-name]:before{content:attr(data-name) ": ";color:var(--faint)}}
"""


def console_page(
    request: Request, title: str, body: str, *, status: int = 200, refresh_s: int = 0
) -> HTMLResponse:
    """Return one of the console's pages. It says who is signed in: who is not the one who reads it is told.

    Args:
        request: Asks for it.
        title: Plain text.
        body: HTML.
        status: The answer's.
        refresh_s: After how many seconds the browser asks again; 0: not.
    """
    headers = {"Refresh": str(refresh_s)} if refresh_s else None
    whole = f"{_signed_in(request)}<main>\n{body}\n</main>"
    return page(title, whole, status=status, headers=headers, style=_STYLE, pictures=True)


def _signed_in(request: Request) -> str:
    if deps(request).keys.open:
        return ""
    root = "../" * (request.scope["path"].strip("/").count("/"))
    who = said(principal(request).owner)
    return f'<p class="who">Signed in as <b>{who}</b>. <a href="{root or "./"}login">Not you?</a></p>\n'


def said(text: str, most: int = MOST_TEXT) -> str:
    """Return what somebody wrote as HTML: no markup, nothing that turns the text around it, not too long."""
    shown = "".join(sign if sign.isprintable() else " " for sign in clip(text, most)).strip()
    return f"<bdi>{escape(shown)}</bdi>" if shown else ""


def version_of(version: str) -> str:
    """Return a version as HTML."""
    return f"<code>{escape(short(version))}</code>"


def time_of(seconds: float) -> str:
    """Return a time as HTML, in UTC."""
    at = datetime.fromtimestamp(seconds, UTC)
    return f'<time datetime="{at:%Y-%m-%dT%H:%M:%SZ}">{at:%Y-%m-%d %H:%M} UTC</time>'


def listed(lines: Iterable[str]) -> str:
    """Return HTML lines as a list."""
    return "<ul>" + "".join(f"<li>{line}</li>" for line in lines) + "</ul>"


def changes(found: Iterable[WorkflowDifference]) -> str:
    """Return differences as a list."""
    lines = [said(one.message) for one in found]
    more = [f"and {len(lines) - MOST_ROWS} more"] if len(lines) > MOST_ROWS else []
    return listed([*lines[:MOST_ROWS], *more])


def small_picture(content: bytes | None, caption: str, text: str) -> str:
    """Return a version's picture with its caption.

    Args:
        content: WebP; None if there is none.
        caption: HTML.
        text: What it shows, in plain words.
    """
    if content is None:
        return f"<figure><figcaption>{caption} There is no picture of it.</figcaption></figure>"
    source = f"data:image/webp;base64,{b64encode(content).decode()}"
    return picture(source, caption, text)


def picture(source: str, caption: str, text: str) -> str:
    """Return a picture with its caption; see :func:`small_picture`."""
    shown = f'<img src="{escape(source)}" alt="{escape(text)}" loading="lazy">'
    return f"<figure>{shown}<figcaption>{caption}</figcaption></figure>"


async def form_of(request: Request) -> dict[str, str]:
    """Read a page's form; of a field that comes twice, the first counts.

    Raises:
        HttpError: 400, 413, 415.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/x-www-form-urlencoded":
        raise HttpError(415, "unsupported_media_type", "this takes the page's own form only")
    body = (await read_body(request, MAX_FORM_BYTES)).decode("utf-8", "replace")
    try:
        return {name: values[0] for name, values in parse_qs(body, max_num_fields=_MOST_FIELDS).items()}
    except ValueError:
        raise HttpError(400, "invalid_request", "the form has too many fields") from None


def for_browser(scope: Scope, answer: Response) -> Response:
    """Return an error's answer as a page if a browser has asked the console for one of its pages.

    Args:
        scope: The request's.
        answer: The error in the envelope; anything else stays as it is.
    """
    path, wants = scope["path"], Headers(scope=scope).get("accept", "")
    of_ours = path in ("/workflows", "/console") or path.startswith(("/workflows/", "/publish/", "/console/"))
    if not of_ours or "text/html" not in wants or scope["origin"] is not Origin.CONSOLE:
        return answer
    if answer.media_type != JSON_TYPE:
        return answer
    root = "../" * (path.count("/") - 1)
    if answer.status_code == 401:
        title = "Sign in"
        text = (_SEND_AGAIN if scope["method"] == "POST" else _SIGN_IN).format(root=root)
    else:
        title, message = "This did not work", json.loads(bytes(answer.body))["error"]["message"]
        text = f'<p class="notice alarm" role="alert">{said(message, 1000)}</p>'
    # Who asks may be unknown, so that it can't be said as on other pages.
    whole = _ERROR.format(title=title, text=text, root=root)
    made = page(title, whole, status=answer.status_code, style=_STYLE)
    for name in ("Retry-After", "Allow"):
        if name in answer.headers:
            made.headers[name] = answer.headers[name]
    return made


def see(address: str) -> Response:
    """Send the browser to a page after a form; it is a relative address."""
    answer = RedirectResponse(address, 303)
    answer.headers["Cache-Control"] = "no-store"
    return answer
