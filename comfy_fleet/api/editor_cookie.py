"""Which node's editor a caller has: the cookie that says so (:mod:`comfy_fleet.services.editor_ticket`)."""

from urllib.parse import urlsplit

from starlette.requests import Request
from starlette.responses import Response

from comfy_fleet.api.deps import deps, links
from comfy_fleet.services.editor_ticket import COOKIE, LIFETIME_S


def editor_node(request: Request) -> str | None:
    """Return the node whose editor the caller has, as its ticket says; None without a valid one."""
    ticket = request.cookies.get(COOKIE, "")
    d = deps(request)
    return d.editor_tickets.node(ticket, now=d.clock()) if ticket else None


def give_ticket(request: Request, answer: Response, node: str) -> None:
    """Have a caller keep a node's editor."""
    d = deps(request)
    base = urlsplit(links(request).base)
    answer.set_cookie(
        COOKIE,
        d.editor_tickets.sign(node, now=d.clock()),
        max_age=int(LIFETIME_S),
        path=base.path or "/",
        secure=base.scheme == "https",
        httponly=True,
        samesite="strict",
    )
