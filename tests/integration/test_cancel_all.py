"""Cancel all of one's jobs, and nobody else's."""

from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from comfy_fleet.domain.jobs.job import JobStatus
from tests.factories import GRAPH, picture
from tests.integration.api_kit import Api, code, running

KEYS = {name: {"Authorization": f"Bearer {name}-key-{name}-key-{name}"} for name in ("ada", "bob")}


@pytest.fixture
async def api(redis_port: int, redis: object, tmp_path: Path) -> AsyncIterator[Api]:
    keys = tmp_path / "keys"
    keys.write_text("ada ada-key-ada-key-ada admin\nbob bob-key-bob-key-bob\n")
    keys.chmod(0o600)
    async with running(redis_port, tmp_path / "data", keys_file=keys) as started:
        await started.add_node()
        yield started


async def submitted(api: Api, who: str, color: int) -> str:
    answer = await api.client.post("/api/v2/jobs", json={"workflow": picture(color)}, headers=KEYS[who])
    return str(answer.json()["id"])


async def cancel_all(api: Api, who: str, **body: object) -> httpx.Response:
    return await api.client.post("/api/v1/jobs-cancel", json=body, headers=KEYS[who])


async def statuses(api: Api, *ids: str) -> list[str]:
    found = [await api.stores.jobs.get(one) for one in ids]
    return [one.status for one in found if one is not None]


async def test_all_of_ones_own_end_and_nobody_elses(api: Api) -> None:
    first = await submitted(api, "ada", 1)
    run = await api.claim(first)
    second, third = [await submitted(api, "ada", color) for color in (2, 3)]
    bobs = await submitted(api, "bob", 4)
    answer = await cancel_all(api, "ada")  # an operator's own, too
    assert (answer.status_code, answer.json()) == (200, {"ended": 2, "ending": 1})
    assert await statuses(api, first, second, third, bobs) == ["canceling", "canceled", "canceled", "queued"]
    assert (await cancel_all(api, "ada")).json() == {"ended": 0, "ending": 1}
    await api.finish(run, JobStatus.CANCELED)
    assert (await cancel_all(api, "ada")).json() == {"ended": 0, "ending": 0}


async def test_those_that_run_may_go_on(api: Api) -> None:
    first = await submitted(api, "bob", 1)
    await api.claim(first)
    second = await submitted(api, "bob", 2)
    answer = await cancel_all(api, "bob", waiting_only=True)
    assert answer.json() == {"ended": 1, "ending": 0}
    assert await statuses(api, first, second) == ["running", "canceled"]


async def test_jobs_that_share_a_run_end_with_it(api: Api) -> None:
    headers = {**KEYS["bob"], "Cache-Control": "max-age=60"}
    ids = []
    for _ in range(3):
        answer = await api.client.post("/api/v2/jobs", json={"workflow": GRAPH}, headers=headers)
        ids.append(answer.json()["id"])
    run = await api.claim(ids[0])
    assert await statuses(api, *ids) == ["running"] * 3
    answer = await cancel_all(api, "bob")
    assert answer.json() == {"ended": 2, "ending": 1}
    assert await statuses(api, *ids) == ["canceling", "canceled", "canceled"]
    await api.finish(run, JobStatus.CANCELED)


async def test_a_field_that_there_is_not_is_refused(api: Api) -> None:
    await submitted(api, "bob", 1)
    answer = await cancel_all(api, "bob", waiting=True)
    assert code(answer) == (422, "invalid_request")
    assert len(await api.stores.jobs.live("bob")) == 1
