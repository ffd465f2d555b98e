"""Equal jobs that share one run, through the API, on real Redis and simulated nodes."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from comfy_fleet.adapters.redis.keys import Keyspace
from comfy_fleet.domain.jobs.job import JobStatus
from comfy_fleet.sim import SimTiming
from tests.fleet import until
from tests.integration.sharing_kit import Sharing, sharing

KEYS = Keyspace()
SLOW: dict[str, Any] = {"timing": SimTiming(job_s=0.6)}


async def _runs(world: Sharing, job: dict[str, Any]) -> None:
    """Wait until a job's prompt is on its node."""

    async def accepted() -> bool:
        found = await world.fleet.job(job["id"])
        if not found.run:
            return False
        return await world.fleet.stores.redis.hget(KEYS.run(found.run), "phase") == b"accepted"

    await until(accepted, what="the prompt is on its node")


async def _state(world: Sharing, job: dict[str, Any]) -> str:
    return str((await world.job(job))["status"])


async def test_a_hundred_equal_jobs_are_one_run_and_a_hundred_results(
    redis_port: int, redis: Any, tmp_path: Path
) -> None:
    async with sharing(redis_port, tmp_path, "g1", "g2", sim=SLOW) as world:
        jobs = await asyncio.gather(*(world.submit() for _ in range(100)))
        ends = await asyncio.gather(*(world.done(job) for job in jobs))
        assert world.runs == 1
        assert sum(end["cached"] for end in ends) == 99
        ids = {output["id"] for end in ends for output in end["outputs"]}
        assert len(ids) == 200
        names = {o["name"] for end in ends for o in end["outputs"] if not o["temporary"]}
        assert names == {f"pic_{number:05d}_.png" for number in range(1, 101)}
        saved = {o["hash"] for end in ends for o in end["outputs"] if not o["temporary"]}
        assert len(saved) == 1
        assert not await world.fleet.stores.redis.exists(KEYS.flights)
        assert (await world.submit())["status"] == "succeeded"


async def test_a_followers_copy_counts_when_its_leader_is_deleted(
    redis_port: int, redis: Any, tmp_path: Path
) -> None:
    async with sharing(redis_port, tmp_path, "g1", sim=SLOW) as world:
        leader, *followers = [await world.submit() for _ in range(3)]
        ends = [await world.done(job) for job in followers]
        assert [end["cached"] for end in ends] == [True, True]
        await world.done(leader)
        await world.client.delete(f"/api/v1/jobs/{leader['id']}")
        await world.client.delete(f"/api/v1/jobs/{followers[0]['id']}")
        again = await world.submit()
        assert again["cached"]
        assert await world.content(again) == await world.content(ends[1])
        assert world.runs == 1


async def test_more_than_one_call_can_end_are_ended_in_turn(
    redis_port: int, redis: Any, tmp_path: Path
) -> None:
    async with sharing(redis_port, tmp_path, "g1", sim=SLOW, dispatch=False) as world:
        jobs = await asyncio.gather(*(world.submit() for _ in range(271)))
        await world.fleet.dispatcher()
        ends = await asyncio.gather(*(world.done(job) for job in jobs))
        assert world.runs == 2, "a run has 250 followers at most"
        assert sum(end["cached"] for end in ends) == 269


async def test_a_follower_ends_when_its_leader_is_estimated_to(
    redis_port: int, redis: Any, tmp_path: Path
) -> None:
    sim: dict[str, Any] = {"timing": SimTiming(job_s=1.5)}
    async with sharing(redis_port, tmp_path, "g1", sim=sim) as world:
        await world.done(await world.submit(headers={"Cache-Control": "no-store"}))
        before = await world.submit(params={"seed": 6})
        leader, follower = await world.submit(), await world.submit()
        shown = [await world.job(job) for job in (leader, follower)]
        assert [job["status"] for job in shown] == ["queued", "queued"]
        assert all(job["estimate"]["p50_s"] > 1.5 for job in shown), "the one before it is waited for"
        await world.done(before)
        await _runs(world, leader)
        shown = [await world.job(job) for job in (leader, follower)]
        assert [job["status"] for job in shown] == ["running", "running"]
        assert all(job["estimate"] for job in shown)
        await world.done(follower)


async def test_a_follower_is_in_its_leaders_state(redis_port: int, redis: Any, tmp_path: Path) -> None:
    async with sharing(redis_port, tmp_path, "g1", sim=SLOW, dispatch=False) as world:
        first, second = await world.submit(), await world.submit()
        assert (second["status"], second["queue_position"]) == ("queued", None)
        assert "equal job" in second["waiting_for"]
        assert (await world.client.get("/api/v1/queue")).json() == {"queued": 1}
        await world.fleet.dispatcher()
        await _runs(world, first)
        shown = await world.job(second)
        assert (shown["status"], shown["node"]) == ("running", "g1")
        assert shown["waiting_for"] is None
        assert shown["started_at"] is not None
        third = await world.submit()
        assert third["status"] == "running", "who comes later is at once where the others are"
        for job in (first, second, third):
            end = await world.done(job)
            assert len(end["outputs"]) == 2
        assert world.runs == 1


@pytest.mark.parametrize("when", ["queued", "running"])
@pytest.mark.parametrize("who", ["leader", "follower", "leader and follower", "all"])
async def test_a_cancel_ends_one_job_and_the_last_one_ends_the_run(
    redis_port: int, redis: Any, tmp_path: Path, when: str, who: str
) -> None:
    async with sharing(redis_port, tmp_path, "g1", sim=SLOW, dispatch=False) as world:
        jobs = [await world.submit() for _ in range(3)]
        if when == "running":
            await world.fleet.dispatcher()
            await _runs(world, jobs[0])
        chosen = {"leader": jobs[:1], "follower": jobs[1:2], "leader and follower": jobs[:2], "all": jobs}[
            who
        ]
        for job in chosen:
            answer = await world.client.post(f"/api/v1/jobs/{job['id']}/cancel")
            last = when == "running" and who == "all" and job is jobs[-1]
            assert answer.json()["status"] == ("canceling" if last else "canceled")
        if when == "queued":
            await world.fleet.dispatcher()
        for job in chosen:
            end = await world.done(job, JobStatus.CANCELED)
            if len(chosen) < 3:  # the last one has what its run had made by then, as any job
                assert end["outputs"] == []
        for job in jobs:
            if job not in chosen:
                end = await world.done(job)
                assert len(end["outputs"]) == 2
                assert len(await world.content(end)) == 2
        expected = 0 if who == "all" and when == "queued" else 1
        await until(lambda: world.runs == expected, what="the node has what was asked of it")
        if len(chosen) < 3:
            assert len((await world.client.get("/internal/files/temp")).json()) == 3 - len(chosen)


async def test_a_dispatcher_that_is_killed_leaves_nobody_behind(
    redis_port: int, redis: Any, tmp_path: Path
) -> None:
    async with sharing(redis_port, tmp_path, "g1", sim=SLOW) as world:
        jobs = [await world.submit() for _ in range(5)]
        await _runs(world, jobs[0])
        await world.fleet.dispatchers[0].kill()
        await world.client.post(f"/api/v1/jobs/{jobs[0]['id']}/cancel")
        await world.fleet.dispatcher("d2")
        assert (await world.done(jobs[0], JobStatus.CANCELED))["outputs"] == []
        for job in jobs[1:]:
            assert len((await world.done(job))["outputs"]) == 2
        assert world.runs == 1, "the run is adopted for those that are left"


async def test_a_run_that_fails_for_its_nodes_sake_is_repeated_for_all(
    redis_port: int, redis: Any, tmp_path: Path
) -> None:
    async with sharing(redis_port, tmp_path, "g1", sim=SLOW) as world:
        await world.fleet.sims["g1"].set_faults({"crash_mid_run": 1, "restart_after_s": 0.2})
        jobs = [await world.submit() for _ in range(4)]
        ends = [await world.done(job) for job in jobs]
        assert [end["cached"] for end in ends] == [False, True, True, True]
        assert len(ends[0]["attempts"]) == 2
        assert world.runs == 1, "it has forgotten the first one"


async def test_a_failure_of_the_graph_is_everybodys(redis_port: int, redis: Any, tmp_path: Path) -> None:
    async with sharing(redis_port, tmp_path, "g1", dispatch=False) as world:
        await world.fleet.sims["g1"].set_faults({"execution_error": 1})
        jobs = [await world.submit() for _ in range(3)]
        await world.fleet.dispatcher()
        ends = [await world.done(job, JobStatus.FAILED) for job in jobs]
        assert len({end["error"]["code"] for end in ends}) == 1
        assert not (await world.done(await world.submit()))["cached"], "a failure is no result"


async def test_a_leader_that_is_deleted_leaves_the_others_their_files(
    redis_port: int, redis: Any, tmp_path: Path
) -> None:
    async with sharing(redis_port, tmp_path, "g1", sim=SLOW, api={"blob_grace_s": 0.0}) as world:
        jobs = [await world.submit() for _ in range(2)]
        ends = [await world.done(job) for job in jobs]
        before = await world.content(ends[1])
        assert (await world.client.delete(f"/api/v1/jobs/{jobs[0]['id']}")).status_code == 204

        async def forgotten() -> bool:
            return await world.fleet.stores.redis.exists(KEYS.job(jobs[0]["id"])) == 0

        await until(forgotten, what="the leader is forgotten")
        await world.api.assets.sweep()
        assert await world.content(ends[1]) == before


@pytest.mark.parametrize("short", ["leader", "follower"])
async def test_a_time_to_live_ends_one_job(redis_port: int, redis: Any, tmp_path: Path, short: str) -> None:
    async with sharing(redis_port, tmp_path, "g1", sim=SLOW, dispatch=False) as world:
        bodies: list[dict[str, Any]] = [{"ttl_s": 1}, {}] if short == "leader" else [{}, {"ttl_s": 1}]
        jobs = [await world.submit(**body) for body in bodies]
        hurried, patient = jobs if short == "leader" else jobs[::-1]
        await asyncio.sleep(1)
        assert await world.fleet.stores.runs.overdue(10) == 1
        assert await _state(world, hurried) == "expired"
        assert await _state(world, patient) == "queued"
        await world.fleet.dispatcher()
        assert len((await world.done(patient))["outputs"]) == 2


async def test_a_time_to_live_is_met_when_the_leader_starts(
    redis_port: int, redis: Any, tmp_path: Path
) -> None:
    async with sharing(redis_port, tmp_path, "g1", sim={"timing": SimTiming(job_s=2.5)}) as world:
        first = await world.submit()
        await _runs(world, first)
        second = await world.submit(ttl_s=1)
        await asyncio.sleep(1.2)
        assert await world.fleet.stores.runs.overdue(10) == 0
        assert (await world.done(second))["cached"]


async def test_the_run_stands_where_the_best_of_them_would(
    redis_port: int, redis: Any, tmp_path: Path
) -> None:
    async with sharing(redis_port, tmp_path, "g1", dispatch=False) as world:
        other = await world.submit(params={"seed": 6})
        slow = await world.submit(tier="batch")
        urgent = await world.submit(priority=9)
        await world.fleet.dispatcher()
        ends = [await world.done(job) for job in (urgent, slow, other)]
        assert ends[1]["started_at"] < ends[2]["started_at"]
        assert world.runs == 2


@pytest.mark.parametrize(
    ("second", "follows"),
    [
        ({}, True),
        ({"priority": 3, "metadata": {"a": "b"}, "ttl_s": 100}, True),
        ({"headers": {"Cache-Control": "no-cache"}}, False),
        ({"headers": {"Cache-Control": "no-store"}}, False),
        ({"headers": {"Cache-Control": "max-age=60"}}, True),
        ({"timeout_s": 100}, False),
        ({"prefer_pool": "default"}, False),
        ({"params": {"seed": 6}}, False),
    ],
)
async def test_who_follows(
    redis_port: int, redis: Any, tmp_path: Path, second: dict[str, Any], follows: bool
) -> None:
    async with sharing(redis_port, tmp_path, "g1", dispatch=False) as world:
        await world.submit()
        await world.submit(**second)
        assert (await world.client.get("/api/v1/queue")).json() == {"queued": 2 - follows}


async def test_drawn_seeds_share_a_run_where_any_seed_will_do(
    redis_port: int, redis: Any, tmp_path: Path
) -> None:
    async with sharing(redis_port, tmp_path, "g1", manifest='cache = "any-seed"', sim=SLOW) as world:
        jobs = [await world.submit(params={}) for _ in range(3)]
        assert len({job["params"]["seed"] for job in jobs}) == 1
        ends = [await world.done(job) for job in jobs]
        assert world.runs == 1
        assert len({tuple(o["hash"] for o in end["outputs"]) for end in ends}) == 1


async def test_followers_of_a_leader_that_an_older_version_ends_are_not_stuck(
    redis_port: int, redis: Any, tmp_path: Path
) -> None:
    async with sharing(redis_port, tmp_path, "g1", sim=SLOW) as world:
        jobs = [await world.submit() for _ in range(3)]
        await _runs(world, jobs[0])
        # An older dispatcher's scripts don't look at this field, and don't note how files are named.
        await world.fleet.stores.redis.hdel(KEYS.job(jobs[0]["id"]), "flight", "results", "naming")
        for job in jobs:
            assert len((await world.done(job))["outputs"]) == 2
        assert world.runs in (1, 2)


async def test_a_leader_whose_record_is_lost_is_replaced(redis_port: int, redis: Any, tmp_path: Path) -> None:
    async with sharing(redis_port, tmp_path, "g1", dispatch=False) as world:
        jobs = [await world.submit() for _ in range(2)]
        await world.fleet.stores.redis.delete(KEYS.job(jobs[0]["id"]))
        await world.fleet.dispatcher()
        assert len((await world.done(jobs[1]))["outputs"]) == 2
