"""The ASGI app: all surfaces over the same services, with one entrance and one form of error."""

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import replace
from typing import Any
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.middleware.exceptions import ExceptionMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from comfy_fleet.api import (
    console_page,
    errors,
    front_page,
    login,
    metrics,
    publish_page,
    signed_access,
    workflow_pages,
)
from comfy_fleet.api.admission import Admission
from comfy_fleet.api.audit import Refusals
from comfy_fleet.api.body_pace import Incoming
from comfy_fleet.api.console import routes as console
from comfy_fleet.api.credentials import take_path_key
from comfy_fleet.api.deps import ApiDeps
from comfy_fleet.api.endpoint import ServedRoute
from comfy_fleet.api.errors import HttpError, OperatorsOnly
from comfy_fleet.api.handshake import NO_REFERRER, Handshake
from comfy_fleet.api.native import refusals
from comfy_fleet.api.native import routes as native
from comfy_fleet.api.openai import errors as openai_errors
from comfy_fleet.api.openai import routes as openai
from comfy_fleet.api.origins import Origin, client_address, marked, origin_of
from comfy_fleet.api.routing import GroupedRouter
from comfy_fleet.api.signed_access import SignedAccess
from comfy_fleet.api.site_guard import SiteGuard
from comfy_fleet.api.v1 import routes as v1
from comfy_fleet.api.v2 import routes as v2
from comfy_fleet.domain.errors import FleetError
from comfy_fleet.domain.principal import PrincipalLimits
from comfy_fleet.request_context import Submitting, in_request, submitting
from comfy_fleet.services.signed_urls import Readable
from comfy_fleet.tasks import forever

logger = logging.getLogger(__name__)

_BODILESS = frozenset({"GET", "HEAD", "DELETE", "OPTIONS"})
"""Nothing reads the body of these requests, so they need not wait for it."""
_TELLING = frozenset({"/metrics", metrics.FLEET_PATH, "/api/v1/ready"})
"""Open paths that name nodes: not for a page whose own name was made to lead here."""
_SAFE = frozenset({"GET", "HEAD", "OPTIONS"})


def create_app(deps: ApiDeps) -> "Front":
    """Return the app over its dependencies."""

    @contextlib.asynccontextmanager
    async def lifespan(_: object) -> AsyncIterator[None]:
        tasks = [asyncio.create_task(forever(run, name=run.__qualname__)) for run in deps.background]
        try:
            yield
        finally:
            deps.closing.set()
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await deps.clients.close()

    # The first route that fits answers, so the most frequent ones come first.
    routes = [
        *v2.routes(),
        *v1.routes(),
        *openai.routes(),
        *native.routes(deps.settings.extension_prefixes),
        *metrics.routes,
        *front_page.routes,
        *login.routes,
        *publish_page.routes,
        *workflow_pages.routes,
        *console.routes(),
    ]
    return Front(GroupedRouter(routes, lifespan=lifespan), routes, deps)


def _guards(deps: ApiDeps) -> Mapping[Origin | None, SiteGuard]:
    """Return who keeps other sites out, by what the edge has marked a request with."""
    settings = deps.settings
    urls = (settings.public_url, settings.console_url)
    names = [name for url in urls if url and (name := urlsplit(url).hostname)]
    needs_key = not deps.keys.open
    public = SiteGuard(
        needs_key=needs_key, url=settings.public_url, names=names, pages=settings.cors_page_origins
    )
    console = SiteGuard(needs_key=needs_key, url=settings.console_url, names=names, siblings=False)
    # What comes to the API's own port may do all that the console's may: the editor is foreign there.
    return {Origin.EDITOR: public, Origin.CONSOLE: console, None: console if settings.editor else public}


class Front:
    """The entrance: identifies callers, checks their rights, and answers if something breaks."""

    def __init__(self, router: GroupedRouter, routes: Sequence[ServedRoute], deps: ApiDeps) -> None:
        self.router = router
        self._routes: dict[Any, ServedRoute] = {route.endpoint: route for route in routes}
        self._open_paths = frozenset(route.path for route in routes if route.open)
        handlers: dict[Any, Any] = {
            FleetError: self._refused,
            HTTPException: self._unserved,
        }
        self.app = ExceptionMiddleware(router, handlers)
        self.deps = deps
        self.figures = metrics.Metrics(deps.registry)
        self.admission = Admission(deps.settings, routes)
        self._guards = _guards(deps)
        self._refusals = Refusals()
        self._cors_origins = deps.settings.cors_page_origins

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection's scope."""
        if scope["type"] == "lifespan":
            await self.router(scope, receive, send)
        elif scope["type"] == "http":
            await self._http(scope, receive, send)
        else:
            await self._socket(scope, receive, send)

    async def _refused(self, request: Request, error: FleetError) -> Response:
        """Answer one of the project's errors in the form of the surface that was asked."""
        if isinstance(error, OperatorsOnly):
            await self._refusals.note(request, error.error_code)
        route = self._routes.get(request.scope.get("endpoint"))
        answer = errors.fleet_error(error) if route is None else route.refusal(error)
        return console_page.for_browser(request.scope, answer)

    async def _unserved(self, request: Request, error: HTTPException) -> Response:
        """Answer one of the framework's errors."""
        answer = await errors.on_http_exception(request, error)
        return console_page.for_browser(request.scope, _shaped(request.scope, answer))

    def _place(self, scope: Scope, headers: Headers) -> str:
        """Note where a request came to; return the key in its path."""
        scope["app"], scope["deps"], scope["metrics"] = self, self.deps, self.figures
        scope["origin"] = origin_of(headers, editor=self.deps.settings.editor)
        scope["by_header"] = False
        client, request_id = client_address(scope, headers), headers.get("x-request-id", "")
        scope["client_address"] = client
        # Only the edge draws an id, or takes one from a proxy that is trusted.
        known = {"request_id": request_id} if request_id and marked(headers) is not None else {}
        in_request.set({**known, "client": client})
        path_key = take_path_key(scope)
        scope["key_in_path"] = bool(path_key)
        return path_key

    async def _identify(self, scope: Scope, headers: Headers, path_key: str) -> None:
        shown = self.deps.keys.shown(headers, scope["origin"], path_key)
        if marked(headers) is Origin.EDITOR and headers.get("origin", "").lower() in self._cors_origins:
            # What the browser adds by itself, or a proxy for it, is not that page's.
            shown = replace(shown, basic=(), session="", person="", groups=())
        scope["agent_token"] = token = await self.deps.agent_tokens.find(shown.key)
        try:
            if token is not None:
                found = self.deps.keys.an_agent(by_header=shown.in_header)
            else:
                found = await self.deps.keys.identify(shown, self.deps.sessions, scope["origin"])
        except HttpError as error:
            if error.status == 401 and (shown.key or shown.basic):
                await self.deps.wrong_keys.seen(scope["client_address"], scope["path"])
            raise
        scope["principal"], scope["session"] = found.principal, found.session
        if found.principal.quotas:
            self.deps.request_pace.take(found.principal.quotas)
        scope["by_header"], scope["more_elsewhere"] = found.by_header, found.more_elsewhere

    async def _read_by_signature(
        self, scope: Scope, kind: Readable, id_: str, query: Mapping[str, str]
    ) -> None:
        """Let a request act for a job's owner, to read what its URL was signed for, and nothing else."""
        d = self.deps
        limits = PrincipalLimits(streams=d.settings.max_streams, sockets=0)
        access = SignedAccess(urls=d.signed_urls, jobs=d.jobs, assets=d.assets, limits=limits)
        found = await access.granted(kind, id_, query, now=d.clock())
        scope["principal"], scope["session"], scope["signed"] = found.principal, "", found.expires_at

    async def _socket(self, scope: Scope, receive: Receive, send: Send) -> None:
        handshake = Handshake(scope, receive, send, self.deps.sockets)
        headers = Headers(scope=scope)
        path_key = self._place(scope, headers)
        handler = native.SOCKETS.get(scope["path"])
        try:
            self._guards[marked(headers)].check(headers, changing=True)
            await self._identify(scope, headers, path_key)
            await handshake.serve(handler, scope["principal"])
        except FleetError as error:
            await handshake.refuse(refusals.answer(error))
        except OSError:  # by ASGI, what `send` raises if the client is gone
            return
        except Exception:
            logger.exception("websocket failed", extra={"path": scope["path"]})
            await handshake.refuse(errors.unexpected())
        finally:
            self.figures.count("socket" if handler else "none", handshake.status, None)

    async def _http(self, scope: Scope, receive: Receive, send: Send) -> None:
        status, finished = 0, False
        began = time.perf_counter()
        headers = Headers(scope=scope)
        submits = None
        if self.deps.traces and scope["method"] == "POST":
            submits = Submitting(self.deps.clock())
            submitting.set(submits)
        path_key = self._place(scope, headers)
        ticket = self.admission.ticket(scope["method"], scope["path"])
        reads = signed_access.asked(scope)
        incoming = Incoming(receive, headers, self.deps.pace, ticket.enter)

        async def sending(message: Message) -> None:
            nonlocal status, finished
            if message["type"] == "http.response.start":
                status = message["status"]
                ticket.leave()
                # Refused before it was read: the unread body will be drained.
                more = [NO_REFERRER] if incoming.ended else [NO_REFERRER, (b"connection", b"close")]
                if reads is not None:
                    more += signed_access.HEADERS
                if submits is not None and submits.traceparent:
                    more.append((b"traceparent", submits.traceparent.encode()))
                message = {**message, "headers": [*message.get("headers", ()), *more]}
            elif message["type"] == "http.response.body":
                finished = not message.get("more_body", False)
                if finished and not incoming.ended:
                    await send({**message, "more_body": True})
                    await incoming.discard()
                    message = {"type": "http.response.body", "body": b""}
            await send(message)

        scope["ticket"] = ticket
        try:
            public = scope["path"] in self._open_paths
            changing = scope["method"] not in _SAFE
            if changing or not public or scope["path"] in _TELLING:
                self._guards[marked(headers)].check(headers, changing=changing, signed=reads is not None)
            if reads is not None:
                await self._read_by_signature(scope, *reads)
            elif path_key or not public:
                await self._identify(scope, headers, path_key)
                incoming.narrow(scope["principal"])
            if incoming.ended or scope["method"] in _BODILESS:
                await ticket.enter()
            await self.app(scope, incoming, sending)
        except FleetError as error:
            await _answer(scope, error)(scope, incoming, sending)
        except ClientDisconnect:
            return
        except Exception:
            job_id = (scope.get("path_params") or {}).get("job_id")
            extra = {"method": scope["method"], "path": scope["path"]}
            logger.exception("request failed", extra=extra | ({"job_id": job_id} if job_id else {}))
            if not status:
                await console_page.for_browser(scope, _shaped(scope, errors.unexpected()))(
                    scope, incoming, sending
                )
            elif not finished:
                raise  # break off the connection, so that nobody takes the answer for complete
        finally:
            ticket.leave()
            route = self._routes.get(scope.get("endpoint"))
            lasts = scope.get("lasting", False) or (route is not None and route.streams)
            seconds = None if lasts else time.perf_counter() - began
            self.figures.count(route.name if route is not None else "none", status, seconds)


def _answer(scope: Scope, error: FleetError) -> Response:
    """Answer an error from before a route was found; a person without a session gets a page that says so."""
    if isinstance(error, HttpError) and error.status == 401 and scope["method"] == "GET":
        found = login.signed_out(scope["path"])
        if found is not None and scope["origin"] is Origin.CONSOLE:
            return found
    return console_page.for_browser(scope, _shaped(scope, errors.fleet_error(error)))


def _shaped(scope: Scope, answer: Response) -> Response:
    """Return an error in the form of the interface whose path was asked for."""
    return openai_errors.reshaped(answer) if openai_errors.is_asked(scope["path"]) else answer
