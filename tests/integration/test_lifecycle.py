"""Drain, resume, remove and roll on a running fleet, through the API and the command line."""

import asyncio
import random
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
from redis.asyncio import Redis
from typer.testing import CliRunner, Result

from comfy_fleet.adapters.comfyui.node_client import NodeClient
from comfy_fleet.bootstrap import Stores
from comfy_fleet.cli.app import build
from comfy_fleet.domain.jobs.job import JobStatus
from comfy_fleet.sim import SimTiming
from tests.factories import picture
from tests.fleet import Fleet, fleet_of, until
from tests.integration.agent_kit import cpu, host_of
from tests.integration.api_kit import object_info, running


@pytest.fixture(autouse=True)
def clean(redis: Redis) -> None:
    """Every test begins with an empty database."""


@dataclass
class Operated:
    """A fleet with its API and its operator."""

    fleet: Fleet
    client: httpx.AsyncClient
    url: str

    async def cli(self, *argv: str) -> Result:
        """Run ``fleet ...`` beside the fleet."""
        return await asyncio.to_thread(CliRunner().invoke, build(argv), [*argv, "--api", self.url])


@asynccontextmanager
async def operated(redis_port: int, folder: Path, *names: str, **options: Any) -> AsyncIterator[Operated]:
    async with (
        fleet_of(redis_port, *names, **options) as fleet,
        NodeClient(fleet.settings.direct_url) as nodes,
        running(redis_port, folder, info=nodes) as api,
    ):
        await until(lambda: api.deps.inventories.known == set(names), what="all nodes are read")
        yield Operated(fleet, api.client, api.url)


async def busy(fleet: Fleet, name: str) -> str:
    """Have a node work; returns the job."""
    job = await fleet.submit(picture(1))
    await until(lambda: fleet.sims[name].engine.running, what=f"{name} works")
    return job.id


async def test_drain_waits_for_outputs_and_says_what_still_runs(redis_port: int, tmp_path: Path) -> None:
    timing = SimTiming(job_s=1)
    async with operated(redis_port, tmp_path, "g1", sim={"timing": timing}) as world:
        job = await busy(world.fleet, "g1")
        await world.fleet.dispatchers[0].kill()  # what it left behind stays until another one is there
        late = await world.cli("node", "drain", "g1", "--wait", "--timeout", "0.2")
        assert late.exit_code != 0 and late.exception is not None
        assert f"node g1 is not empty after 0.2 s: job {job[:8]}" in str(late.exception)
        await world.fleet.dispatcher("d2")
        done = await world.cli("node", "drain", "g1", "--wait", "--timeout", "20")
        assert done.exit_code == 0 and done.stdout.startswith("drained g1\n")
        assert (await world.fleet.job(job)).status is JobStatus.SUCCEEDED  # its outputs are here
        assert (await world.cli("node", "rm", "g1")).exit_code == 0


async def test_requeue_gives_the_job_to_another_node_at_once(redis_port: int, tmp_path: Path) -> None:
    timing = SimTiming(job_s=60)  # whoever waits for its end gives up before
    async with operated(redis_port, tmp_path, "g1", sim={"timing": timing}) as world:
        job = await busy(world.fleet, "g1")
        await world.fleet.add_sim("g2")
        await world.fleet.verdict("g2")
        done = await world.cli("node", "drain", "g1", "--requeue", "--wait", "--timeout", "15")
        assert done.exit_code == 0, done.output
        ended = await world.fleet.ended(job)
        assert (ended.status, ended.node, ended.attempt) == (JobStatus.SUCCEEDED, "g2", 0)
        assert world.fleet.sims["g1"].stats.interrupted == 1
        assert await world.fleet.stores.nodes.errors("g1") == []


async def test_rm_refuses_while_work_is_on_it_and_forced_requeues(redis_port: int, tmp_path: Path) -> None:
    timing = SimTiming(job_s=60)  # as above
    async with operated(redis_port, tmp_path, "g1", sim={"timing": timing}) as world:
        job = await busy(world.fleet, "g1")
        refused = await world.cli("node", "rm", "g1")
        assert "still works on run" in str(refused.exception)
        await world.fleet.add_sim("g2")
        await world.fleet.verdict("g2")
        assert (await world.cli("node", "rm", "g1", "--force")).exit_code == 0
        ended = await world.fleet.ended(job)
        assert (ended.status, ended.node, ended.attempt) == (JobStatus.SUCCEEDED, "g2", 0)


async def test_a_forced_rm_of_a_dead_node_costs_no_attempt(redis_port: int, tmp_path: Path) -> None:
    timing = SimTiming(job_s=60)
    async with operated(redis_port, tmp_path, "g1", sim={"timing": timing}) as world:
        job = await busy(world.fleet, "g1")
        await world.fleet.add_sim("g2")
        await world.fleet.verdict("g2")
        world.fleet.sims["g1"].freeze()
        answer = await world.client.delete("/api/v1/nodes/g1?force=true")
        assert answer.status_code == 204
        ended = await world.fleet.ended(job, timeout_s=40)  # some 15 s until nothing can come of it any more
        assert (ended.status, ended.node, ended.attempt) == (JobStatus.SUCCEEDED, "g2", 0)


async def _both_read(stores: Stores) -> bool:
    states = await stores.nodes.states()
    busy = [await stores.redis.exists(stores.redis.keyspace.reading(state.node.name)) for state in states]
    return not any(busy) and all(state.reading.read_at and not state.reading.wanted for state in states)


async def test_show_refresh_and_diff(redis_port: int, tmp_path: Path) -> None:
    async with operated(redis_port, tmp_path, "g1", "g2", sim={"timing": SimTiming(job_s=60)}) as world:
        fleet = world.fleet
        await until(partial(_both_read, fleet.stores), what="no first reading is under way")
        fleet.sims["g2"].models = {**fleet.sims["g2"].models}
        fleet.sims["g2"].catalogue.models = {**fleet.sims["g2"].models, "vae": {"new.safetensors": 1}}
        read = await world.cli("node", "refresh", "g2")
        assert read.exit_code == 0, read.output
        assert "read g2: ComfyUI sim-0.33.0" in read.stdout
        same = await world.client.get("/api/v1/nodes-diff?names=g1")
        assert same.json()["differences"] == []
        told = await world.cli("node", "diff")
        assert "vae/new.safetensors" in told.stdout
        assert (await world.client.get("/api/v1/nodes-diff?names=g9")).status_code == 404
        await fleet.stores.nodes.cordon("g2", reason="x")
        job = await busy(fleet, "g1")
        shown = await world.cli("node", "show", "g1")
        assert "24.0 GiB" in shown.stdout and f"job {job[:8]}" in shown.stdout


async def test_a_waiting_job_says_what_it_waits_for(redis_port: int, tmp_path: Path) -> None:
    async with operated(redis_port, tmp_path, "g1") as world:
        drained = await world.cli("node", "drain", "g1", "--reason", "new driver")
        assert drained.exit_code == 0, drained.output
        sent = await world.client.post("/api/v2/jobs", json={"workflow": picture(5)})
        assert sent.status_code == 201
        job_id = sent.json()["id"]
        for face in ("v1", "v2"):
            job = (await world.client.get(f"/api/{face}/jobs/{job_id}")).json()
            assert (job["status"], job["waiting_for"]) == ("queued", "node g1 is drained: new driver")
        await world.client.post("/api/v1/nodes/g1/drain", json={"reason": "new fans"})
        # At once, though the nodes were looked at just now.
        job = (await world.client.get(f"/api/v2/jobs/{job_id}")).json()
        assert job["waiting_for"] == "node g1 is drained: new fans"
        await world.cli("node", "resume", "g1")
        ended = await world.fleet.ended(job_id)
        assert ended.status is JobStatus.SUCCEEDED
        job = (await world.client.get(f"/api/v1/jobs/{ended.id}")).json()
        assert job["waiting_for"] is None


async def test_a_whole_host_is_drained_by_its_address(redis_port: int, tmp_path: Path) -> None:
    async with operated(redis_port, tmp_path, "g1", "g2") as world:
        done = await world.cli("node", "cordon-host", "127.0.0.1", "--wait", "--reason", "power")
        assert done.stdout == "drained g1, g2\n"
        states = await world.fleet.stores.nodes.states()
        assert {state.node.cordon_reason for state in states} == {"power"}
        none = await world.cli("node", "cordon-host", "elsewhere")
        assert "no node is on host elsewhere" in str(none.exception)


RESTART = (
    "import urllib.request as u; u.urlopen(u.Request('{url}/sim/faults', method='POST', "
    "headers={'Content-Type': 'application/json'}, "
    'data=b\'{"restart_after_s": 4, "crash": true}\'))'
)


async def test_a_rolling_restart_under_load_loses_nothing(redis_port: int, tmp_path: Path) -> None:
    timing = SimTiming(job_s=0.1)
    async with operated(redis_port, tmp_path, "g1", "g2", sim={"timing": timing}) as world:
        script = tmp_path / "restart.py"
        script.write_text(RESTART.replace("'{url}/sim/faults'", "__import__('sys').argv[1] + '/sim/faults'"))
        jobs: list[str] = []
        stop = asyncio.Event()

        async def load() -> None:
            while not stop.is_set():
                jobs.append((await world.fleet.submit(picture(len(jobs)))).id)
                await asyncio.sleep(0.1)

        loading = asyncio.create_task(load())
        rolled = await world.cli(
            *("node", "roll", "--timeout", "30"),
            *("--restart-command", f"{sys.executable} {script} {{url}}"),
        )
        stop.set()
        await loading
        assert rolled.exit_code == 0, (rolled.output, rolled.exception)
        assert rolled.stdout.splitlines() == ["restarted g1 (1 of 2)", "restarted g2 (2 of 2)"]
        ended = [await world.fleet.ended(job) for job in jobs]
        assert {(job.status, job.attempt) for job in ended} == {(JobStatus.SUCCEEDED, 0)}
        assert sum(sim.stats.done for sim in world.fleet.sims.values()) == len(jobs)
        states = await world.fleet.stores.nodes.states()
        assert [(s.node.cordoned, s.reading.starts) for s in states] == [(False, 1), (False, 1)]


async def test_agents_restart_what_they_run_in_turn(redis_port: int, tmp_path: Path) -> None:
    async with host_of(redis_port, tmp_path, supervision=cpu(tmp_path, per_gpu=2), haproxy=True) as host:
        names = ["h1-cpu0-0", "h1-cpu0-1"]
        for name in names:
            host.api.info.serve(name, object_info())
            await host.is_up(name)
        before = {name: (await host.report(name))["pid"] for name in names}
        rolled = await asyncio.to_thread(
            CliRunner().invoke, build(["node"]), ["node", "roll", "--timeout", "30", "--api", host.api.url]
        )
        assert rolled.exit_code == 0, (rolled.output, rolled.exception)
        assert rolled.stdout.splitlines() == ["restarted h1-cpu0-0 (1 of 2)", "restarted h1-cpu0-1 (2 of 2)"]
        assert all([(await host.report(name))["pid"] != before[name] for name in names])
        assert not any([(await host.state(name)).node.cordoned for name in names])


async def test_a_node_without_an_agent_can_t_be_ordered_to_restart(redis_port: int, tmp_path: Path) -> None:
    async with operated(redis_port, tmp_path, "g1") as world:
        refused = await world.cli("node", "roll")
        assert "no agent runs node g1: nothing was restarted" in str(refused.exception)
        (state,) = await world.fleet.stores.nodes.states()
        assert not state.node.cordoned


async def test_adds_drains_and_removes_at_random_lose_nothing(redis_port: int, tmp_path: Path) -> None:
    chance = random.Random(7)
    timing = SimTiming(job_s=0.15)
    async with operated(redis_port, tmp_path, "n0", "n1", "n2", sim={"timing": timing}) as world:
        fleet, number = world.fleet, 3
        jobs = [await fleet.submit(picture(i)) for i in range(60)]
        for _ in range(15):
            states = await fleet.stores.nodes.states()
            names = [state.node.name for state in states]
            usable = [state.node.name for state in states if not state.node.cordoned]
            what = chance.choice(["add", "drain", "requeue", "resume", "remove"])
            if what == "add" or len(usable) < 2:
                await fleet.add_sim(f"n{number}", timing=timing)
                number += 1
            elif what in ("drain", "requeue"):
                body = {"reason": "test", "requeue": what == "requeue"}
                await world.client.post(f"/api/v1/nodes/{chance.choice(names)}/drain", json=body)
            elif what == "resume":
                await world.client.post(f"/api/v1/nodes/{chance.choice(names)}/resume")
            else:
                answer = await world.client.delete(f"/api/v1/nodes/{chance.choice(usable)}?force=true")
                assert answer.status_code == 204
            await asyncio.sleep(chance.uniform(0.02, 0.1))
        for name in [state.node.name for state in await fleet.stores.nodes.states()]:
            await world.client.post(f"/api/v1/nodes/{name}/resume")
        ended = [await fleet.ended(job.id, timeout_s=40) for job in jobs]
        assert {(job.status, job.attempt) for job in ended} == {(JobStatus.SUCCEEDED, 0)}
        assert sum(sim.stats.done for sim in fleet.sims.values()) == 60


async def test_a_broken_gpu_is_taken_out_with_its_reason_and_comes_back_after_a_restart(
    redis_port: int, tmp_path: Path
) -> None:
    timing = SimTiming(job_s=0.05)
    async with operated(
        redis_port, tmp_path, "g1", "g2", sim={"timing": timing}, quarantine_faults=2
    ) as world:
        fleet = world.fleet
        await fleet.sims["g1"].set_faults({"gpu_fault": 1})
        jobs: list[str] = []

        async def taken_out() -> bool:
            jobs.append((await fleet.submit(picture(len(jobs)))).id)
            await fleet.ended(jobs[-1])
            return (await fleet.state("g1")).quarantined

        await until(taken_out, what="g1 is quarantined")
        jobs += [(await fleet.submit(picture(1000 + number))).id for number in range(4)]
        ended = [await fleet.ended(job) for job in jobs]
        assert {(job.status, job.node) for job in ended[-4:]} == {(JobStatus.SUCCEEDED, "g2")}
        assert {job.status for job in ended} == {JobStatus.SUCCEEDED}  # none is lost
        met = [one for job in ended for one in job.attempts if one.error and one.error.code == "gpu_fault"]
        assert [(one.node, one.counted) for one in met] == [("g1", True)] * 2  # then it was out
        why = "quarantined: 2 GPU faults in a row, the last: CUDA error: an illegal memory access"
        (row,) = [n for n in (await world.client.get("/api/v1/nodes")).json()["nodes"] if n["name"] == "g1"]
        assert row["quarantined"] and row["cordon_reason"].startswith(why)
        shown = " ".join((await world.cli("node", "show", "g1")).stdout.split())
        assert "quarantined: 2 GPU faults" in shown and "gpu_fault" in shown
        assert "quarantined" in (await world.cli("node", "ls")).stdout
        done = fleet.sims["g1"].stats.done
        await fleet.sims["g1"].crash()  # its ComfyUI is started anew
        await fleet.verdict("g1", "down")
        await fleet.sims["g1"].restart()
        await fleet.verdict("g1")
        state = await fleet.state("g1")
        assert (state.node.cordoned, state.quarantined, state.reading.starts) == (False, False, 1)

        async def works_again() -> bool:
            jobs.append((await fleet.submit(picture(2000 + len(jobs)))).id)
            assert (await fleet.ended(jobs[-1])).attempt == 0
            return fleet.sims["g1"].stats.done > done

        await until(works_again, what="g1 runs jobs again")
