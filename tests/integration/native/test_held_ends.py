"""Ends of prompts that never began, while their client is shown another: they come later, and once."""

from functools import partial
from pathlib import Path
from uuid import uuid4

import pytest
from redis.asyncio import Redis

from comfy_fleet.adapters.redis.sockets import RedisSocketStore
from comfy_fleet.domain.jobs.job import JobError
from comfy_fleet.ports.runs import Claim
from comfy_fleet.sim import SimTiming
from tests.factories import picture
from tests.fleet import until
from tests.integration.api_kit import Api, running
from tests.integration.native.socket_kit import Client, client_of, faced, shapes
from tests.integration.native.test_lost_ends import ends
from tests.integration.native.test_socket_kills import api_process, said


@pytest.fixture(autouse=True)
def clean(redis: Redis) -> None:
    """Every test begins with an empty database."""


async def shown_and_canceled(api: Api, client: Client) -> tuple[str, Claim, str]:
    """Show a client one prompt and cancel another that waits; return the first, its run, and the other."""
    await api.add_node("g1")
    shown = await client.post(picture(1))
    run = await api.claim(shown)
    await api.stores.runs.frames([(run, [said(run, "execution_start", 1)])])
    await client.until(lambda type_, _: type_ == "execution_start")
    waits = await client.post(picture(2))
    await client.until(lambda type_, data: remaining(type_, data) == 2)
    await client.http.post("/queue", json={"delete": [waits]})
    assert shapes(await client.until(lambda type_, data: remaining(type_, data) == 1)) == []
    return shown, run, waits


def remaining(type_: str, data: dict[str, dict[str, dict[str, int]]]) -> int | None:
    return data["status"]["exec_info"]["queue_remaining"] if type_ == "status" else None


async def test_a_prompt_that_leaves_the_queue_disturbs_no_running_one_and_ends_behind_it(
    redis_port: int, tmp_path: Path
) -> None:
    async with running(redis_port, tmp_path) as api, client_of(api.url, uuid4().hex) as client:
        shown, run, waits = await shown_and_canceled(api, client)
        await api.stores.runs.frames([(run, [said(run, "progress_state", 1)])])
        told = await client.until(lambda type_, _: type_ == "progress_state")
        assert shapes(told) == []  # there is no word of the other one
        await api.finish(run)
        assert shapes(await client.ended(shown)) == ["execution_success", "executing None"]
        assert shapes(await client.ended(waits)) == ["execution_interrupted", "executing None"]
        assert client.of(shown).count("execution_start") == 1


async def test_it_ends_also_if_the_running_one_is_given_back(redis_port: int, tmp_path: Path) -> None:
    async with running(redis_port, tmp_path) as api, client_of(api.url, uuid4().hex) as client:
        shown, run, waits = await shown_and_canceled(api, client)
        await api.stores.runs.requeue(run, counts=False, reason=JobError(code="node_down", message="gone"))
        told = ["execution_start", "execution_interrupted", "executing None"]
        assert shapes(await client.ended(waits)) == told
        assert "executing None" not in client.of(shown)


@pytest.mark.parametrize("back", ["the same process", "another process"])
@pytest.mark.parametrize("running_one", ["ends meanwhile", "ends later"])
async def test_it_ends_once_for_a_client_whose_websocket_breaks_meanwhile(
    redis_port: int, tmp_path: Path, running_one: str, back: str
) -> None:
    async with running(redis_port, tmp_path) as api, running(redis_port, tmp_path) as other:
        name = uuid4().hex
        async with client_of(api.url, name) as client:
            shown, run, waits = await shown_and_canceled(api, client)
            client.socket.transport.abort()
            await until(lambda: not api.deps.sockets["local"], what="it is seen that it is gone")
        if running_one == "ends meanwhile":
            await api.finish(run)
        stores = RedisSocketStore(api.stores.redis)

        async def known(untold: set[str]) -> bool:
            kept = await stores.last("local", name)
            return kept is not None and untold <= set(kept.untold) and not kept.open

        await until(partial(known, {shown, waits}), what="all processes know what is untold")
        at = api if back == "the same process" else other
        async with client_of(at.url, name) as again:
            if running_one == "ends later":
                await api.finish(run)
            assert await ends(again, shown, waits) == {shown: 1, waits: 1}


async def test_it_ends_once_for_a_client_whose_process_is_killed(redis_port: int, tmp_path: Path) -> None:
    sim = {"timing": SimTiming(job_s=5)}
    async with (
        faced(redis_port, "g1", sim=sim) as fleet,
        api_process(fleet.fleet, tmp_path) as (url, killed),
    ):
        name = uuid4().hex
        async with client_of(url, name) as client:
            shown = await client.post(picture(1))
            await client.until(lambda type_, _: type_ == "execution_start")
            waits = await client.post(picture(2))
            await client.http.post("/queue", json={"delete": [waits]})
            await fleet.fleet.ended(waits)
            stores = RedisSocketStore(fleet.apis[0].stores.redis)
            canceled = await fleet.apis[0].stores.jobs.get(waits)
            assert canceled is not None and canceled.completed_at is not None
            ended_at = canceled.completed_at

            async def known() -> bool:
                kept = await stores.last("local", name)
                return kept is not None and kept.kept_at > ended_at and waits in kept.untold

            await until(known, what="all processes know that its end is untold")
            killed.kill()
            killed.wait()
        async with client_of(fleet.url, name) as again:
            assert await ends(again, shown, waits) == {shown: 1, waits: 1}
