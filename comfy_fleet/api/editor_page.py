"""``GET /`` of the editor's origin: ComfyUI's editor, wherever there is a node that has one.

Without one, and at the console, it is the page that says what a fleet is. A key in the path shows that page,
too: the editor's JavaScript could read it there.
"""

from html import escape

from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from comfy_fleet.api.deps import deps, origin
from comfy_fleet.api.editor_address import address, opened
from comfy_fleet.api.editor_cookie import editor_node, give_ticket
from comfy_fleet.api.errors import HttpError
from comfy_fleet.api.origins import Origin
from comfy_fleet.api.page import page
from comfy_fleet.domain.errors import Busy, EditorAway

_AWAY = """<h1>comfy_fleet</h1>
<p class="faint">Many GPUs, one ComfyUI</p>
<p class="wrong" role="alert">{why}</p>
<p>Load this page again in a moment. What is queued stays queued, and what you have saved is kept by the
fleet, not by the node.</p>
<p>An operator can name a node for the editor, with or without a GPU: <code>fleet node add NAME URL
--editor</code>.</p>"""
_GO_ON = '<p><a href="{address}">Open the editor</a></p>'
_HEADERS = {
    "Cache-Control": "no-store",
    # Other sites must not put it into a page of theirs.
    "Content-Security-Policy": "frame-ancestors 'self'",
}


async def editor(request: Request) -> Response | None:
    """Return the editor's page, or where to sign in for it; None if this fleet serves no editor here."""
    d = deps(request)
    if origin(request) is not Origin.EDITOR or request.scope["key_in_path"] or not await d.editors.any_node():
        return None
    if "cross-site" in request.headers.getlist("sec-fetch-site"):
        # Behind another site's link, browsers keep the cookies back. What a page of ours asks for has them.
        here = address("./", opened(request))
        body = _GO_ON.format(address=escape(here))
        return page("ComfyUI", body, headers={"Refresh": f"0; url={here}"})
    if (who := await _who(request)) is None:
        return RedirectResponse(address("login", opened(request)), 303, headers={"Cache-Control": "no-store"})
    try:
        found = await d.editors.page(who, editor_node(request))
    except (Busy, EditorAway) as error:
        headers = {"Retry-After": str(error.retry_after_s)}
        return page("No editor", _AWAY.format(why=escape(error.message)), status=503, headers=headers)
    answer = Response(found.body, headers=_HEADERS, media_type="text/html")
    give_ticket(request, answer, found.node)
    return answer


async def _who(request: Request) -> str | None:
    """Return the caller's name if it shows that it may use the fleet."""
    d, place = deps(request), origin(request)
    try:
        found = await d.keys.identify(d.keys.shown(request.headers, place), d.sessions, place)
    except HttpError:
        return None
    return found.principal.owner
