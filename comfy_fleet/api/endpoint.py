"""One row of an API surface: a route, and what its OpenAPI document says about it."""

from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import wraps
from typing import Any

from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from comfy_fleet.api.answers import ErrorEnvelope
from comfy_fleet.api.errors import HttpError, OperatorsOnly, fleet_error
from comfy_fleet.api.origins import Origin, console_base
from comfy_fleet.domain.about import NOTHING_HERE, WHERE_INSTEAD
from comfy_fleet.domain.errors import FleetError, IdempotencyKeyReuse

Handler = Callable[[Request], Awaitable[Response]]

JSON = "application/json"
EVENTS = "text/event-stream"
BINARY = "application/octet-stream"


ONLY_FIGURES = "a key with the role metrics reads figures, and nothing else"


class ServedRoute(Route):
    """A route, and what the entrance needs to know about its requests.

    Attributes:
        name: The label in metrics.
        open: Whether a request needs no key.
        at_once: Whether a request is let in however many are in progress.
        streams: Whether the answer lasts as long as events come, so that its duration means nothing.
        passing: Whether all that a request writes is written anew a moment later, so that its answer need not
            wait for replicas of the store.
        console: Whether only operators, agents or the console's pages need it: on the editor's origin it is
            refused to whoever does not show a key in a header.
        editor: Whether its answer holds what a node made for the editor: it is never given on the console's
            origin.
        figures: Whether it answers figures of the whole fleet, all that a key with the role metrics may read.
        refusal: Makes the answer for an error, in the form of this surface.
    """

    def __init__(
        self,
        path: str,
        handler: Handler,
        *,
        name: str,
        method: str = "GET",
        open: bool = False,  # noqa: A002 - as in Endpoint
        at_once: bool = False,
        streams: bool = False,
        passing: bool = False,
        console: bool = False,
        editor: bool = False,
        figures: bool = False,
        refusal: Callable[[FleetError], Response] = fleet_error,
    ) -> None:
        lasting = method not in ("GET", "HEAD") and not passing
        super().__init__(path, _replicated(handler) if lasting else handler, methods=[method], name=name)
        self.open = open
        self.at_once = at_once
        self.streams = streams
        self.console = console
        self.editor = editor
        self.figures = figures
        self.refusal = refusal

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a request whose path is this route's.

        Raises:
            HttpError: 403 ``console_only`` or ``forbidden``; 404.
        """
        who = scope.get("principal")
        if who is not None and who.only_figures and not (self.figures or self.open):
            raise HttpError(403, "forbidden", ONLY_FIGURES)
        origin = scope["origin"]
        if self.console and origin is Origin.EDITOR and not scope["by_header"]:
            request = Request(scope)
            raise console_only(console_base(request, scope["deps"].settings))
        if self.editor and origin is Origin.CONSOLE:
            raise HttpError(404, "not_found", NOTHING_HERE, details=WHERE_INSTEAD)
        await super().handle(scope, receive, send)


def _replicated(handler: Handler) -> Handler:
    """Let a handler's success wait until replicas of the store have what it has written."""

    @wraps(handler)
    async def confirmed(request: Request) -> Response:
        replication = request.scope["deps"].replication
        server = await replication.server()
        try:
            answer = await handler(request)
        except IdempotencyKeyReuse:  # it names the job that was made, so this tells of it as well
            await replication.confirm(server)
            raise
        if answer.status_code < 400:
            await replication.confirm(server)
        return answer

    return confirmed


@dataclass(frozen=True, kw_only=True)
class Endpoint:
    """A method and path, its handler, and its answers.

    Attributes:
        path: With names in braces, e.g. ``/api/v1/jobs/{job_id}``.
        operation: The operation's id in the document, and the label in metrics.
        handler: Its docstring is the description.
        tag: Groups operations; clients make modules of it.
        query: The query's fields.
        parameters: Further parameters, as OpenAPI writes them: what a model can't say.
        body: The request's body: a model, or a TypedDict.
        body_kind: The body's content type.
        body_required: Whether it has to be there.
        answers: What successes carry, by status: a model or TypedDict, or None for no body.
        kind: Content type of the successes.
        errors: Statuses of errors besides those that follow from path, query and body.
        events: The data of a stream's events, by the event's name.
        open: Whether it needs no key.
        at_once: Whether a request is let in however many are worked on: what must not wait behind all the
            rest, and uploads, which are written while they come: refused at their end, all would come again.
        waits: Whether it may wait for its job's end; it takes a ``WaitQuery`` then.
        failure: The form of errors.
        console: As in :class:`ServedRoute`, as are ``figures``, ``passing`` and ``refusal``.
    """

    method: str
    path: str
    operation: str
    handler: Handler
    summary: str
    tag: str
    query: type[BaseModel] | None = None
    parameters: Sequence[Mapping[str, Any]] = ()
    body: Any = None
    body_kind: str = JSON
    body_required: bool = True
    answers: Mapping[int, Any] = field(default_factory=dict)
    kind: str = JSON
    errors: Sequence[int] = ()
    events: Mapping[str, Any] = field(default_factory=dict)
    open: bool = False
    at_once: bool = False
    waits: bool = False
    passing: bool = False
    console: bool = False
    figures: bool = False
    failure: Any = ErrorEnvelope
    refusal: Callable[[FleetError], Response] = fleet_error

    @property
    def route(self) -> ServedRoute:
        """The route that serves it."""
        return ServedRoute(
            self.path,
            self.handler,
            name=self.operation,
            method=self.method,
            open=self.open,
            at_once=self.at_once,
            streams=bool(self.events),
            passing=self.passing,
            console=self.console,
            figures=self.figures,
            refusal=self.refusal,
        )


def console_only(base: str) -> HttpError:
    """Return the refusal of what is done on the console's origin.

    Args:
        base: That origin's base URL.
    """
    return OperatorsOnly(
        403,
        "console_only",
        f"this is done at {base}: here, only programs that show a key in a header may do it",
        details={"console": base},
    )


def routes(table: Iterable[Endpoint]) -> list[ServedRoute]:
    """Return the routes of a table, in its order."""
    return [endpoint.route for endpoint in table]
