"""ComfyUI's editor through the fleet: from which node a person gets it, and what is never given where."""

import asyncio
from collections.abc import AsyncIterator
from http.cookies import SimpleCookie
from pathlib import Path

import httpx
import pytest
from redis.asyncio import Redis

from comfy_fleet.services.editor_pages import MOST_PAGE_BYTES, MOST_WAITING_EACH
from comfy_fleet.services.editor_ticket import COOKIE
from tests.fleet import until
from tests.integration.api_kit import Api, running
from tests.integration.native.editor_kit import EDITOR, add_editor, answer, told
from tests.integration.native.prompts_kit import KEYS
from tests.key_files import write_keys

FLEETS = "Many GPUs, one ComfyUI"


@pytest.fixture
async def api(redis_port: int, redis: Redis, tmp_path: Path) -> AsyncIterator[Api]:
    async with running(redis_port, tmp_path) as started:
        yield started


async def opened(api: Api, path: str = "/", ticket: str = "", **headers: str) -> httpx.Response:
    """Ask as a browser does at the public port."""
    api.client.cookies.clear()
    cookie = {"Cookie": f"{COOKIE}={ticket}"} if ticket else {}
    return await api.client.get(path, headers={**EDITOR, **cookie, **headers})


def ticket_of(answer: httpx.Response) -> str:
    """Return the ticket that an answer gives."""
    return SimpleCookie(answer.headers["set-cookie"])[COOKIE].value


def node_of(api: Api, answer: httpx.Response) -> str | None:
    return api.deps.editor_tickets.node(ticket_of(answer), now=api.deps.clock())


async def test_a_person_gets_a_nodes_editor_and_keeps_it_while_it_answers(api: Api) -> None:
    for name in ("b", "a"):
        await add_editor(api, name)
    first = await opened(api, "/?workflow=x")
    assert (first.status_code, first.headers["content-type"]) == (200, "text/html; charset=utf-8")
    assert "editor of a" in first.text
    assert (node_of(api, first), first.headers["cache-control"]) == ("a", "no-store")
    assert first.headers["content-security-policy"] == "frame-ancestors 'self'"
    cookie = SimpleCookie(first.headers["set-cookie"])[COOKIE]
    assert (cookie["httponly"], cookie["samesite"], cookie["path"]) == (True, "strict", "/")

    await add_editor(api, "0")  # it would go first, if nobody had another
    again = await opened(api, ticket=ticket_of(first))
    assert "editor of a" in again.text
    assert "editor of 0" in (await opened(api)).text

    del api.info.raws["a"]

    async def next_one() -> bool:  # a page is remembered for some seconds
        other = await opened(api, ticket=ticket_of(again))
        return "editor of 0" in other.text and node_of(api, other) == "0"

    await until(next_one, what="the next node has taken over")


async def test_what_the_page_asks_for_comes_from_its_node_or_the_next_one(api: Api) -> None:
    for name in ("a", "b"):
        await add_editor(api, name)
    ticket = api.deps.editor_tickets.sign("b", now=api.deps.clock())
    for prefix in ("", "/api"):
        assert (await opened(api, f"{prefix}/i18n", ticket)).json() == {"en": {"of": "b"}}
        assert (await opened(api, f"{prefix}/workflow_templates", ticket)).json() == {"Pack": ["b"]}
        assert "id-b" in (await opened(api, f"{prefix}/global_subgraphs", ticket)).json()
        assert (await opened(api, f"{prefix}/global_subgraphs/id-b", ticket)).json()["name"] == "b"
    gone = await opened(api, "/global_subgraphs/id-none", ticket)
    assert (gone.status_code, gone.content) == (404, b"")
    del api.info.raws["b"]
    api.info.raws["a"]["/i18n"] = told({"en": {"of": "a, later"}})
    ticket = api.deps.editor_tickets.sign("gone", now=api.deps.clock())
    assert (await opened(api, "/i18n", ticket)).json() == {"en": {"of": "a, later"}}


@pytest.mark.parametrize("ticket", ["b", "b~9999999999~" + "0" * 64, "~~", "x" * 5000, "é"])
async def test_a_ticket_that_is_not_the_fleets_says_nothing(api: Api, ticket: str) -> None:
    for name in ("a", "b"):
        await add_editor(api, name)
    headers = [(b"x-fleet-origin", b"editor"), (b"cookie", f"{COOKIE}={ticket}".encode())]
    found = await api.client.get("/", headers=headers)
    assert "editor of a" in found.text


async def test_without_an_editor_the_page_says_what_this_is(api: Api) -> None:
    assert FLEETS in (await opened(api)).text
    await add_editor(api, "sim", simulated=True)
    page = await opened(api)
    assert FLEETS in page.text
    assert "set-cookie" not in page.headers
    assert (await opened(api, "/i18n")).json() == {"en": {"of": "sim"}}
    assert (await opened(api, "/extensions/core/a.js")).status_code == 404


async def test_while_no_node_answers_the_page_says_what_to_do(api: Api) -> None:
    await add_editor(api, "a")
    api.info.raws["a"]["/"] = answer("proxy error", status=500)
    page = await opened(api)
    assert (page.status_code, page.headers["retry-after"]) == (503, "2")
    assert "fleet node add NAME URL" in page.text
    await api.stores.nodes.report("a", verdict="down", why="gone")
    await api.deps.inventories.look()
    assert (await opened(api)).status_code == 503
    away = await opened(api, "/i18n")
    assert (away.status_code, away.json()["error"]["type"]) == (503, "editor_away")


@pytest.mark.parametrize("other", [{}, {"X-Fleet-Origin": "console"}], ids=["own port", "console"])
async def test_the_console_never_shows_what_a_node_made(api: Api, other: dict[str, str]) -> None:
    await add_editor(api, "a", packages={"Pack": {"a.js": "1"}})
    page = await api.client.get("/", headers=other)
    assert FLEETS in page.text
    assert "set-cookie" not in page.headers
    assert (await api.client.get("/extensions/Pack/a.js", headers=other)).status_code == 404
    assert (await opened(api, "/extensions/Pack/a.js")).text == "1"


async def test_a_key_in_the_path_leads_to_no_editor(api: Api) -> None:
    await add_editor(api, "a")
    assert FLEETS in (await opened(api, "/k/any/")).text


async def test_a_link_of_another_site_leads_on_first(api: Api) -> None:
    """Browsers keep cookies back behind such a link: the person would seem to have no editor yet."""
    await add_editor(api, "a")
    page = await opened(api, **{"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"})
    assert page.headers["refresh"] == "0; url=./"
    assert "set-cookie" not in page.headers


async def test_scripts_come_from_a_node_that_has_the_package(api: Api) -> None:
    await add_editor(api, "a", packages={"core": {"a.js": "a"}, "Both": {"x.js": "a"}})
    only = {"Only%20B": {"x.js": "b", "style.css": "css", "lib/y.js": "y"}}
    await add_editor(api, "b", packages={"core": {"b.js": "b"}, "Both": {"x.js": "b", "z.js": "z"}, **only})
    listed = await opened(api, "/extensions")
    assert listed.json() == [
        "/extensions/core/a.js",
        "/extensions/Both/x.js",
        "/extensions/Only%20B/x.js",
        "/extensions/Only%20B/lib/y.js",
        *[path for path in listed.json() if path.startswith("/extensions/comfy_fleet/")],
    ]
    for path, text in (("Both/x.js", "a"), ("Only%20B/lib/y.js", "y"), ("Only%20B/style.css", "css")):
        found = await opened(api, f"/extensions/{path}")
        assert (found.status_code, found.text) == (200, text)
        assert found.headers["content-type"] == "text/javascript"
    for path in ("Both/z.js", "core/b.js", "none/x.js", "Only%20B/%2e%2e/a", "Only%20B/..%2fa", "x/a%5Cb"):
        found = await opened(api, f"/extensions/{path}")
        assert (found.status_code, found.content) == (404, b""), path
    assert (await opened(api, "/api/extensions/Both/x.js")).status_code == 404  # as of ComfyUI
    # Somebody who has b's editor gets b's.
    ticket = api.deps.editor_tickets.sign("b", now=api.deps.clock())
    assert (await opened(api, "/extensions/Both/x.js", ticket)).text == "b"


async def test_a_file_is_asked_for_once_by_many_and_sent_once_to_each(api: Api) -> None:
    await add_editor(api, "a", packages={"Pack": {"a.js": "1"}})
    first = await opened(api, "/extensions/Pack/a.js")
    tag = first.headers["etag"]
    assert first.headers["cache-control"] == "no-cache"
    again = await opened(api, "/extensions/Pack/a.js", **{"If-None-Match": f'W/"x", W/{tag}'})
    assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", tag)
    assert [call[2] for call in api.info.passed].count("/extensions/Pack/a.js") == 1


async def test_no_node_has_a_package_of_the_fleets_name(api: Api) -> None:
    await add_editor(api, "a", packages={"comfy_fleet": {"publish.js": "evil", "evil.js": "evil"}})
    listed = (await opened(api, "/extensions")).json()
    assert "/extensions/comfy_fleet/evil.js" not in listed
    for path in ("/extensions/comfy_fleet/evil.js", *listed):
        assert (await opened(api, path)).text != "evil"


async def test_a_node_that_never_serves_the_editor_gives_no_script(api: Api) -> None:
    await add_editor(api, "a")
    await add_editor(api, "b", packages={"Evil": {"a.js": "evil"}}, editor=False)
    assert "/extensions/Evil/a.js" not in (await opened(api, "/extensions")).json()
    assert (await opened(api, "/extensions/Evil/a.js")).status_code == 404


async def test_a_fleet_without_an_editor_serves_nothing_of_it(
    redis_port: int, redis: Redis, tmp_path: Path
) -> None:
    async with running(redis_port, tmp_path, editor=False) as api:
        await add_editor(api, "a", packages={"Pack": {"a.js": "1"}})
        assert FLEETS in (await opened(api)).text
        for path in ("extensions", "i18n", "workflow_templates", "global_subgraphs", "extensions/Pack/a.js"):
            assert (await opened(api, f"/{path}")).status_code == 404, path
        assert api.info.passed == []


async def test_with_keys_the_editor_is_for_who_has_signed_in(
    redis_port: int, redis: Redis, tmp_path: Path
) -> None:
    keys = tmp_path / "keys"
    write_keys(keys, "".join(f"{name} {key}\n" for name, key in KEYS.items()))
    async with running(redis_port, tmp_path, keys_file=keys) as api:
        await add_editor(api, "a", packages={"Pack": {"a.js": "1"}})
        page = await opened(api)
        assert (page.status_code, page.headers["location"]) == (303, "login")
        assert "set-cookie" not in page.headers
        ticket = api.deps.editor_tickets.sign("a", now=api.deps.clock())
        for path in ("/extensions", "/i18n", "/extensions/Pack/a.js"):
            assert (await opened(api, path, ticket)).status_code == 401, path
        assert "editor of a" in (await opened(api, Authorization=f"Bearer {KEYS['ada']}")).text


async def test_operators_are_told_of_an_editor_that_is_old_or_lacks_scripts(api: Api) -> None:
    await add_editor(api, "a")
    await add_editor(api, "b", packages={"Pack": {"a.js": "1"}}, comfyui="0.34.0")
    await add_editor(api, "old", comfyui="0.3.64", editor=True)
    assert await api.deps.notes() == []  # nobody waits for it

    async def noted() -> bool:
        return len(await api.deps.notes()) == 2

    await until(noted, what="both are noted")
    notes = await api.deps.notes()
    assert "editor: node old, which serves it, has ComfyUI 0.3.64, and b has 0.34.0" in notes[0]
    assert "lacks packages with scripts: Pack (b)." in notes[1]


async def test_an_editor_that_lacks_nothing_is_not_worth_a_note(api: Api) -> None:
    await add_editor(api, "a", packages={"Pack": {"a.js": "1"}})
    await add_editor(api, "b", packages={"Pack": {"a.js": "1"}})
    await api.deps.notes()
    await until(lambda: len(api.info.listed) >= 2, what="both were asked")
    assert await api.deps.notes() == []


async def test_who_reloads_at_a_node_that_hangs_takes_no_places_from_others(
    redis_port: int, redis: Redis, tmp_path: Path
) -> None:
    keys = tmp_path / "keys"
    write_keys(keys, "".join(f"{name} {key}\n" for name, key in KEYS.items()))
    async with running(redis_port, tmp_path, keys_file=keys) as api:
        for name in ("a", "b"):
            await add_editor(api, name)
        api.info.gates["a"] = asyncio.Event()
        ticket = api.deps.editor_tickets.sign("b", now=api.deps.clock())

        def load(who: str, ticket: str = "") -> "asyncio.Task[httpx.Response]":
            headers = {**EDITOR, "Authorization": f"Bearer {KEYS[who]}"}
            cookie = {"Cookie": f"{COOKIE}={ticket}"} if ticket else {}
            api.client.cookies.clear()
            return asyncio.create_task(api.client.get("/", headers={**headers, **cookie}))

        loads = [load("ada") for _ in range(3 * MOST_WAITING_EACH)]
        await until(lambda: sum(one.done() for one in loads) >= 2 * MOST_WAITING_EACH, what="refused")
        for one in loads:
            if one.done():
                assert (one.result().status_code, one.result().headers["retry-after"]) == (503, "2")
                assert "load it once" in one.result().text
        assert "editor of b" in (await load("bob", ticket)).text  # while the others wait
        waiting = load("bob")
        api.info.gates["a"].set()
        pages = [await one for one in [*loads, waiting]]
        assert [page.status_code for page in pages].count(200) == MOST_WAITING_EACH + 1
        assert "editor of a" in (await load("ada")).text  # there is room again
        assert [call[0] for call in api.info.passed if call[2] == "/"] == ["a", "b"]


async def test_a_page_that_is_too_large_is_none(api: Api) -> None:
    for name in ("a", "b"):
        await add_editor(api, name)
    api.info.raws["a"]["/"] = answer("<!doctype html>" + "x" * MOST_PAGE_BYTES)
    assert "editor of b" in (await opened(api)).text
