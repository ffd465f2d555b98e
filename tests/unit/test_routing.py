"""Requests are compared with few routes, and still find the right one."""

import contextlib
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from comfy_fleet.api.routing import GroupedRouter


@contextlib.asynccontextmanager
async def lifespan(_: object) -> AsyncIterator[None]:
    yield


class Counted(Route):
    """A route that counts how often a request was compared with it."""

    compared = 0

    def matches(self, scope: Any) -> Any:
        self.compared += 1
        return super().matches(scope)


def route(path: str, method: str = "GET") -> Counted:
    async def shown(request: Request) -> Response:
        return PlainTextResponse(f"{method} {path} {dict(request.path_params)}")

    return Counted(path, shown, methods=[method])


PATHS = (
    "/",
    "/jobs",
    "/jobs/{id}",
    "/jobs/{id}/files",
    "/api/jobs/{id}",
    "/api/v1/jobs/{id}",
    "/api/v1/{name}",
)


async def ask(router: GroupedRouter, path: str, method: str = "GET") -> httpx.Response:
    transport = httpx.ASGITransport(app=router)
    async with httpx.AsyncClient(transport=transport, base_url="http://fleet") as client:
        return await client.request(method, path)


@pytest.mark.parametrize(
    ("path", "answer"),
    [
        ("/", "GET / {}"),
        ("/jobs", "GET /jobs {}"),
        ("/jobs/a%2Fb/files", None),
        ("/jobs/a/files", "GET /jobs/{id}/files {'id': 'a'}"),
        ("/api/jobs/a", "GET /api/jobs/{id} {'id': 'a'}"),
        ("/api/v1/jobs/a", "GET /api/v1/jobs/{id} {'id': 'a'}"),
        ("/api/v1/x", "GET /api/v1/{name} {'name': 'x'}"),
        ("/api", None),
        ("/api/", None),
        ("/api/v1", None),
        ("/api/v2/jobs", None),
        ("/nothing", None),
    ],
)
async def test_the_first_route_that_fits_answers(path: str, answer: str | None) -> None:
    found = await ask(GroupedRouter([route(one) for one in PATHS], lifespan=lifespan), path)
    assert (found.status_code, found.text) == ((404, "Not Found") if answer is None else (200, answer))


async def test_a_request_is_compared_with_routes_that_begin_alike() -> None:
    routes = [route(one) for one in PATHS]
    await ask(GroupedRouter(routes, lifespan=lifespan), "/api/v1/x")
    assert [one.path for one in routes if one.compared] == ["/api/v1/jobs/{id}", "/api/v1/{name}"]


async def test_another_method_of_a_path_is_found_or_refused() -> None:
    router = GroupedRouter([route("/jobs"), route("/other"), route("/jobs", "POST")], lifespan=lifespan)
    assert (await ask(router, "/jobs", "POST")).text == "POST /jobs {}"
    assert (await ask(router, "/jobs", "DELETE")).status_code == 405
    assert (await ask(router, "/other", "POST")).status_code == 405


def test_a_path_must_begin_with_a_name() -> None:
    for path in ("/{name}", "/api/{name}"):
        with pytest.raises(ValueError, match="must begin with a name"):
            GroupedRouter([route(path)], lifespan=lifespan)
