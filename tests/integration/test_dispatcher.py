"""Jobs through the real broker onto simulated nodes: the whole walk, and every way it can go wrong."""

import asyncio
import os
import signal
from collections import Counter
from typing import Any

import pytest
from cryptography.fernet import Fernet
from redis.asyncio import Redis

from comfy_fleet.adapters.comfyui.node_client import NodeClient
from comfy_fleet.adapters.redis.runs import RedisRunStore
from comfy_fleet.bootstrap import open_assets, open_secrets
from comfy_fleet.domain.errors import StoreDown
from comfy_fleet.domain.jobs.job import Job, JobStatus, Placement, PromptFields
from comfy_fleet.domain.jobs.run_messages import PostAnswered, PostUnknown
from comfy_fleet.ports.runs import Claim, Refused
from comfy_fleet.services.seekers import RECLAIM_S
from comfy_fleet.sim import SimTiming
from tests.factories import GRAPH, picture
from tests.fleet import Fleet, fleet_of, until
from tests.integration.haproxy_kit import counted

CHECKPOINT = "v1-5-pruned-emaonly-fp16.safetensors"


@pytest.fixture(autouse=True)
def clean(redis: Redis) -> None:
    """Every test begins with an empty database."""


async def test_a_job_runs_and_its_picture_is_stored(redis_port: int) -> None:
    async with fleet_of(redis_port, "g1") as fleet:
        job = await fleet.submit(GRAPH)
        done = await fleet.ended(job.id)
        assert (done.status, done.node, done.error) == (JobStatus.SUCCEEDED, "g1", None)
        (output,) = done.outputs
        assert (output.node_id, output.key, output.content_type) == ("2", "images", "image/png")
        asset = await open_assets(fleet.settings, fleet.stores).get(output.asset_id)
        assert asset is not None
        data = (fleet.settings.files_dir / asset.path).read_bytes()
        assert data.startswith(b"\x89PNG") and len(data) == output.size_bytes
        assert await fleet.stores.runs.lease_of("g1") is None
        place = {"filename": output.name, "subfolder": f"fleet/{done.id}/{done.run}", "type": "output"}
        assert (await fleet.stores.jobs.with_ui(job.id))[1] == {"2": {"images": [place]}}


async def test_many_jobs_spread_and_each_runs_once(redis_port: int) -> None:
    timing = SimTiming(job_s=0.1)  # the work decides how it is shared, not a hiccup of this machine
    async with fleet_of(redis_port, "g1", "g2", "g3", sim={"timing": timing}) as fleet:
        jobs = [await fleet.submit(picture(i)) for i in range(45)]
        ended = [await fleet.ended(job.id) for job in jobs]
        assert {job.status for job in ended} == {JobStatus.SUCCEEDED}
        spread = Counter(job.node for job in ended)
        assert set(spread) == {"g1", "g2", "g3"} and min(spread.values()) >= 10
        assert sum(sim.stats.done for sim in fleet.sims.values()) == 45


@pytest.mark.parametrize("ticks", range(8))
async def test_a_dispatcher_ends_also_when_stopped_while_it_wakes_up(redis_port: int, ticks: int) -> None:
    async with fleet_of(redis_port) as fleet:
        (running,) = fleet.dispatchers
        await until(lambda: running.dispatcher.snapshot().idle, what="it has nothing to do")
        running.dispatcher.look_again()
        for _ in range(ticks):
            await asyncio.sleep(0)
        async with asyncio.timeout(60):
            await running.end()


async def test_two_dispatchers_share_the_nodes(redis_port: int) -> None:
    async with fleet_of(redis_port, "g1", "g2", sim={"timing": SimTiming(job_s=0.02)}) as fleet:
        await fleet.dispatcher("d2")
        both = [running.dispatcher for running in fleet.dispatchers]
        jobs = [await fleet.submit(picture(i)) for i in range(30)]
        async with asyncio.timeout(40):
            while not all(dispatcher.done for dispatcher in both):  # both work, sooner or later
                await fleet.ended(jobs[-1].id)
                jobs += [await fleet.submit(picture(len(jobs) + i)) for i in range(10)]
        for job in jobs:
            assert (await fleet.ended(job.id)).status is JobStatus.SUCCEEDED
        assert sum(sim.stats.done for sim in fleet.sims.values()) == len(jobs)
        await until(lambda: sum(one.done for one in both) == len(jobs), what="each job is one dispatcher's")


async def test_a_second_dispatcher_takes_no_job_to_a_slow_node_while_the_fast_one_is_free(
    redis_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    claim = RedisRunStore.claim

    async def unhurried(self: RedisRunStore, *, node: str, **rest: Any) -> Claim | Refused:
        if node == "fast":
            await asyncio.sleep(0.02)  # its dispatcher is a process of its own, and has other things to do
        return await claim(self, node=node, **rest)

    # However long a busy machine takes: what is shown is the choice, not the patience.
    monkeypatch.setattr("comfy_fleet.services.node_asker.BETTER_TIMEOUT_S", 30.0)
    monkeypatch.setattr("comfy_fleet.services.node_asker.BETTER_GAPS_S", (0.001, 0.002, *[0.008] * 3000))
    monkeypatch.setattr(RedisRunStore, "claim", unhurried)
    async with fleet_of(redis_port) as fleet:
        await fleet.dispatcher("d2")
        await fleet.add_sim("fast", node={"weight": 256})
        await fleet.add_sim("slow", node={"weight": 1})
        for name in fleet.sims:
            await fleet.verdict(name)
        known = [running.dispatcher.snapshot for running in fleet.dispatchers]
        await until(
            lambda: all([state.verdict for state in one().nodes] == ["up", "up"] for one in known),
            what="the dispatchers know both nodes",
        )
        for number in range(20):
            job = await fleet.submit(picture(number))
            assert (await fleet.ended(job.id)).node == "fast"


async def test_a_job_that_is_still_needed_keeps_no_other_from_being_forgotten(
    redis_port: int, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("comfy_fleet.services.dispatcher.UPKEEP_LIMIT", 1)
    async with fleet_of(redis_port, "g1") as fleet:
        needed, other = [await fleet.ended((await fleet.submit(picture(i))).id) for i in range(2)]
        await fleet.stores.nodes.cordon("g1", reason="a job waits")
        waits = await fleet.submit(picture(3))
        assets = open_assets(fleet.settings, fleet.stores)
        await assets.hold(owner=needed.owner, asset_ids=[needed.outputs[0].asset_id], job_id=waits.id)
        await redis.zadd("fleet:expiring", {needed.id: 1, other.id: 2})

        async def forgotten() -> bool:
            return await fleet.stores.jobs.get(other.id) is None

        await until(forgotten, what="the other one is forgotten")
        assert (await fleet.job(needed.id)).outputs == needed.outputs


async def test_cancel_of_a_running_job_interrupts_it(redis_port: int) -> None:
    async with fleet_of(redis_port, "g1", sim={"timing": SimTiming(job_s=30)}) as fleet:
        job = await fleet.submit(GRAPH)
        await until(lambda: fleet.sims["g1"].engine.running, what="the prompt runs")
        canceling = await fleet.stores.jobs.request_cancel(job.id)
        assert canceling and canceling.status is JobStatus.CANCELING
        assert (await fleet.ended(job.id)).status is JobStatus.CANCELED  # it would have run for longer
        assert await fleet.stores.runs.lease_of("g1") is None


async def test_redis_that_goes_away_while_a_node_is_sought_is_no_fault_of_ours(
    redis_port: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    claim, refused = RedisRunStore.claim, 3

    async def away(self: RedisRunStore, *args: Any, **rest: Any) -> Any:
        nonlocal refused
        if refused:
            refused -= 1
            raise StoreDown("Redis does not answer")
        return await claim(self, *args, **rest)

    monkeypatch.setattr(RedisRunStore, "claim", away)
    async with fleet_of(redis_port, "g1") as fleet:
        jobs = [await fleet.submit(picture(number)) for number in range(3)]
        assert {(await fleet.ended(job.id)).status for job in jobs} == {JobStatus.SUCCEEDED}
    assert not refused
    assert "node not sought" in caplog.messages
    assert not [record for record in caplog.records if record.exc_info]


async def _works(fleet: Fleet, jobs: list[Job]) -> bool:
    """Return whether g1 has a job; if not, submit one more: a slow machine may give all to another node."""
    if fleet.sims["g1"].engine.running:
        return True
    jobs.append(await fleet.submit(picture(len(jobs))))
    await asyncio.sleep(0.1)
    return False


async def test_a_killed_node_loses_no_job(redis_port: int) -> None:
    async with fleet_of(redis_port) as fleet:
        for name, job_s in (("g1", 30.0), ("g2", 0.2)):
            await fleet.add_sim(name, timing=SimTiming(job_s=job_s))
            await fleet.verdict(name)
        jobs = [await fleet.submit(picture(i)) for i in range(4)]
        await until(lambda: _works(fleet, jobs), what="g1 works", timeout_s=40)
        await fleet.sims["g1"].stop()
        ended = [await fleet.ended(job.id) for job in jobs]
        assert {(job.status, job.node) for job in ended} == {(JobStatus.SUCCEEDED, "g2")}
        assert sum(job.attempt for job in ended) == 1  # the one that was on g1 counts


async def test_a_killed_dispatchers_job_is_adopted_not_run_again(redis_port: int) -> None:
    async with fleet_of(redis_port, "g1", sim={"timing": SimTiming(job_s=1.0)}) as fleet:
        job = await fleet.submit(GRAPH)
        await until(lambda: fleet.sims["g1"].engine.running, what="the prompt runs")
        await fleet.dispatchers[0].kill()
        await fleet.dispatcher("d2")
        done = await fleet.ended(job.id)
        assert (done.status, done.attempt, len(done.outputs)) == (JobStatus.SUCCEEDED, 0, 1)
        assert fleet.sims["g1"].stats.done == 1


async def test_a_dispatcher_that_is_gone_is_noticed_long_before_its_leases_expire(redis_port: int) -> None:
    nodes = [f"g{n}" for n in range(1, 4)]
    settings: dict[str, Any] = {"lease_ttl_s": 600.0, "beat_s": 0.1, "ready_leases": 0}
    async with fleet_of(redis_port, *nodes, sim={"timing": SimTiming(job_s=2.0)}, **settings) as fleet:
        jobs = [await fleet.submit(picture(number)) for number in range(3)]
        await until(lambda: all(fleet.sims[node].engine.running for node in nodes), what="all prompts run")
        other = await fleet.dispatcher("d2")
        await fleet.dispatchers[0].kill()
        its = other.dispatcher
        await until(lambda: len(its.flying) + its.done == 3, what="the other one has all runs")
        done = [await fleet.ended(job.id) for job in jobs]
        assert {(job.status, job.attempt) for job in done} == {(JobStatus.SUCCEEDED, 0)}
        assert [fleet.sims[node].stats.done for node in nodes] == [1, 1, 1]


async def test_a_stopping_dispatcher_hands_its_runs_over(redis_port: int) -> None:
    async with fleet_of(redis_port, "g1", sim={"timing": SimTiming(job_s=1.0)}, stop_wait_s=0.0) as fleet:
        await fleet.dispatcher("d2")
        job = await fleet.submit(GRAPH)
        await until(lambda: fleet.sims["g1"].engine.running, what="the prompt runs")
        owner = next(d for d in fleet.dispatchers if d.dispatcher.flying)
        await owner.end()
        done = await fleet.ended(job.id)
        assert (done.status, done.attempt) == (JobStatus.SUCCEEDED, 0)
        assert fleet.sims["g1"].stats.done == 1


async def test_a_stopping_dispatcher_says_again_and_again_what_it_waits_for(
    redis_port: int, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("comfy_fleet.services.dispatcher.WAITS_EVERY_S", 0.01)
    caplog.set_level("INFO", logger="comfy_fleet.services.dispatcher")

    def lines() -> list[Any]:
        return [record for record in caplog.records if record.message == "dispatcher waits for its runs"]

    async with fleet_of(redis_port, "g1", sim={"timing": SimTiming(job_s=600)}, stop_wait_s=600.0) as fleet:
        job = await fleet.submit(GRAPH)
        await until(lambda: fleet.sims["g1"].engine.running, what="the prompt runs")
        (running,) = fleet.dispatchers
        assert not lines()
        running.stop.set()
        await until(lambda: len(lines()) > 1, what="it has said so twice")
        assert {(line.runs, line.waiting_for_room, *line.jobs) for line in lines()} == {
            (1, 0, f"{job.id} on g1")
        }
        running.dispatcher.hurry()
        async with asyncio.timeout(60):
            await running.task


async def test_an_execution_error_fails_the_job_with_its_reason(redis_port: int) -> None:
    async with fleet_of(redis_port, "g1") as fleet:
        fleet.sims["g1"].faults.update({"execution_error": 1})
        failed = await fleet.ended((await fleet.submit(GRAPH)).id)
        assert failed.status is JobStatus.FAILED
        assert failed.error and failed.error.code == "node_execution_error" and failed.error.node_id
        good = await fleet.ended((await fleet.submit(picture(7))).id)
        assert good.status is JobStatus.SUCCEEDED


async def test_a_job_that_one_node_refuses_runs_on_another(redis_port: int) -> None:
    async with fleet_of(redis_port, "g1", "g2") as fleet:
        fleet.sims["g1"].faults.update({"reject": "always"})
        jobs = [await fleet.submit(picture(i)) for i in range(6)]
        ended = [await fleet.ended(job.id) for job in jobs]
        assert {(job.status, job.node, job.attempt) for job in ended} == {(JobStatus.SUCCEEDED, "g2", 0)}


async def test_a_job_that_every_node_refuses_fails_with_the_nodes_words(redis_port: int) -> None:
    async with fleet_of(redis_port, "g1", "g2") as fleet:
        graph = picture(1)
        graph["1"]["class_type"] = "NoSuchClass"
        failed = await fleet.ended((await fleet.submit(graph)).id)
        assert failed.status is JobStatus.FAILED
        assert failed.error and failed.error.code == "invalid_workflow"
        assert "NoSuchClass" in failed.error.message


async def test_a_cordoned_node_finishes_its_job_and_gets_no_other(redis_port: int) -> None:
    async with fleet_of(redis_port) as fleet:
        for name, job_s in (("g1", 4.0), ("g2", 0.3)):
            await fleet.add_sim(name, timing=SimTiming(job_s=job_s))
            await fleet.verdict(name)
        first = [await fleet.submit(picture(i)) for i in range(2)]
        await until(lambda: _works(fleet, first), what="g1 works", timeout_s=40)
        await fleet.stores.nodes.cordon("g1", reason="maintenance")
        more = [await fleet.submit(picture(1000 + i)) for i in range(3)]
        ended = [await fleet.ended(job.id) for job in first + more]
        assert {job.status for job in ended} == {JobStatus.SUCCEEDED}
        assert {job.node for job in ended[len(first) :]} == {"g2"}
        assert fleet.sims["g1"].stats.done == 1
        await fleet.verdict("g1", "drain")
        await fleet.stores.nodes.uncordon("g1")
        await fleet.verdict("g1")


async def test_nodes_come_and_go_while_jobs_run(redis_port: int) -> None:
    async with fleet_of(redis_port, "g1", sim={"timing": SimTiming(job_s=0.05)}) as fleet:
        jobs = [await fleet.submit(picture(i)) for i in range(20)]
        await fleet.add_sim("g2", timing=SimTiming(job_s=0.05))
        async with asyncio.timeout(40):
            while fleet.sims["g2"].stats.done < 3:  # however long it takes to join, jobs run meanwhile
                await fleet.ended(jobs[-10].id)
                jobs.append(await fleet.submit(picture(len(jobs))))
        await fleet.stores.nodes.cordon("g1", reason="leaves")

        async def idle() -> bool:
            return not (await fleet.state("g1")).work  # its last outputs are here, too

        await until(idle, what="g1 is idle")
        await fleet.stores.nodes.remove("g1")
        ended = [await fleet.ended(job.id) for job in jobs]
        assert {(job.status, job.attempt) for job in ended} == {(JobStatus.SUCCEEDED, 0)}
        assert sum(sim.stats.done for sim in fleet.sims.values()) == len(jobs)


async def test_a_killed_broker_loses_nothing_and_books_nothing_twice(redis_port: int) -> None:
    async with fleet_of(redis_port, "g1", "g2", sim={"timing": SimTiming(job_s=0.4)}) as fleet:
        jobs = [await fleet.submit(picture(i)) for i in range(10)]
        await until(lambda: fleet.sims["g1"].stats.done >= 1, what="jobs flow")
        pid = fleet.controller.broker.pid
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        ended = [await fleet.ended(job.id) for job in jobs]
        assert {(job.status, job.attempt) for job in ended} == {(JobStatus.SUCCEEDED, 0)}
        assert sum(sim.stats.done for sim in fleet.sims.values()) == 10


async def test_websocket_pictures_are_collected(redis_port: int) -> None:
    async with fleet_of(redis_port, "g1") as fleet:
        graph = picture(3)
        graph["2"] = {"class_type": "SaveImageWebsocket", "inputs": {"images": ["1", 0]}}
        done = await fleet.ended((await fleet.submit(graph)).id)
        assert done.status is JobStatus.SUCCEEDED
        (output,) = done.outputs
        assert output.content_type == "image/png" and output.size_bytes > 0


async def test_priority_decides_who_is_next(redis_port: int) -> None:
    async with fleet_of(redis_port, "g1", dispatch=False) as fleet:
        low = await fleet.submit(picture(1), priority=-3)
        normal = await fleet.submit(picture(2))
        elsewhere = Placement(without=frozenset({"g9"}))  # waits in a queue of its own
        below = await fleet.submit(picture(4), priority=-1, placement=elsewhere)
        above = await fleet.submit(picture(5), priority=1, placement=elsewhere)
        high = await fleet.submit(picture(3), priority=3)
        await fleet.dispatcher()
        ended = [await fleet.ended(job.id) for job in (high, above, normal, below, low)]
        starts = [job.started_at or 0 for job in ended]
        assert starts == sorted(starts)


async def test_an_idle_fleet_asks_for_nothing(redis_port: int) -> None:
    async with fleet_of(redis_port, "g1") as fleet:
        job = await fleet.submit(GRAPH)
        assert (await fleet.ended(job.id)).status is JobStatus.SUCCEEDED
        await asyncio.sleep(4 * RECLAIM_S)  # what the job's own end made it ask is over
        asked = await counted(fleet.controller.broker.runtime, "fe_lease", "stot", kind=1)
        assert asked >= 1
        for _ in range(20):  # reasons to look, one after the other
            await fleet.stores.redis.publish("fleet:wake", "free")
            await asyncio.sleep(0.01)
        assert await counted(fleet.controller.broker.runtime, "fe_lease", "stot", kind=1) == asked


async def test_a_long_run_tells_its_progress(redis_port: int) -> None:
    async with fleet_of(redis_port, "g1", dispatch=False, sim={"timing": SimTiming()}) as fleet:
        graph = picture(5)
        graph["3"] = {
            "class_type": "SimWork",
            "inputs": {"value": ["1", 0], "seconds": 2.0, "steps": 20, "vram_gb": 0.0},
        }
        graph["2"]["inputs"]["images"] = ["3", 0]
        job = await fleet.submit(graph)
        seen = []
        async with fleet.stores.events.subscribe(job.id) as events:
            await fleet.dispatcher()  # nothing was told before
            async for event in events:
                if event.type == "progress":
                    seen.append(event.data)
                if event.type == "status" and event.data["status"] == "succeeded":
                    break
        values = [data["value"] for data in seen]
        assert len(values) >= 2 and values == sorted(values) and 0 < values[-1] <= 1
        working = [data for data in seen if data["current_node"] == "3"]
        assert working and {data["current_node_class"] for data in working} == {"SimWork"}
        told = [data for data in working if data["step"] is not None]  # not before its first step
        assert told and {data["steps"] for data in told} == {20}
        done = await fleet.job(job.id)
        assert done.progress is not None and done.progress.nodes_total == 3


async def test_previews_go_out_while_somebody_follows(redis_port: int) -> None:
    graph = {
        "1": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": CHECKPOINT}},
        "4": {"class_type": "CLIPTextEncode", "inputs": {"clip": ["1", 1], "text": "a fox"}},
        "6": {"class_type": "EmptyLatentImage", "inputs": {"width": 64, "height": 64, "batch_size": 1}},
        "7": {
            "class_type": "KSampler",
            "inputs": {
                "model": ["1", 0],
                "positive": ["4", 0],
                "negative": ["4", 0],
                "latent_image": ["6", 0],
                "seed": 1,
                "steps": 200,
                "cfg": 1.0,
                "sampler_name": "euler",
                "scheduler": "simple",
                "denoise": 1.0,
            },
        },
        "8": {"class_type": "VAEDecode", "inputs": {"samples": ["7", 0], "vae": ["1", 2]}},
        "9": {"class_type": "SaveImage", "inputs": {"images": ["8", 0], "filename_prefix": "x"}},
    }
    sim = {"timing": SimTiming(job_s=60), "previews": True}
    async with fleet_of(redis_port, "g1", sim=sim) as fleet:
        job = await fleet.submit(graph)

        async def computes() -> bool:
            progress = (await fleet.job(job.id)).progress
            return progress is not None and (progress.step or 0) > 2

        await until(computes, what="the sampler has taken some steps")
        now = await fleet.stores.jobs.snapshot(job.id)
        assert now is not None and now.preview is None, "nobody has asked for one"
        for _ in range(2):  # the second is the first one's reader that comes again, say
            async with asyncio.timeout(60), fleet.stores.events.subscribe(job.id) as events:
                async for event in events:
                    if event.type == "preview":
                        assert event.data["content_type"] == "image/jpeg"
                        break
        now = await fleet.stores.jobs.snapshot(job.id)
        assert now is not None and now.preview is not None, "for who comes late"
        await fleet.stores.jobs.request_cancel(job.id)
        await fleet.ended(job.id)


async def test_a_job_whose_partner_key_can_t_be_read_at_once_runs_all_the_same(
    redis_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, away = RedisRunStore.secret, 2

    async def secret(self: RedisRunStore, claim: Claim) -> bytes | None:
        nonlocal away
        away -= 1
        if away >= 0:
            raise StoreDown("Redis is away")
        return await read(self, claim)

    monkeypatch.setattr(RedisRunStore, "secret", secret)
    async with fleet_of(redis_port, "g1") as fleet:
        sealed = open_secrets(fleet.settings).seal(b'{"api_key_comfy_org": "key"}')
        job = await fleet.submit(GRAPH, secret=sealed)
        done = await fleet.ended(job.id)
        assert (done.status, done.attempt) == (JobStatus.SUCCEEDED, 0)


async def test_a_job_whose_partner_key_nobody_can_decrypt_fails_and_says_why(redis_port: int) -> None:
    async with fleet_of(redis_port, "g1") as fleet:
        sealed = Fernet(Fernet.generate_key()).encrypt(b"{}")
        failed = await fleet.ended((await fleet.submit(GRAPH, secret=sealed)).id)
        assert failed.status is JobStatus.FAILED
        assert failed.error is not None and "FLEET_SECRET_FILE" in failed.error.message
        assert (await fleet.ended((await fleet.submit(GRAPH)).id)).status is JobStatus.SUCCEEDED


async def test_a_post_that_breaks_in_our_own_hands_is_taken_for_one_without_an_answer(
    redis_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    post, broken = NodeClient.post_prompt, 1

    async def breaks(self: NodeClient, node: str, **what: Any) -> PostAnswered | PostUnknown:
        nonlocal broken
        broken -= 1
        if broken >= 0:
            raise RuntimeError("a defect")
        return await post(self, node, **what)

    monkeypatch.setattr(NodeClient, "post_prompt", breaks)
    async with fleet_of(redis_port, "g1") as fleet:
        done = await fleet.ended((await fleet.submit(GRAPH)).id)
        assert (done.status, done.attempt) == (JobStatus.SUCCEEDED, 0)


async def test_a_dispatcher_that_is_canceled_leaves_no_work_behind(redis_port: int) -> None:
    async with fleet_of(redis_port, "g1", "g2", sim={"timing": SimTiming(job_s=600)}) as fleet:
        for i in range(6):
            await fleet.submit(picture(i))
        (running,) = fleet.dispatchers
        await until(lambda: len(running.dispatcher.flying) == 2, what="both nodes work")
        before = asyncio.all_tasks()
        await running.kill()
        # Those that were canceled last need one more turn of the loop.
        await until(lambda: not asyncio.all_tasks() - before, what="no task of it is left")


@pytest.mark.parametrize("version", ["0.3.64", "0.33.0"])
async def test_only_the_targets_of_a_prompt_run(redis_port: int, version: str) -> None:
    graph = picture(7)
    graph["other"] = {**graph["2"], "inputs": {**graph["2"]["inputs"], "filename_prefix": "other"}}
    async with fleet_of(redis_port, "g1", sim={"comfyui": version}) as fleet:
        whole = await fleet.ended((await fleet.submit(graph)).id)
        assert {output.node_id for output in whole.outputs} == {"2", "other"}
        prompt = PromptFields(targets=("other",))
        done = await fleet.ended((await fleet.submit(graph, prompt=prompt)).id)
        assert (done.status, {output.node_id for output in done.outputs}) == (JobStatus.SUCCEEDED, {"other"})
        assert done.progress is not None and done.progress.nodes_total == 2
