"""Signing in with a browser: the key once, on the console's origin, then a cookie of no use to other sites.

The editor's origin gets a session of its own, of which nobody but the person's browser knows:

1. ``EDITOR/login`` gives the browser a nonce in a cookie, and sends it to ``CONSOLE/login?editor=HASH``.
2. There the person shows their key, or, if they have done so before, presses a button.
3. The console sends the browser to ``EDITOR/enter?code=CODE``. The code is good for one use within a minute,
   by the browser with that nonce: nobody can be led into somebody else's session.

The editor's session belongs to the console's and ends with it. It never has an operator's rights.
"""

import hashlib
import logging
import re
import secrets
from dataclasses import replace
from html import escape
from urllib.parse import parse_qs, urlsplit

from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from comfy_fleet.api.auth import HANDED_OVER
from comfy_fleet.api.body import read_body
from comfy_fleet.api.credentials import COOKIES, Credentials, only_cookie, shown_cookies
from comfy_fleet.api.deps import deps, links, origin
from comfy_fleet.api.editor_address import OPEN, address, opened, reference
from comfy_fleet.api.endpoint import ServedRoute, console_only
from comfy_fleet.api.errors import HttpError
from comfy_fleet.api.origins import Origin, console_base, editor_base, page_origin
from comfy_fleet.api.page import page
from comfy_fleet.domain.about import NOTHING_HERE, WHERE_INSTEAD
from comfy_fleet.domain.principal import Principal
from comfy_fleet.ports.sessions import HandOver

logger = logging.getLogger(__name__)

CODE_S = 60.0
NONCE_COOKIE = "fleet_enter"
_NONCE_S = 600
_MOST_SESSIONS = 10
"""How many session cookies of one request are signed out: a script can add some to the right one."""
_NONCE = re.compile(r"[A-Za-z0-9_-]{43}")
_BROWSER = re.compile(r"[0-9a-f]{64}")
_MAX_FORM_BYTES = 4096
_NAME = "/[a-z0-9][a-z0-9_.-]{0,62}"
_PAGE = re.compile(rf"(?:publish|workflows)(?:{_NAME})?|console(?:{_NAME}(?:@[a-z0-9]{{1,64}})?){{0,3}}")
"""The pages to which a sign-in may lead back."""
_HEAD = '<h1>comfy_fleet</h1>\n<p class="faint">Many GPUs, one ComfyUI</p>\n'
_FORM = """{head}<form method="post" action="login">
<label for="key">Your API key</label>
<input id="key" name="key" type="password" autocomplete="current-password" required autofocus>
{hidden}{wrong}<p><button>Sign in</button></p>
</form>
<p class="faint">This browser stays signed in for {days}, or until you sign out.</p>"""
_EDITOR = '<input type="hidden" name="editor" value="{browser}">\n'
_WORKFLOW = '<input type="hidden" name="fleet_workflow" value="{workflow}">\n'
_THEN = '<input type="hidden" name="then" value="{then}">\n'
_SIGNED_OUT = """{head}<p>To see this page, sign in.</p>
<p><a class="button" href="{root}login?then={then}">Sign in</a></p>
<p class="faint">You are signed in already? <a href="">Load this page again</a>.</p>"""
_SIGNED_IN = """{head}<p>You are signed in as <b>{owner}</b>.</p>
{editor}<form method="post" action="logout"><button>Sign out</button></form>
<p><a href="./">What this is</a></p>"""
_OPEN_EDITOR = """<form method="post" action="login">
{editor}<p><button>Open the editor</button></p>
</form>
"""
_NO_KEY = """{head}<p>This fleet needs no key on this machine: there is nothing to sign in to.</p>
<p><a href="./">What this is</a></p>"""
_ENTERED = """{head}<p>You are signed in as <b>{owner}</b>. <a href="{then}">Go on</a></p>"""
_TOO_LATE = """{head}<p>This link was good once, for a minute, in the browser that it was made for.</p>
<p><a class="button" href="login">Sign in</a></p>"""


async def show(request: Request) -> Response:
    """``GET /login``: on the editor's origin, the way to the form on the console's."""
    d = deps(request)
    if d.keys.open:
        return page("comfy_fleet", _NO_KEY.format(head=_HEAD))
    who = await _signed_in(request)
    if origin(request) is Origin.EDITOR:
        return _to_the_console(request) if who is None else _shown(who)
    browser = _browser(request.query_params.get("editor", ""))
    if who is None:
        return _form(request, browser, _then(request.query_params.get("then", "")), opened(request))
    if not browser:
        return _shown(who)
    editor = _OPEN_EDITOR.format(editor=_editor_fields(browser, opened(request)))
    return _shown(who, editor=editor, forms_lead_to=page_origin(editor_base(request, d.settings)))


async def sign_in(request: Request) -> Response:
    """``POST /login`` with the field ``key``; with ``editor``, the editor's origin gets a session, too.

    Raises:
        HttpError: 403 on the editor's origin; 413 if it is no such form.
    """
    d = deps(request)
    if origin(request) is Origin.EDITOR:
        raise console_only(console_base(request, d.settings))
    if d.keys.open:
        return RedirectResponse("./", 303)
    body = await read_body(request, _MAX_FORM_BYTES)
    fields = parse_qs(body.decode("utf-8", "replace"))
    browser = _browser(fields.get("editor", [""])[0])
    workflow = reference(fields.get(OPEN, [""])[0])
    if "key" not in fields and browser and (who := await _signed_in(request)) is not None:
        return await _hand_over(request, who, _token(request), browser, workflow)
    await d.keys.ring.ready()
    who = d.keys.find(fields.get("key", [""])[0].strip())
    then = _then(fields.get("then", [""])[0])
    if who is None:
        await d.wrong_keys.seen(request.scope["client_address"], "/login")
        return _form(request, browser, then, workflow, wrong=True)
    token = d.keys.token(who, secrets.token_urlsafe(32))
    await d.sessions.begin(
        token, d.keys.session_proof(token, who, Origin.CONSOLE), ttl_s=d.settings.session_s
    )
    logger.info("signed in", extra={"owner": who.owner})
    if browser:
        answer = await _hand_over(request, who, token, browser, workflow)
    else:
        answer = RedirectResponse(f"./{then}", 303)
    _set_cookie(request, answer, COOKIES[Origin.CONSOLE], token, max_age=int(d.settings.session_s))
    return answer


async def enter(request: Request) -> Response:
    """``GET /enter`` with the ``code`` of a sign-in: the editor's origin gets its session.

    Raises:
        HttpError: 404 on the console's origin.
    """
    d = deps(request)
    if origin(request) is not Origin.EDITOR:
        raise HttpError(404, "not_found", NOTHING_HERE, details=WHERE_INSTEAD)
    code, nonce = request.query_params.get("code", ""), _cookie(request, NONCE_COOKIE)
    offer = await d.sessions.take(code) if code else None  # whoever has shown it: it is over
    who = None if offer is None else d.keys.proven(code, offer.proof, HANDED_OVER)
    if offer is None or who is None or not secrets.compare_digest(offer.browser, _hash(nonce)):
        return page("Sign in", _TOO_LATE.format(head=_HEAD), status=403)
    token = d.keys.token(who, f"{secrets.token_urlsafe(32)}.{offer.session}")
    await d.sessions.begin(token, d.keys.session_proof(token, who, Origin.EDITOR), ttl_s=d.settings.session_s)
    # A page leads on, and no redirect: a cookie that is `Strict` goes with what one's own page asks for.
    then = address("./", opened(request))
    body = _ENTERED.format(head=_HEAD, owner=escape(who.owner), then=escape(then))
    answer = page("Signed in", body, headers={"Refresh": f"0; url={then}"})
    _set_cookie(request, answer, COOKIES[Origin.EDITOR], token, max_age=int(d.settings.session_s))
    _set_cookie(request, answer, NONCE_COOKIE, "", max_age=0)
    return answer


async def sign_out(request: Request) -> Response:
    """``POST /logout``: the sessions of both origins are over, also for who has a copy of a cookie."""
    name = COOKIES[origin(request)]
    for session in shown_cookies(request.headers, name)[:_MOST_SESSIONS]:
        await deps(request).sessions.end(session)
    answer = RedirectResponse("./", 303)
    _set_cookie(request, answer, name, "", max_age=0)
    return answer


async def _signed_in(request: Request) -> Principal | None:
    """Return whose session the browser has at the request's origin; None if it has none, or it has ended."""
    d = deps(request)
    shown = replace(d.keys.shown(request.headers, origin(request)), key="", basic=())
    if not shown.session and not shown.person:
        return None
    try:
        found = await d.keys.identify(shown, d.sessions, origin(request))
    except HttpError:
        return None
    return found.principal


def _token(request: Request) -> str:
    return Credentials.of(request.headers, origin(request)).session


async def _hand_over(
    request: Request, who: Principal, token: str, browser: str, workflow: str
) -> RedirectResponse:
    """Send the browser to the editor's origin with a code that is good once.

    Args:
        request: The sign-in.
        who: Who signs in.
        token: Their session's on the console's origin.
        browser: Which browser may use the code.
        workflow: What the editor is to open then.
    """
    d = deps(request)
    code = d.keys.token(who, secrets.token_urlsafe(32))
    offer = HandOver(
        proof=d.keys.session_proof(code, who, HANDED_OVER),
        browser=browser,
        session=d.sessions.known_by(token),
    )
    await d.sessions.offer(code, offer, ttl_s=CODE_S)
    there = address(f"{editor_base(request, d.settings)}/enter", workflow, code=code)
    answer = RedirectResponse(there, 303)
    answer.headers["Cache-Control"] = "no-store"
    return answer


def _to_the_console(request: Request) -> Response:
    """Send the browser to the form, with a nonce by which the editor's origin knows it again."""
    nonce = _cookie(request, NONCE_COOKIE)
    if not _NONCE.fullmatch(nonce):
        nonce = secrets.token_urlsafe(32)
    base = console_base(request, deps(request).settings)
    there = address(f"{base}/login", opened(request), editor=_hash(nonce))
    answer = RedirectResponse(there, 303)
    # `Lax`: the console may be of another site, and brings the browser back by a link.
    _set_cookie(request, answer, NONCE_COOKIE, nonce, max_age=_NONCE_S, lax=True)
    return answer


def _editor_fields(browser: str, workflow: str) -> str:
    more = _WORKFLOW.format(workflow=escape(workflow)) if workflow else ""
    return _EDITOR.format(browser=browser) + more


def _form(request: Request, browser: str, then: str, workflow: str, *, wrong: bool = False) -> Response:
    settings = deps(request).settings
    days = max(1, round(settings.session_s / 86400))
    text = _FORM.format(
        head=_HEAD,
        days="a day" if days == 1 else f"{days} days",
        hidden=_editor_fields(browser, workflow) if browser else _THEN.format(then=then) if then else "",
        wrong='<p class="wrong" role="alert">This is not one of the keys.</p>\n' if wrong else "",
    )
    forms_lead_to = page_origin(editor_base(request, settings)) if browser else ""
    return page("Sign in", text, status=401 if wrong else 200, forms_lead_to=forms_lead_to)


def _shown(who: Principal, *, editor: str = "", forms_lead_to: str = "") -> Response:
    text = _SIGNED_IN.format(head=_HEAD, owner=escape(who.owner), editor=editor)
    return page("Signed in", text, forms_lead_to=forms_lead_to)


def signed_out(path: str) -> Response | None:
    """Return the page for who asks for one of the console's without a session; None for other paths."""
    then = _then(path.removeprefix("/"))
    if not then:
        return None
    root = "../" * then.count("/")
    return page("Sign in", _SIGNED_OUT.format(head=_HEAD, root=root, then=then), status=401)


def _then(text: str) -> str:
    return text if _PAGE.fullmatch(text) else ""


def _browser(text: str) -> str:
    return text if _BROWSER.fullmatch(text) else ""


def _hash(nonce: str) -> str:
    return hashlib.sha256(nonce.encode("utf-8", "surrogateescape")).hexdigest()


def _cookie(request: Request, name: str) -> str:
    return only_cookie(request.headers, name)


def _set_cookie(
    request: Request, answer: Response, name: str, value: str, *, max_age: int, lax: bool = False
) -> None:
    base = urlsplit(links(request).base)
    answer.set_cookie(
        name,
        value,
        max_age=max_age,
        path=base.path or "/",
        secure=base.scheme == "https",
        httponly=True,
        samesite="lax" if lax else "strict",
    )
    answer.headers["Cache-Control"] = "no-store"


routes = [
    ServedRoute("/login", show, name="login_page", open=True),
    ServedRoute("/login", sign_in, name="login", method="POST", open=True),
    ServedRoute("/enter", enter, name="enter", open=True),
    ServedRoute("/logout", sign_out, name="logout", method="POST", open=True),
]
