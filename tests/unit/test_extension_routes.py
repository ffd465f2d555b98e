"""Prefixes of extensions' routes: what can be opened, and which paths that opens."""

from typing import Any

import pytest

from comfy_fleet.api import front_page, login
from comfy_fleet.api.endpoint import ServedRoute
from comfy_fleet.api.native import routes as native
from comfy_fleet.api.v1 import routes as v1
from comfy_fleet.api.v2 import routes as v2
from comfy_fleet.cli.exits import Fail
from comfy_fleet.cli.processes import load
from comfy_fleet.domain.errors import BadInput
from comfy_fleet.domain.extension_routes import CLOSED, OWN, opened_by, parse_prefixes
from comfy_fleet.settings import Settings


def test_prefixes_stand_once_and_without_api() -> None:
    assert parse_prefixes(" /chooser, /api/easyuse ,/chooser/,,/api/chooser") == ("/chooser", "/easyuse")
    assert parse_prefixes("") == ()
    assert Settings(extension_routes="/api/etn/image").extension_prefixes == ("/etn/image",)


@pytest.mark.parametrize(
    "text",
    ["chooser", "/", "/api", "/api/", "/a/../b", "/.", "/a//b", "/a b", "/a%2fb", "/a?", "/é", '/a"b', "/a$b",
     "/internal", "/internal/logs", "/api/internal/folder_paths", "/Internal", "/assets/seed",
     "/api/assets/prune", "/manager", "/customnode/install", "/v2/manager/reboot", "/userdata",
     "/prompt", "/api/v1/nodes", "/k",
     "/api/api/internal",
     "/" + "a" * 65, "/a" * 7, ",".join(f"/p{number}" for number in range(33))],
)  # fmt: skip
def test_what_is_no_prefix_is_refused(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BadInput):
        parse_prefixes(text)
    monkeypatch.setenv("FLEET_EXTENSION_ROUTES", text)
    with pytest.raises(Fail, match=r"^FLEET_EXTENSION_ROUTES: "):
        load()


def test_a_prefix_opens_whole_segments() -> None:
    prefixes = ("/chooser", "/etn/image")
    for path in ("/chooser", "/chooser/a/b", "/api/chooser", "/api/etn/image/1"):
        assert opened_by(prefixes, path) == (prefixes[0] if "chooser" in path else prefixes[1])
    for path in ("/", "/chooserx", "/api", "/etn", "/etn/images", "/x/chooser", "/api/api/chooser"):
        assert opened_by(prefixes, path) is None


def test_no_route_of_the_fleets_can_be_opened() -> None:
    served = [
        *(route.path for table in (native, v1, v2, login) for route in _routes(table)),
        *(route.path for route in front_page.routes),
        *native.SOCKETS,
    ]
    first = {path.removeprefix("/api").split("/")[1] for path in served if path != "/"}
    assert len(first) > 30
    assert first <= OWN | CLOSED
    for name in first - {"openapi.json"}:
        with pytest.raises(BadInput, match="can't be opened"):
            parse_prefixes(f"/{name}")


def _routes(table: Any) -> list[ServedRoute]:
    found: list[ServedRoute] = table.routes if isinstance(table.routes, list) else table.routes()
    return found
