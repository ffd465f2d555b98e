"""Keys: who is who, and that nobody sees what is somebody else's."""

from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from comfy_sdk import AsyncComfy
from comfy_sdk.exceptions import Unauthorized
from redis.asyncio import Redis

from comfy_fleet.api.auth import Keys
from comfy_fleet.domain.errors import ConfigError
from comfy_fleet.settings import Settings
from tests.factories import GRAPH
from tests.fleet import until
from tests.integration.api_kit import Api, code, running
from tests.key_files import keys_of, write_keys

ANN, BOB, OPS, AGENT = "ann-key-0123456789", "bob-key-0123456789", "ops-key-0123456789", "agent-0123456789abc"


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


@pytest.fixture
async def api(redis_port: int, redis: Redis, tmp_path: Path) -> AsyncIterator[Api]:
    keys = tmp_path / "keys"
    write_keys(keys, f"# who may\nann {ANN}\n\nbob {BOB}  # a guest\nops {OPS} admin\n")
    async with running(redis_port, tmp_path, keys_file=keys, agent_token=AGENT) as started:
        await started.add_node()
        yield started


@pytest.mark.parametrize(
    "headers",
    [
        {},
        bearer("wrong"),
        {"Authorization": "Bearer"},
        {"Authorization": f"Basic {ANN}"},
        {"X-API-Key": ANN[:-1]},
        {"Authorization": ANN[:-1]},
        {"Authorization": f"{ANN} {ANN}"},
        bearer(ANN + "x"),
    ],
)
async def test_wrong_keys_get_nothing(api: Api, headers: dict[str, str]) -> None:
    for path in ("/api/v2/jobs", "/api/v1/jobs", "/api/v1/nodes", "/api/v1/openapi.json", "/nothing"):
        answer = await api.client.get(path, headers=headers)
        assert code(answer) == (401, "unauthorized")
        assert answer.headers["www-authenticate"] == "Bearer"
    for path in ("/", "/health", "/api/v1/health", "/api/v2/health"):
        assert (await api.client.get(path, headers=headers)).status_code == 200, path
    assert (await api.client.get("/api/v1/ready", headers=headers)).status_code in (200, 503)


async def test_every_way_to_show_a_key_works(api: Api) -> None:
    assert (await api.client.get("/api/v2/jobs", headers=bearer(ANN))).status_code == 200
    assert (await api.client.get("/api/v2/jobs", headers={"X-API-Key": ANN})).status_code == 200
    assert (await api.client.get("/api/v2/jobs", headers={"Authorization": ANN})).status_code == 200
    for other in ("Basic eA==", "x"):  # another proxy's: the key beside it counts
        both = {"Authorization": other, "X-API-Key": ANN}
        assert (await api.client.get("/api/v2/jobs", headers=both)).status_code == 200
    other_site = {**bearer(ANN), "Origin": "https://app.example", "Host": "comfy.example"}
    assert (await api.client.get("/api/v2/jobs", headers=other_site)).status_code == 200


async def test_owners_are_apart(api: Api) -> None:
    job = (await api.client.post("/api/v2/jobs", json={"workflow": GRAPH}, headers=bearer(ANN))).json()
    claim = await api.claim(job["id"])
    output = await api.output(claim, b"x")
    asset = f"/api/v2/assets/{output.asset_id}"
    assert (await api.client.get(f"{asset}/content", headers=bearer(ANN))).content == b"x"
    ways = [
        ("GET", job["urls"]["self"]),
        ("GET", job["urls"]["self"] + "/workflow"),
        ("GET", job["urls"]["events"]),
        ("POST", job["urls"]["cancel"]),
        ("GET", asset),
        ("GET", f"{asset}/content"),
        ("DELETE", asset),
        ("GET", f"/api/v1/status/{job['id']}"),
        ("GET", f"/api/status/{job['id']}"),
        ("GET", f"/api/status?task_id={job['id']}"),
    ]
    record = ("GET", f"/api/v1/jobs/{job['id']}")  # an operator sees this much
    for who, refused in ((BOB, [*ways, record]), (OPS, ways)):
        for method, path in refused:
            assert code(await api.client.request(method, path, headers=bearer(who))) == (404, "not_found")
        assert (await api.client.get("/api/v2/jobs", headers=bearer(who))).json()["jobs"] == []
        by_hash = await api.client.head(f"/api/v2/assets/by-hash/{output.hash}", headers=bearer(who))
        assert by_hash.status_code == 404


async def test_idempotency_keys_are_per_owner(api: Api) -> None:
    ids = set()
    for who in (ANN, BOB):
        headers = {**bearer(who), "Idempotency-Key": "k"}
        answer = await api.client.post("/api/v2/jobs", json={"workflow": GRAPH}, headers=headers)
        assert answer.status_code == 201
        ids.add(answer.json()["id"])
    assert len(ids) == 2


async def test_nodes_are_for_admins_and_agents_only_read_them(api: Api) -> None:
    node = {"name": "g9", "url": "http://10.0.0.9:8188"}
    for headers in (bearer(ANN), bearer(AGENT)):
        assert code(await api.client.post("/api/v1/nodes", json=node, headers=headers)) == (403, "forbidden")
    assert code(await api.client.get("/api/v1/nodes", headers=bearer(ANN))) == (403, "forbidden")
    assert (await api.client.get("/api/v1/nodes", headers=bearer(AGENT))).status_code == 200
    assert code(await api.client.get("/api/v2/jobs", headers=bearer(AGENT))) == (403, "forbidden")
    assert (await api.client.post("/api/v1/nodes", json=node, headers=bearer(OPS))).status_code == 201


async def test_top_priorities_are_for_operators(api: Api) -> None:
    for path, body in (
        ("/api/v2/jobs", {"workflow": GRAPH}),
        ("/api/v1/workflows/image_card/jobs", {"params": {"prompt": "x"}}),
        ("/api/v1/generate", {"prompt": "x"}),
    ):
        refused = await api.client.post(path, json={**body, "priority": 1001}, headers=bearer(ANN))
        assert code(refused) == (403, "forbidden")
        error = refused.json()["error"]
        assert error["details"] == {"field": "priority", "limit": 1000}
        assert "send at most 1000" in error["message"] and "FLEET_MAX_PRIORITY" in error["message"]
        for priority, who in ((1000, ANN), (-1_000_000, ANN), (1_000_000, OPS)):
            taken = await api.client.post(path, json={**body, "priority": priority}, headers=bearer(who))
            assert taken.status_code in (201, 202), taken.text


async def test_without_keys_nobody_s_priority_is_limited(
    redis_port: int, redis: Redis, tmp_path: Path
) -> None:
    async with running(redis_port, tmp_path, max_priority=0) as open_fleet:
        await open_fleet.add_node()
        for origin in ("editor", "console"):
            answer = await open_fleet.client.post(
                "/api/v2/jobs",
                json={"workflow": GRAPH, "priority": 1_000_000},
                headers={"X-Fleet-Origin": origin},
            )
            assert answer.status_code == 201, answer.text


def test_a_fleet_without_keys_stays_on_loopback(tmp_path: Path) -> None:
    for outside in (Settings(host="0.0.0.0"), Settings(api_host="0.0.0.0")):
        with pytest.raises(ConfigError, match=r"FLEET_REQUIRE_KEYS.*FLEET_KEYS_FILE"):
            Keys.load(outside)
    Keys.load(Settings(host="::1"))


@pytest.mark.parametrize("text", ["", "# nothing\n", "ann\n", "ann short\n", "a/b 0123456789abcdef\n",
                                  "ann 0123456789abcdef boss\n"])  # fmt: skip
def test_bad_key_files_are_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "keys"
    write_keys(path, text)
    with pytest.raises(ConfigError):
        keys_of(path)
    with pytest.raises(ConfigError):
        keys_of(tmp_path / "none")


def test_keys_stay_out_of_memory_and_repr(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    write_keys(path, f"ann {ANN}\n")
    keys = keys_of(path)
    assert ANN not in repr(vars(keys))


async def test_the_sdk_shows_its_key(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COMFY_BASE_URL", api.url)
    for key, who in ((ANN, "ann"), (BOB, "bob")):
        async with AsyncComfy(api_key=key) as client:
            job = await client.submit(client.workflows.from_json(GRAPH))
        record = await api.stores.jobs.get(job.id)
        assert record is not None and record.owner == who
    async with AsyncComfy(api_key="wrong") as client:
        with pytest.raises(Unauthorized):
            await client.submit(client.workflows.from_json(GRAPH))


def _same(told: Any, expected: Any) -> bool:
    return bool(told() == expected)


async def test_a_share_of_nobody_is_told_to_the_operator(
    redis_port: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    keys = tmp_path / "keys"
    write_keys(keys, f"ann {ANN}\n")

    def told() -> list[list[str]]:
        return [record.__dict__["owners"] for record in caplog.records if "shares" in record.message]

    for settings, unknown in (
        ({"keys_file": keys, "shares": "ann=2"}, []),
        ({"keys_file": keys, "shares": "anne=2,ann=2,local=3"}, [["anne", "local"]]),
        ({"shares": "ann=2,local=3"}, [["ann"]]),
    ):
        async with running(redis_port, tmp_path, **settings) as api:
            await api.client.get("/health")
            await until(partial(_same, told, unknown), what="it is told")
            caplog.clear()
