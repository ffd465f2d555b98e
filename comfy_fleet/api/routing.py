"""Finds the route of a request."""

from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager

from starlette.routing import Route, Router
from starlette.types import Receive, Scope, Send


class GroupedRouter(Router):
    """Compares a request only with the routes whose paths begin as its own.

    There are more than a hundred routes. To compare a request with each of them would take longer than
    to answer many a question.

    Args:
        routes: The first that fits answers.
        lifespan: Starlette's.
    """

    def __init__(
        self, routes: Sequence[Route], *, lifespan: Callable[[object], AbstractAsyncContextManager[None]]
    ) -> None:
        super().__init__(routes, redirect_slashes=False, lifespan=lifespan)
        groups: dict[str, list[Route]] = defaultdict(list)
        for route in routes:
            if "{" in (beginning := _beginning(route.path)):
                raise ValueError(f"the path {route.path} must begin with a name of its own")
            groups[beginning].append(route)
        self._groups = {name: Router(some, redirect_slashes=False) for name, some in groups.items()}

    async def app(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        group = self._groups.get(_beginning(scope["path"])) if scope["type"] == "http" else None
        await (super().app if group is None else group.app)(scope, receive, send)


def _beginning(path: str) -> str:
    """Return the first part of a path; of paths below ``/api``, the first two."""
    first, _, rest = path[1:].partition("/")
    return f"{first}/{rest.partition('/')[0]}" if first == "api" else first
