"""Real ComfyUIs' editors through a fleet: answers, extensions, and a choice in the middle of a run."""

import asyncio
import hashlib
import logging
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from redis.asyncio import Redis

from comfy_fleet.domain.nodes.node import Node
from tests.comfyui_chooser import EDITOR as SCRIPT_TEXT
from tests.comfyui_chooser import SCRIPT, write_pack
from tests.comfyui_server import ComfyServer, comfyui_of, started_comfyui, wait_until_it_answers
from tests.fleet import until
from tests.integration.native.editor_kit import EDITOR
from tests.integration.native.prompts_kit import KEYS
from tests.integration.native.socket_kit import Client, Faced, faced
from tests.key_files import write_keys

pytestmark = [pytest.mark.comfyui, pytest.mark.timeout(240)]

WHITE, BLACK = 0xFFFFFF, 0
SECRETS = {"auth_token_comfy_org": "hush-token-1f9c2e", "api_key_comfy_org": "hush-key-77ab01"}


@pytest.fixture(scope="module")
def choosers(comfyui_home: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[ComfyServer]]:
    """Two servers that have the package."""
    with ExitStack() as stack:
        started = [
            stack.enter_context(
                started_comfyui(comfyui_home, tmp_path_factory.mktemp(f"chooser{number}"), packs=[write_pack])
            )
            for number in (1, 2)
        ]
        for server, process in started:
            wait_until_it_answers(server, process)
        yield [server for server, _ in started]


@asynccontextmanager
async def fleet_of_real(
    redis_port: int, servers: dict[str, ComfyServer], *, keys_file: Path | None = None
) -> AsyncIterator[Faced]:
    """Run a fleet of these servers, with the chooser's routes open; yields once it knows what they have."""
    async with faced(redis_port, extension_routes="/chooser", keys_file=keys_file) as face:
        for name, server in servers.items():
            await face.fleet.stores.nodes.add(Node(name=name, url=server.url))
        for name in servers:
            await face.fleet.verdict(name)
        inventories = face.apis[0].deps.inventories
        await until(lambda: servers.keys() <= inventories.known, what="the nodes are known", timeout_s=60)
        yield face


def graph(*, seed: int = 0, chooser: bool = True, secrets: bool = False) -> dict[str, Any]:
    """Choose one of two pictures, and save it."""
    made: dict[str, Any] = {
        "1": {
            "class_type": "EmptyImage",
            "inputs": {"width": 8 + seed, "height": 8, "batch_size": 2, "color": WHITE},
        },
        "2": {"class_type": "FleetChooser", "inputs": {"images": ["1", 0]}},
        "3": {"class_type": "SaveImage", "inputs": {"images": ["2", 0], "filename_prefix": "chosen"}},
    }
    if not chooser:
        del made["2"]
        made["3"]["inputs"]["images"] = ["1", 0]
    if secrets:
        made["4"] = {"class_type": "FleetSecrets", "inputs": {"images": ["2", 0]}}
    return made


async def asked(client: Client) -> dict[str, Any]:
    """Read up to the chooser's question."""
    return dict((await client.until(lambda type_, _: type_ == "fleet-chooser"))[-1][1])


async def choose(client: Client, choice: int = 0, **more: Any) -> httpx.Response:
    return await client.http.post(
        "/api/chooser/choose", json={"id": "2", "choice": choice, **more}, headers=EDITOR
    )


async def test_answers_are_those_of_the_server_itself(
    redis: Redis, redis_port: int, choosers: list[ComfyServer]
) -> None:
    async with (
        fleet_of_real(redis_port, {"real": choosers[0]}) as face,
        httpx.AsyncClient(base_url=face.url, headers=EDITOR, timeout=30) as ours,
        httpx.AsyncClient(base_url=choosers[0].url, timeout=30) as theirs,
    ):
        blueprints = (await theirs.get("/global_subgraphs")).json() if await has(theirs) else {"none": {}}
        paths = [
            *("/extensions", "/i18n", "/workflow_templates", "/global_subgraphs", "/global_subgraphs/none"),
            *(f"/global_subgraphs/{one}" for one in list(blueprints)[:5]),
        ]
        for path in [form + path for path in paths for form in ("", "/api")]:
            mine, bare = await ours.get(path), await theirs.get(path)
            assert mine.status_code == bare.status_code, path
            if bare.status_code != 200:
                assert mine.content == bare.content == b"", path
                continue
            kinds = [one.headers["content-type"].partition(";")[0] for one in (mine, bare)]
            assert kinds == ["application/json"] * 2, path
            told = mine.json()
            if path.endswith("/extensions"):
                told = [one for one in told if not one.startswith("/extensions/comfy_fleet/")]
                assert SCRIPT in told
            assert told == bare.json(), path
            head = await ours.head(path)
            assert (head.status_code, head.content) == (200, b""), path
        for path in ("/", "/?x=1", SCRIPT, (await theirs.get("/extensions")).json()[0]):
            mine, bare = await ours.get(path), await theirs.get(path)
            assert (mine.status_code, mine.content) == (200, bare.content), path
            kinds = [one.headers["content-type"].partition(";")[0] for one in (mine, bare)]
            assert kinds[0] == kinds[1], path
        assert (await ours.get(SCRIPT)).text == SCRIPT_TEXT
        for path in ("/extensions/core/none.js", "/extensions/none/none.js", f"/api{SCRIPT}"):
            assert (await ours.get(path)).status_code == (await theirs.get(path)).status_code == 404, path


async def has(theirs: httpx.AsyncClient) -> bool:
    return (await theirs.get("/global_subgraphs")).status_code == 200


async def test_two_people_choose_each_in_their_own_run(
    redis: Redis, redis_port: int, choosers: list[ComfyServer], tmp_path: Path
) -> None:
    keys = tmp_path / "keys"
    write_keys(keys, "".join(f"{name} {key}\n" for name, key in KEYS.items()))
    servers = dict(zip(("a", "b"), choosers, strict=True))
    async with fleet_of_real(redis_port, servers, keys_file=keys) as face:
        ada, bob = [
            await face.client(client_id=who, headers={"Authorization": f"Bearer {KEYS[who]}"})
            for who in ("ada", "bob")
        ]
        prompts = [await client.post(graph(seed=number)) for number, client in enumerate((ada, bob))]
        ports = [(await asked(client))["port"] for client in (ada, bob)]
        assert sorted(ports) == sorted(server.port for server in choosers)
        for client, port in ((ada, ports[0]), (bob, ports[1])):
            told = await client.http.get("/chooser/waiting", headers=EDITOR)
            assert told.json() == {"port": port, "waiting": ["2"]}
        chosen = await choose(ada, 1)
        assert (chosen.status_code, chosen.json()["port"]) == (200, ports[0])
        sent = {name.lower() for name in chosen.json()["headers"]}
        assert sent.isdisjoint({"authorization", "cookie", "x-api-key", "origin", "referer"})
        assert [type_ for type_, _ in await ada.ended(prompts[0])][-1] == "executing"
        told = await bob.http.get("/chooser/waiting", headers=EDITOR)
        assert told.json()["waiting"] == ["2"]  # hers was not his

        # Two of one person's: the call has to say which it is about.
        second = await ada.post(graph(seed=3))
        assert (await asked(ada))["port"] == ports[0]
        assert (await choose(bob)).status_code == 200
        await bob.ended(prompts[1])
        third = await ada.post(graph(seed=4))

        async def waits() -> bool:
            told = await ada.http.get("/chooser/waiting", params={"prompt": third}, headers=EDITOR)
            return told.status_code == 200 and told.json() == {"port": ports[1], "waiting": ["2"]}

        await until(waits, what="the third prompt waits, too")
        refused = await choose(ada)
        assert refused.status_code == 409, refused.text
        chosen = await choose(ada, prompt=second)
        assert (chosen.json()["port"], chosen.json()["told"]["prompt"]) == (ports[0], second)
        await ada.ended(second)
        assert (await asked(ada))["port"] == ports[1]  # the question waited until its prompt was shown
        assert (await choose(ada)).json()["port"] == ports[1]
        await ada.ended(third)
        # Nothing of hers runs: the call goes to the editor node, where nobody waits.
        assert (await choose(ada)).status_code == 404


async def test_scripts_of_a_package_come_from_the_node_that_has_it(
    redis: Redis, redis_port: int, choosers: list[ComfyServer], comfyui_server: ComfyServer
) -> None:
    servers = {"a": comfyui_server, "b": choosers[0]}
    async with (
        fleet_of_real(redis_port, servers) as face,
        httpx.AsyncClient(base_url=face.url, headers=EDITOR, timeout=30) as browser,
    ):
        await browser.get("/")
        node = face.apis[0].deps.editor_tickets.node(
            browser.cookies["fleet_editor"], now=face.apis[0].deps.clock()
        )
        assert node == "a"
        assert SCRIPT not in (await browser.get(f"{comfyui_server.url}/extensions")).json()
        listed = (await browser.get("/api/extensions")).json()
        assert SCRIPT in listed
        assert len(listed) == len(set(listed))
        found = await browser.get(SCRIPT)
        assert (found.status_code, found.text) == (200, SCRIPT_TEXT)

        async def noted() -> bool:
            return "fleet-chooser (b)" in "".join(await face.apis[0].deps.notes())

        await until(noted, what="operators are told of the package")

        client = await face.client()
        prompt = await client.post(graph(seed=5))
        assert (await asked(client))["port"] == choosers[0].port
        assert (await choose(client)).status_code == 200
        await client.ended(prompt)


async def test_secrets_reach_the_node_and_stay_nowhere(
    redis: Redis, redis_port: int, choosers: list[ComfyServer], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    async with fleet_of_real(redis_port, {"real": choosers[0]}) as face:
        client = await face.client()
        sent = {**SECRETS, "extra_pnginfo": {"workflow": {"nodes": []}}}
        prompt = await client.post(graph(seed=6, secrets=True), extra_data=sent)
        await asked(client)
        answers = [(await client.http.get(path)).content for path in ("/queue", "/api/jobs", "/api/v2/jobs")]
        assert prompt.encode() in answers[0]
        seen = [await everything(redis), *answers]
        assert (await choose(client)).status_code == 200
        frames = await client.ended(prompt)
        (told,) = [
            data["output"]["text"] for type_, data in frames if type_ == "executed" and data["node"] == "4"
        ]
        assert told == [hashlib.sha256(one.encode()).hexdigest() for one in SECRETS.values()]
        entry = (await client.http.get(f"/history/{prompt}")).json()[prompt]
        (picture,) = entry["outputs"]["3"]["images"]
        shown = await client.http.get("/view", params=picture)
        assert shown.status_code == 200
        assert b"workflow" in shown.content
        seen += [await everything(redis), repr(entry).encode(), shown.content, repr(client.seen).encode()]
        files = [path for path in face.fleet.settings.data.rglob("*") if path.is_file()]
        seen += [path.read_bytes() for path in files]
        assert len(files) > 1
    seen.append("\n".join(str(vars(record)) for record in caplog.records).encode())
    assert len(caplog.records) > 10
    for secret in SECRETS.values():
        assert not any(secret.encode() in one for one in seen)


async def everything(redis: Redis) -> bytes:
    """Return all that is in Redis."""
    found = []
    async for key in redis.scan_iter("*"):
        found.append(key)
        kind: Any = await redis.type(key)
        match kind.decode():
            case "string":
                found.append(await redis.get(key) or b"")
            case "hash":
                found += [part for pair in (await redis.hgetall(key)).items() for part in pair]
            case "list":
                found += await redis.lrange(key, 0, -1)
            case "set":
                found += await redis.smembers(key)
            case "zset":
                found += await redis.zrange(key, 0, -1)
            case "stream":
                found.append(repr(await redis.xrange(key)).encode())
            case other:
                assert other == "none", other  # it has ended meanwhile
    assert len(found) > 20
    return b"\n".join(found)


async def test_when_the_editor_node_dies_a_reload_gives_anothers(
    redis: Redis, redis_port: int, choosers: list[ComfyServer], comfyui_home: Path, tmp_path: Path
) -> None:
    with ExitStack() as stack:
        dying = stack.enter_context(comfyui_of(comfyui_home, tmp_path))
        async with (
            fleet_of_real(redis_port, {"a": dying, "b": choosers[0]}) as face,
            httpx.AsyncClient(base_url=face.url, headers=EDITOR, timeout=30) as browser,
        ):
            tickets, clock = face.apis[0].deps.editor_tickets, face.apis[0].deps.clock

            async def reload() -> tuple[int, str | None]:
                found = await browser.get("/")
                ticket = browser.cookies.get("fleet_editor") or ""
                return found.status_code, tickets.node(ticket, now=clock())

            assert await reload() == (200, "a")
            await asyncio.to_thread(stack.close)
            assert (await browser.get("/api/extensions")).status_code == 200
            assert (await browser.get("/api/i18n")).status_code == 200

            async def another() -> bool:
                status, node = await reload()
                assert status == 200
                return node == "b"

            await until(another, what="a reload gives b's editor")  # a page is remembered for some seconds
            assert (await browser.get(SCRIPT)).status_code == 200
