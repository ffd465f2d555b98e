"""Agents' tokens: each speaks for one host, and counts until it is revoked."""

import asyncio
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis
from typer.testing import CliRunner

from comfy_fleet.adapters.redis.agent_tokens import MOST_TOKENS
from comfy_fleet.cli.app import build
from comfy_fleet.domain.nodes.agent_token import AgentToken, read_shown, text_of
from comfy_fleet.domain.nodes.node_networks import why_not
from tests.factories import GRAPH
from tests.integration.api_kit import Api, code, running

SHARED = "agents-token-0123456789"
ROOT = {"Authorization": "Bearer root-0123456789abcdef"}
ADA = {"Authorization": "Bearer ada-0123456789abcdef"}
NODE = {"name": "h1-gpu0", "url": "http://10.9.8.7:9100", "agent": "10.9.8.7:9200"}


@pytest.fixture(autouse=True)
def clean(redis: Redis) -> None:
    """Every test begins with an empty database."""


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    path = tmp_path / "keys"
    path.write_text("ada ada-0123456789abcdef\nroot root-0123456789abcdef admin\n")
    path.chmod(0o600)
    return path


async def made(api: Api, host: str = "h1", **more: Any) -> dict[str, Any]:
    answer = await api.client.post("/api/v1/agent-tokens", json={"host": host, **more}, headers=ROOT)
    assert answer.status_code == 201, answer.text
    found: dict[str, Any] = answer.json()
    return found


async def beat(api: Api, token: str, host: str = "h1", **more: Any) -> Any:
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    body = {"instance": "i1", **more}
    return await api.client.post(f"/api/v1/agents/{host}/heartbeat", json=body, headers=headers)


@pytest.mark.parametrize("shared", [SHARED, None])
async def test_a_token_speaks_for_its_host_and_no_other(
    redis_port: int, tmp_path: Path, keys: Path, shared: str | None
) -> None:
    async with running(redis_port, tmp_path, keys_file=keys, agent_token=shared) as api:
        one, two = (await made(api, "h1"))["token"], (await made(api, "h2"))["token"]
        assert (await beat(api, one, join=[NODE])).json()["joined"] == ["h1-gpu0"]
        for token, host in ((one, "h2"), (two, "h1"), (one, "h3")):
            refused = await beat(api, token, host)
            assert code(refused) == (403, "forbidden")
            assert "speaks for host" in refused.text
        # Not even while it is silent, and has nothing to say for itself.
        await api.stores.redis.delete(api.stores.redis.keyspace.host_agent("h1"))
        stolen = await beat(api, two, "h1", instance="i2", join=[{**NODE, "url": "http://10.6.6.6:1"}])
        assert code(stolen) == (403, "forbidden")
        node = await api.stores.nodes.get("h1-gpu0")
        assert node is not None
        assert node.url == NODE["url"]


async def test_where_a_host_has_a_token_the_shared_one_counts_no_more(
    redis_port: int, tmp_path: Path, keys: Path
) -> None:
    async with running(redis_port, tmp_path, keys_file=keys, agent_token=SHARED) as api:
        assert (await beat(api, SHARED)).status_code == 200
        token = await made(api)
        refused = await beat(api, SHARED)
        assert code(refused) == (403, "forbidden")
        assert "token of its own" in refused.text
        assert (await beat(api, token["token"])).status_code == 200
        assert (await beat(api, SHARED, "h2")).status_code == 200
        gone = await api.client.delete(f"/api/v1/agent-tokens/{token['id']}", headers=ROOT)
        assert gone.status_code == 204
        assert (await beat(api, SHARED)).status_code == 200
        assert code(await beat(api, token["token"])) == (401, "unauthorized")


async def test_without_keys_and_without_a_shared_token_a_host_may_have_its_own(
    redis_port: int, tmp_path: Path
) -> None:
    async with running(redis_port, tmp_path) as api:
        token = (await made(api))["token"]
        assert code(await beat(api, "")) == (403, "forbidden")
        assert (await beat(api, token)).status_code == 200
        assert (await beat(api, "", "h2")).status_code == 200
        # It is an agent's, and makes nobody an operator on the way.
        drained = await api.client.post(
            "/api/v1/nodes/h1-gpu0/drain", headers={"Authorization": f"Bearer {token}"}
        )
        assert code(drained) == (403, "forbidden")


async def test_the_central_role_needs_a_token_that_says_so(
    redis_port: int, tmp_path: Path, keys: Path
) -> None:
    async with running(redis_port, tmp_path, keys_file=keys, agent_token=SHARED) as api:
        plain, central = (await made(api, "h1"))["token"], (await made(api, "h2", central=True))["token"]
        await api.add_node("far")
        report = {"name": "far", "word": "ready", "facts": {"pid": 6}}
        refused = await beat(api, plain, central=True, nodes=[report])
        assert code(refused) == (403, "forbidden")
        assert await api.stores.hosts.report("far") in (None, {})
        assert (await beat(api, central, "h2", central=True, nodes=[report])).status_code == 200
        assert await api.stores.hosts.report("far") == {"pid": 6}
        for token, status in ((plain, 403), (central, 200), (SHARED, 200)):
            listed = await api.client.get(
                "/api/v1/nodes", params={"sealed": True}, headers={"Authorization": f"Bearer {token}"}
            )
            assert listed.status_code == status
        assert (
            await api.client.get("/api/v1/nodes", headers={"Authorization": f"Bearer {plain}"})
        ).status_code == 200


@pytest.mark.parametrize(
    "change",
    [
        lambda token: token[:-1],
        lambda token: token + "A",
        lambda token: token.replace("h1", "h2"),
        lambda token: token.upper(),
        lambda token: token.replace("agent~", ""),
        lambda token: token[:-4] + "AAAA",
    ],
)
async def test_what_is_not_quite_a_token_is_none(
    redis_port: int, tmp_path: Path, keys: Path, change: Any
) -> None:
    async with running(redis_port, tmp_path, keys_file=keys) as api:
        token = (await made(api))["token"]
        await made(api, "h2")
        for host in ("h1", "h2"):
            assert (await beat(api, change(token), host)).status_code in (401, 403)


async def test_only_operators_make_list_and_revoke_them_and_nobody_sees_one_twice(
    redis_port: int, tmp_path: Path, keys: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG")
    async with running(redis_port, tmp_path, keys_file=keys, agent_token=SHARED) as api:
        token = await made(api)
        agent = {"Authorization": f"Bearer {token['token']}"}
        for headers in (ADA, agent, {"Authorization": f"Bearer {SHARED}"}):
            for answer in (
                await api.client.get("/api/v1/agent-tokens", headers=headers),
                await api.client.post("/api/v1/agent-tokens", json={"host": "h9"}, headers=headers),
                await api.client.delete(f"/api/v1/agent-tokens/{token['id']}", headers=headers),
            ):
                assert code(answer) == (403, "forbidden")
        listed = await api.client.get("/api/v1/agent-tokens", headers=ROOT)
        assert [(one["id"], one["host"]) for one in listed.json()["tokens"]] == [(token["id"], "h1")]
        drawn = token["token"].rpartition("~")[2]
        assert drawn not in listed.text
        assert drawn not in caplog.text
        redis: Any = api.stores.redis
        for key in await redis.keys("*"):
            if await redis.type(key) == b"hash":
                assert drawn.encode() not in b"".join(await redis.hvals(key))
        nobody = await api.client.delete("/api/v1/agent-tokens/00000000", headers=ROOT)
        assert code(nobody) == (404, "not_found")
        wrong = await api.client.post("/api/v1/agent-tokens", json={"host": "../h"}, headers=ROOT)
        assert code(wrong) == (422, "invalid_request")


async def test_a_host_has_a_few(redis_port: int, tmp_path: Path, keys: Path) -> None:
    async with running(redis_port, tmp_path, keys_file=keys) as api:
        for _ in range(MOST_TOKENS):
            await made(api)
        more = await api.client.post("/api/v1/agent-tokens", json={"host": "h1"}, headers=ROOT)
        assert code(more)[0] == 409
        await made(api, "h2")


async def test_a_damaged_record_lets_nobody_in(redis_port: int, tmp_path: Path, keys: Path) -> None:
    async with running(redis_port, tmp_path, keys_file=keys) as api:
        token = await made(api)
        redis: Any = api.stores.redis
        key = redis.keyspace.agent_tokens("h1")
        for damaged in ("", "{}", '{"id":"x"}', "[]"):
            await redis.hset(key, token["id"], damaged)
            assert (await beat(api, token["token"])).status_code == 401
            assert (await api.client.get("/api/v1/agent-tokens", headers=ROOT)).json()["tokens"] == []


async def test_the_commands(redis_port: int, tmp_path: Path, keys: Path) -> None:
    async def fleet(*argv: str) -> str:
        words = ["host", "token", *argv, "--api", api.url]
        env = {"FLEET_API_KEY": "root-0123456789abcdef", "COLUMNS": "120"}
        ran = await asyncio.to_thread(CliRunner().invoke, build(words), words, env=env)
        assert ran.exit_code == 0, ran.output
        return ran.stdout

    async with running(redis_port, tmp_path, keys_file=keys) as api:
        token = (await fleet("create", "gpu1", "--central")).strip()
        shown = read_shown(token)
        assert shown is not None
        assert (await beat(api, token, "gpu1", central=True)).status_code == 200
        listed = await fleet("ls")
        assert shown.id in listed
        assert "gpu1" in listed
        await fleet("revoke", shown.id)
        assert (await beat(api, token, "gpu1")).status_code == 401


def test_a_token_s_text() -> None:
    text = text_of("gpu-1.rack_2", "0a1b2c3d", "x" * 43)
    shown = read_shown(text)
    assert shown is not None
    assert (shown.host, shown.id) == ("gpu-1.rack_2", "0a1b2c3d")
    kept = AgentToken(id=shown.id, host=shown.host, digest=shown.digest)
    assert kept.is_of(shown)
    other = read_shown(text_of("gpu-1.rack_2", "0a1b2c3d", "y" * 43))
    assert other is not None
    assert not kept.is_of(other)
    for wrong in ("", "agent~~0a1b2c3d~" + "x" * 43, text + "\n", text * 10, "agent~H~0a1b2c3d~" + "x" * 43):
        assert read_shown(wrong) is None


async def test_an_agent_registers_a_bounded_number_of_nodes_and_pools(
    redis_port: int, tmp_path: Path
) -> None:
    def node(number: int, pool: str = "default") -> dict[str, Any]:
        return {**NODE, "name": f"n{number}", "url": f"http://10.9.8.7:{9100 + number}", "pool": pool}

    async with running(redis_port, tmp_path, host_nodes=3, host_pools=2) as api:
        said = (await beat(api, "", join=[node(n) for n in range(5)])).json()
        assert said["joined"] == ["n0", "n1", "n2"]
        assert all("FLEET_HOST_NODES" in why for why in said["refused"].values())
        again = (await beat(api, "", join=[node(n) for n in (0, 1, 2, 9)])).json()
        assert (again["joined"], list(again["refused"])) == (["n0", "n1", "n2"], ["n9"])
        moved = (await beat(api, "", join=[node(0, "a"), node(1, "b"), node(2, "c")])).json()
        assert moved["joined"] == ["n0"]
        assert all("FLEET_HOST_POOLS" in moved["refused"][name] for name in ("n1", "n2"))
        assert {one.pool for one in await api.stores.nodes.nodes()} == {"a", "default"}
        other = await beat(api, "", "h2", join=[{**node(7, "d"), "name": "m0"}])
        assert other.json()["joined"] == ["m0"]


async def test_the_bounds_of_a_host_hold_for_requests_that_come_together(
    redis_port: int, tmp_path: Path
) -> None:
    def node(number: int) -> dict[str, Any]:
        url = f"http://10.9.8.7:{9100 + number}"
        return {**NODE, "name": f"n{number}", "url": url, "pool": f"p{number % 4}"}

    async with running(redis_port, tmp_path, host_nodes=3, host_pools=2) as api:
        requests = ([node(2 * number), node(2 * number + 1)] for number in range(10))
        await asyncio.gather(*(beat(api, "", join=joining) for joining in requests))
        nodes = await api.stores.nodes.nodes()
        assert len(nodes) == 3
        assert len({one.pool for one in nodes}) <= 2
        # What is there may come again, wherever it is.
        again = [{**NODE, "name": one.name, "url": one.url, "pool": one.pool} for one in nodes]
        assert (await beat(api, "", join=again)).json()["refused"] == {}


@pytest.mark.parametrize(
    "url",
    [
        "http://169.254.169.254",
        "http://[fe80::1]:80",
        "http://[::ffff:169.254.169.254]:80",
        "http://0.0.0.0:9",
        "http://224.0.0.1:9",
        "http://localhost:22",
        "http://127.0.0.1:22",
        "http://[::1]:22",
    ],
)
async def test_where_no_agent_of_another_machine_has_a_node(
    redis_port: int, tmp_path: Path, url: str
) -> None:
    async with running(redis_port, tmp_path, agent_token=SHARED) as api:
        headers = {"Authorization": f"Bearer {SHARED}", "X-Forwarded-For": "10.9.8.7"}
        place = url.removeprefix("http://")
        place = place if place.rpartition(":")[2].isdigit() and not place.endswith("]") else f"{place}:80"
        for joining in ({**NODE, "url": url}, {**NODE, "agent": place}):
            answer = await api.client.post(
                "/api/v1/agents/h1/heartbeat", json={"instance": "i1", "join": [joining]}, headers=headers
            )
            assert answer.status_code == 200, answer.text
            assert list(answer.json()["refused"]) == ["h1-gpu0"], joining
        by_hand = await api.client.post("/api/v1/nodes", json={"name": "far", "url": url})
        assert by_hand.status_code == 201, by_hand.text  # an operator may


async def test_agents_are_not_told_what_runs_on_others_nodes(redis_port: int, tmp_path: Path) -> None:
    """Who knows a run's id could say that a node of theirs has it, and so that both are one ComfyUI."""
    async with running(redis_port, tmp_path, agent_token=SHARED) as api:
        await api.add_node()
        job = (await api.submit(GRAPH))["id"]
        claim = await api.claim(job)
        token = await api.client.post("/api/v1/agent-tokens", json={"host": "h1"})
        agent = {"Authorization": f"Bearer {token.json()['token']}"}
        (told,) = (await api.client.get("/api/v1/nodes", headers=agent)).json()["nodes"]
        assert (told["name"], told["run"], told["job"], told["work"]) == ("g1", None, None, [])
        (known,) = (await api.client.get("/api/v1/nodes")).json()["nodes"]
        assert (known["run"], known["job"]) == (claim.run, job)


def test_networks_are_an_allow_list() -> None:
    nets = ("10.0.0.0/8", "fd00::/8")
    for host, fits in (
        ("10.1.2.3", True),
        ("::ffff:10.1.2.3", True),
        ("[fd00::7]", True),
        ("11.0.0.1", False),
        ("gpu1.lan", False),
        ("169.254.169.254", False),
        ("127.0.0.1", False),
    ):
        for local in (True, False):
            assert (why_not(host, nets, local=local) == "") is fits, host
    for host in ("127.0.0.1", "localhost", "::1", "a.localhost"):
        assert why_not(host, (), local=False)
        assert not why_not(host, (), local=True)
    for host in ("169.254.1.1", "fe80::1%eth0", "0.0.0.0", "::", "ff02::1"):
        assert why_not(host, (), local=True)
    # To a resolver these are addresses: of loopback, of a cloud's metadata.
    for host in (
        "127.1",
        "2130706433",
        "0x7f000001",
        "0177.0.0.1",
        "2852039166",
        "169.254.43518",
        "0",
        "0X7F.1",
    ):
        assert why_not(host, (), local=False), host
    assert not why_not("gpu1", (), local=False)
    assert not why_not("1.gpu", (), local=False)
    assert not why_not("gpu1.lan", (), local=False)
    assert why_not("127.0.0.1", ("127.0.0.0/8",), local=False) == ""


async def test_a_rebound_page_reads_no_node_s_name(redis_port: int, tmp_path: Path) -> None:
    async with running(redis_port, tmp_path) as api:
        for path in ("/metrics", "/api/v1/ready"):
            for host, refused in (("evil.test", True), ("localhost", False), ("127.0.0.1:8190", False)):
                answer = await api.client.get(path, headers={"Host": host})
                assert (answer.status_code == 403) is refused, (path, host)
