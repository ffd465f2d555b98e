"""One row of an API surface: a route, and what its OpenAPI document says about it."""

from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

Handler = Callable[[Request], Awaitable[Response]]

JSON = "application/json"
EVENTS = "text/event-stream"
BINARY = "application/octet-stream"


@dataclass(frozen=True, kw_only=True)
class Endpoint:
    """A method and path, who answers, and with what.

    Attributes:
        path: With names in braces, e.g. ``/api/v1/jobs/{job_id}``.
        handler: Its name is the operation's id and the label in metrics; its docstring the description.
        tag: Groups operations; clients make modules of it.
        query: The query's fields.
        parameters: Further parameters, as OpenAPI writes them: what a model can't say.
        body: What the request carries.
        body_kind: The body's content type.
        body_required: Whether it has to be there.
        answers: What successes carry, by status: a model or TypedDict, or None for no body.
        kind: Content type of the successes.
        errors: Statuses of errors besides those that follow from path, query and body.
        open: Whether it needs no key.
        extra: More of the operation, such as the catalog of a stream's events.
    """

    method: str
    path: str
    handler: Handler
    summary: str
    tag: str
    query: type[BaseModel] | None = None
    parameters: Sequence[Mapping[str, Any]] = ()
    body: type[BaseModel] | None = None
    body_kind: str = JSON
    body_required: bool = True
    answers: Mapping[int, Any] = field(default_factory=dict)
    kind: str = JSON
    errors: Sequence[int] = ()
    open: bool = False
    extra: Mapping[str, Any] = field(default_factory=dict)

    @property
    def operation(self) -> str:
        """The operation's id."""
        return self.handler.__name__

    @property
    def route(self) -> Route:
        """The route that serves it."""
        return Route(self.path, self.handler, methods=[self.method])


def routes(table: Iterable[Endpoint]) -> list[Route]:
    """Return the routes of a table, in its order."""
    return [endpoint.route for endpoint in table]
