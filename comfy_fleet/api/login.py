"""Signing in with a browser: the key once, then a cookie that is of no use to other sites."""

import logging
import secrets
from html import escape
from urllib.parse import parse_qs, urlsplit

from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from comfy_fleet.api.auth import session_proof
from comfy_fleet.api.body import read_body
from comfy_fleet.api.credentials import COOKIE, Credentials
from comfy_fleet.api.deps import deps, links
from comfy_fleet.api.endpoint import ServedRoute
from comfy_fleet.api.errors import HttpError
from comfy_fleet.api.page import page

logger = logging.getLogger(__name__)

_MAX_FORM_BYTES = 4096
_HEAD = '<h1>comfy_fleet</h1>\n<p class="faint">Many GPUs, one ComfyUI</p>\n'
_FORM = """{head}<form method="post" action="login">
<label for="key">Your API key</label>
<input id="key" name="key" type="password" autocomplete="current-password" required autofocus>
{wrong}<p><button>Sign in</button></p>
</form>
<p class="faint">This browser stays signed in for {days}, or until you sign out.</p>"""
_SIGNED_IN = """{head}<p>You are signed in as <b>{owner}</b>.</p>
<form method="post" action="logout"><button>Sign out</button></form>
<p><a href="./">What this is</a></p>"""
_NO_KEY = """{head}<p>This fleet needs no key on this machine: there is nothing to sign in to.</p>
<p><a href="./">What this is</a></p>"""


async def show(request: Request) -> Response:
    """``GET /login``."""
    d = deps(request)
    if d.keys.open:
        return page("comfy_fleet", _NO_KEY.format(head=_HEAD))
    session = Credentials.of(request.headers).session
    if session:
        try:
            who, _ = await d.keys.identify(Credentials(session=session), d.sessions)
        except HttpError:  # it has ended
            return _form(request)
        return page("Signed in", _SIGNED_IN.format(head=_HEAD, owner=escape(who.owner)))
    return _form(request)


async def sign_in(request: Request) -> Response:
    """``POST /login`` with the field ``key``.

    Raises:
        HttpError: 413 if it is no such form.
    """
    d = deps(request)
    if d.keys.open:
        return RedirectResponse("./", 303)
    body = await read_body(request, _MAX_FORM_BYTES)
    key = parse_qs(body.decode("utf-8", "replace")).get("key", [""])[0].strip()
    who = d.keys.find(key)
    if who is None:
        return _form(request, wrong=True)
    token = secrets.token_urlsafe(32)
    await d.sessions.begin(token, session_proof(token, key), ttl_s=d.settings.session_s)
    logger.info("signed in", extra={"owner": who.owner})
    answer = RedirectResponse("./", 303)
    _set_cookie(request, answer, token, max_age=int(d.settings.session_s))
    return answer


async def sign_out(request: Request) -> Response:
    """``POST /logout``: the session is over, also for who has a copy of the cookie."""
    session = Credentials.of(request.headers).session
    if session:
        await deps(request).sessions.end(session)
    answer = RedirectResponse("./", 303)
    _set_cookie(request, answer, "", max_age=0)
    return answer


def _form(request: Request, *, wrong: bool = False) -> Response:
    days = max(1, round(deps(request).settings.session_s / 86400))
    text = _FORM.format(
        head=_HEAD,
        days="a day" if days == 1 else f"{days} days",
        wrong='<p class="wrong" role="alert">This is not one of the keys.</p>\n' if wrong else "",
    )
    return page("Sign in", text, status=401 if wrong else 200)


def _set_cookie(request: Request, answer: Response, token: str, *, max_age: int) -> None:
    base = urlsplit(links(request).base)
    answer.set_cookie(
        COOKIE,
        token,
        max_age=max_age,
        path=base.path or "/",
        secure=base.scheme == "https",
        httponly=True,
        samesite="strict",
    )
    answer.headers["Cache-Control"] = "no-store"


routes = [
    ServedRoute("/login", show, name="login_page", open=True),
    ServedRoute("/login", sign_in, name="login", method="POST", open=True),
    ServedRoute("/logout", sign_out, name="logout", method="POST", open=True),
]
