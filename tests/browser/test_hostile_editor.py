"""An editor node that is hostile, in a real browser: what its extension's script can do, and what it can't.

Real edge, broker, API and Redis; the node is :mod:`tests.browser.evil_node`.
"""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from comfy_fleet.api import login, publish_page, workflow_pages
from comfy_fleet.api.endpoint import ServedRoute
from comfy_fleet.api.native import routes as native
from comfy_fleet.api.v1 import routes as v1
from comfy_fleet.api.v2 import routes as v2
from tests.acceptance.up import Up, start_fleet, stop_fleet
from tests.acceptance.wire import bearer
from tests.browser.chromium import Chromium
from tests.browser.evil_node import EvilNode
from tests.browser.page import Page
from tests.key_files import write_keys

pytestmark = pytest.mark.timeout(300)

BOB, EVE, OPS, AGENT = "bob-key-0123456789", "eve-key-0123456789", "ops-key-0123456789", "agent-0123456789abc"
SECRET = "bobs-secret-9f2c"
UUID = "5e1b5a7e-0000-4000-8000-000000000000"


def table() -> list[ServedRoute]:
    """Return the routes of the whole API."""
    pages = [*login.routes, *publish_page.routes, *workflow_pages.routes]
    return [*v1.routes(), *v2.routes(), *native.routes(("/chooser",)), *pages]


def asked(route: ServedRoute) -> tuple[str, str]:
    names = {"node": "evil", "workflow": "image_card", "folder": "input", "pool": "default", "host": "evil"}
    path = re.sub(r"{(\w+)(?::\w+)?}", lambda found: names.get(found[1], UUID), route.path)
    (method,) = (route.methods or {"GET"}) - {"HEAD"} or {"HEAD"}
    return method, path


ROUTES = sorted({asked(route) for route in table()} | {("POST", "/free"), ("GET", "/metrics"), ("GET", "/")})
OPERATORS = sorted({asked(route) for route in table() if route.console})
PAGES = {asked(route)[1] for route in (*publish_page.routes, *workflow_pages.routes)}


@dataclass
class Attacked:
    """A fleet with a hostile editor node.

    Attributes:
        up: The fleet.
        node: The node.
        keys: Whether the fleet has keys.
    """

    up: Up
    node: EvilNode
    keys: bool

    @property
    def shown(self) -> dict[str, str]:
        return bearer(OPS) if self.keys else {}

    def state(self) -> dict[str, Any]:
        """Return all that only operators and publishers may change."""
        with httpx.Client(base_url=self.up.console, headers=self.shown, timeout=30) as ops:
            nodes = ops.get("/api/v1/nodes").raise_for_status().json()["nodes"]
            kept = ("name", "url", "pool", "cordoned", "cordon_reason", "weight_by_gpu", "editor", "labels")
            pools = ops.get("/api/v1/pools").raise_for_status().json()["pools"]
            workflows = ops.get("/api/v1/workflows").raise_for_status().json()["workflows"]
            return {
                "nodes": [{name: node.get(name) for name in kept} for node in nodes],
                "pools": [(one["name"], one["free_idle_s"], one["free_on_oom"]) for one in pools],
                "workflows": sorted((one["name"], one.get("version")) for one in workflows),
            }


def eves_session(up: Up) -> str:
    """Return a session that the script's author has at the console."""
    with httpx.Client(base_url=up.console, timeout=30) as eve:
        assert eve.post("/login", data={"key": EVE}).status_code == 303
        return eve.cookies["fleet_console"]


@pytest.fixture(scope="module", params=[False, True], ids=["without keys", "with keys"])
def attacked(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Attacked]:
    folder = tmp_path_factory.mktemp("hostile")
    keys = write_keys(folder / "keys", f"bob {BOB}\neve {EVE} artist\nops {OPS} admin\n")
    env = {"FLEET_AGENT_TOKEN": AGENT, "FLEET_EXTENSION_ROUTES": "/chooser"}
    env |= {"FLEET_KEYS_FILE": str(keys)} if request.param else {}
    wanted = set(OPERATORS)
    with EvilNode() as node:
        up = start_fleet(folder / "data", "--node", f"evil={node.url}", env=env)
        try:
            node.attack(
                [(*one, one in wanted) for one in ROUTES],
                up.console,
                eves_session(up) if request.param else "",
            )
            yield Attacked(up, node, request.param)
        finally:
            stop_fleet(up)


@pytest.fixture(scope="module")
def bobs(attacked: Attacked) -> None:
    """What somebody else has in the fleet."""
    if not attacked.keys:
        return
    with httpx.Client(base_url=attacked.up.url, headers=bearer(BOB), timeout=30) as bob:
        files = {"image": (f"{SECRET}.png", SECRET.encode(), "image/png")}
        assert bob.post("/upload/image", files=files).status_code == 200
        saved = bob.post(f"/userdata/workflows%2F{SECRET}.json", content=b"{}")
        assert saved.status_code == 200, saved.text


@pytest.fixture(scope="module")
def page(attacked: Attacked, bobs: None, browser: Chromium) -> Iterator[Page]:
    """The editor's page, after its script has done all that it does."""
    with browser.page() as opened:
        opened.goto(f"{attacked.up.url}/")
        if attacked.keys:
            opened.until("location.pathname === '/login'", what="the form is shown")
            assert opened.evaluate("location.origin") == attacked.up.console
            opened.click("#key")
            opened.type(OPS)
            opened.press("Enter")
        opened.until("document.title === 'evil'", what="the editor is there")
        assert opened.evaluate("location.origin") == attacked.up.url
        opened.until("window.seen.done", what="the script has done its worst", patience_s=200)
        yield opened


@pytest.fixture(scope="module")
def before(attacked: Attacked) -> dict[str, Any]:
    return attacked.state()


@pytest.fixture(scope="module")
def seen(before: dict[str, Any], page: Page) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(page.evaluate("JSON.stringify(window.seen)"))
    assert len(found["calls"]) > 1000
    return found


def test_nothing_of_an_operators_or_of_publishing_happens(
    attacked: Attacked, before: dict[str, Any], seen: dict[str, Any]
) -> None:
    assert attacked.state() == before
    wanted = {tuple(one) for one in OPERATORS}
    own = [one for one in seen["calls"] if not one[1] and (one[0], one[2]) in wanted]
    assert len(own) >= 5 * len(wanted)
    for method, _, path, status, _, text in own:
        if path in PAGES:  # the edge lets nobody get there
            assert (status, "not_found" in text) == (404, True), (method, path, text)
            continue
        # A key that is none is refused before anything else.
        assert status == 401 if '"unauthorized"' in text else "console_only" in text, (method, path, text)


def test_nothing_of_the_consoles_can_be_read(seen: dict[str, Any]) -> None:
    others = [one for one in seen["calls"] if one[1]]
    assert len(others) >= 2 * len(ROUTES) - 4
    assert {(kind, text[:30]) for _, _, _, _, kind, text in others} <= {
        ("opaque", ""),
        ("error", "TypeError: Failed to fetch"[:30]),
    }
    assert (seen["frames"], seen["sockets"]) == ([], [])


def test_nothing_of_another_persons_is_shown(attacked: Attacked, seen: dict[str, Any]) -> None:
    assert [one for one in seen["calls"] if SECRET in json.dumps(one)] == []
    if attacked.keys:
        with httpx.Client(base_url=attacked.up.url, headers=bearer(BOB)) as bob:
            assert SECRET in bob.get("/userdata?dir=workflows").text


def test_no_worker_and_no_cookie_stays(attacked: Attacked, seen: dict[str, Any], page: Page) -> None:
    assert (seen["workers"], seen["worker"], seen["cookie"]) == ([], 0, "")
    found = page.call("Network.getCookies")["cookies"]
    cookies = {one["name"]: one for one in found if one["path"] == "/"}  # not those of the frames' paths
    assert cookies["fleet_editor"]["httpOnly"] and cookies["fleet_editor"]["sameSite"] == "Strict"
    for name in ("fleet_session", "fleet_console") if attacked.keys else ():
        assert cookies[name]["httpOnly"] and cookies[name]["value"] != "evil", name
    assert all(one["value"] != "evil" or name == "fleet_console" for name, one in cookies.items())


def test_a_node_hears_nothing_of_who_asks(attacked: Attacked, seen: dict[str, Any]) -> None:
    heard = [headers for path, headers in attacked.node.heard if "evil" in path or "assets" in path]
    assert len(heard) >= 2
    secret = {"cookie", "authorization", "x-api-key", "origin", "referer", "x-forwarded-for"}
    own = {"sec-websocket-key", "sec-websocket-version"}  # of a dispatcher's lease
    for path, headers in attacked.node.heard:
        assert not secret & headers.keys(), headers
        strange = {name for name in headers if name.startswith(("x-fleet-", "sec-"))}
        assert not strange - (own if path.startswith("/ws?clientId=") else set()), (path, headers)
        assert not [value for value in headers.values() if OPS in value or BOB in value]


def test_what_a_node_says_beside_its_answers_stays_away(attacked: Attacked, page: Page) -> None:
    ticket = next(
        one["value"] for one in page.call("Network.getCookies")["cookies"] if one["name"] == "fleet_editor"
    )
    cookie = {"Cookie": f"fleet_editor={ticket}", **attacked.shown}
    strange = {
        "clear-site-data",
        "access-control-allow-origin",
        "strict-transport-security",
        "link",
        "alt-svc",
    }
    strange |= {"service-worker-allowed", "location", "refresh"}
    with httpx.Client(base_url=attacked.up.url, headers=cookie, timeout=30) as http:
        for path in ("/assets/index.js", "/extensions/evil/evil.js", "/i18n", "/extensions", "/chooser", "/"):
            answer = http.get(path)
            assert not strange & answer.headers.keys(), (path, answer.headers)
            assert "fleet_session" not in answer.headers.get("set-cookie", ""), path
            assert "immutable" not in answer.headers.get("cache-control", ""), path
            assert answer.headers["x-content-type-options"] == "nosniff"
        for path in ("/assets/leads-away.js", "/extensions/evil/leads-away.js"):
            answer = http.get(path)
            assert answer.status_code in (404, 502, 503) and "location" not in answer.headers, path


def test_the_fleet_is_as_well_as_before(attacked: Attacked, seen: dict[str, Any]) -> None:
    assert attacked.up.process.poll() is None
    assert httpx.get(f"{attacked.up.console}/api/v1/ready").status_code == 200
    for name in ("api", "haproxy"):
        lines = [
            json.loads(line) for line in (attacked.up.data / "logs" / f"{name}.log").read_text().splitlines()
        ]
        assert [line for line in lines if line["level"] == "error" or "traceback" in line] == []


def test_nobody_acts_as_the_scripts_author(attacked: Attacked, seen: dict[str, Any], page: Page) -> None:
    if not attacked.keys:
        return
    for path in ("/workflows", "/publish/image_card"):
        page.goto(f"{attacked.up.console}{path}")
        shown = {
            one["value"]
            for one in page.call("Network.getCookies")["cookies"]
            if one["name"] == "fleet_console"
        }
        assert len(shown) == 2 and attacked.node.told["session"] in shown, path
        page.see("p", "To see this page, sign in")
        assert "eve" not in page.evaluate("document.body.innerText")


def test_signing_out_ends_the_editor_and_the_console(
    attacked: Attacked, seen: dict[str, Any], page: Page
) -> None:
    if not attacked.keys:
        return
    page.goto(f"{attacked.up.console}/login")
    page.see("p", "You are signed in as ops")
    page.click("button", "Sign out")
    page.see("h1", "comfy_fleet")
    page.until("location.pathname === '/'", what="one is signed out")
    page.goto(f"{attacked.up.url}/")
    page.until(f"location.origin === {attacked.up.console!r}", what="the form is shown again")


def test_the_script_of_this_test_is_the_nodes(attacked: Attacked) -> None:
    assert (
        Path(__file__).with_name("evil.js").read_bytes()
        in attacked.node.answer("/extensions/evil/evil.js")[2]
    )
