"""`fleet warm` on real Redis, HAProxy and simulated nodes."""

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
import pytest
from redis.asyncio import Redis
from typer.testing import CliRunner, Result

from comfy_fleet.adapters.comfyui.node_client import NodeClient
from comfy_fleet.cli.app import build
from comfy_fleet.domain.jobs.job import JobStatus
from comfy_fleet.domain.schedule.waiting_job import WARMING
from comfy_fleet.services import warming
from comfy_fleet.sim import SimTiming
from comfy_fleet.sim.options import GB
from tests.factories import picture, sampled
from tests.fleet import Fleet, fleet_of, until
from tests.integration.api_kit import Api, running

MODELS = {"checkpoints": {"a.safetensors": 2 * GB, "b.safetensors": GB}}
FAST = {"models": MODELS, "timing": SimTiming(scale=0)}
SLOW = {"models": MODELS, "timing": SimTiming(job_s=1)}


@pytest.fixture(autouse=True)
def clean(redis: Redis) -> None:
    """Every test begins with an empty database."""


@dataclass
class World:
    """A fleet with an API and the stored workflows ``a``, ``b`` (a checkpoint each) and ``plain`` (none)."""

    fleet: Fleet
    api: Api

    async def warm(self, **body: Any) -> dict[str, dict[str, Any]]:
        """Warm; return what is done by node."""
        answer = await self.api.client.post("/api/v1/nodes-warm", json=body)
        assert answer.status_code == 200, answer.text
        return {one["node"]: one for one in answer.json()["nodes"]}

    async def run(self, workflow: str) -> Any:
        """Submit a real job and wait for its end."""
        return await self.fleet.ended(await self.submit(workflow))

    async def submit(self, workflow: str) -> str:
        answer = await self.api.client.post(f"/api/v1/workflows/{workflow}/jobs", json={"params": {}})
        assert answer.status_code == 201, answer.text
        return str(answer.json()["id"])

    async def cli(self, *argv: str) -> Result:
        line = ["warm", *argv, "--api", self.api.url]
        return await asyncio.to_thread(CliRunner().invoke, build(line), line)

    async def restarted(self, *names: str) -> None:
        """Have ComfyUI restarted: its card is empty, and the fleet knows."""
        for name in names:
            await self.fleet.sims[name].crash()
            await self.fleet.sims[name].restart()
            await self.fleet.stores.nodes.started(name)
            await self.fleet.verdict(name)

    @property
    def loads(self) -> int:
        return sum(sim.vram.loads[0] for sim in self.fleet.sims.values())

    def card(self, name: str) -> set[str]:
        return set(self.fleet.sims[name].vram.models)


@asynccontextmanager
async def world(redis_port: int, folder: Path, *names: str, sim: Any = None) -> AsyncIterator[World]:
    stored = {
        "a": sampled(file="a.safetensors"),
        "b": sampled(file="b.safetensors"),
        "plain": picture(7),
        "given": picture(8) | {"1": {"class_type": "LoadImage", "inputs": {"image": "a.png"}}},
    }
    for name, graph in stored.items():
        made = folder / "workflows" / name
        made.mkdir(parents=True)
        if name == "given":
            graph["1"]["_meta"] = {"title": "$photo"}
        elif name != "plain":
            graph["4"]["_meta"] = {"title": "$seed"}
        (made / "workflow.json").write_bytes(orjson.dumps(graph))
    async with (
        fleet_of(redis_port, *names, sim=sim or FAST) as fleet,
        NodeClient(fleet.settings.direct_url) as ask,
        running(redis_port, fleet.settings.data, info=ask, workflows=folder / "workflows") as api,
    ):
        known = api.deps.inventories
        await until(lambda: known.known == set(names), what="the API has read all nodes")
        yield World(fleet, api)


async def test_the_first_real_jobs_after_warming_load_nothing(redis_port: int, tmp_path: Path) -> None:
    async with world(redis_port, tmp_path, "g1", "g2", "g3") as it:
        for name in ("a", "b", "a", "plain"):
            await it.run(name)
        await it.restarted("g1", "g2", "g3")
        done = await it.warm()
        assert all(one["job"] and one["why"] is None for one in done.values()), done
        assert {one["workflow"] for one in done.values()} == {"a", "b"}
        for one in done.values():
            job = await it.fleet.ended(one["job"])
            assert (job.status, job.node) == (JobStatus.SUCCEEDED, one["node"]), job.error
            assert it.card(one["node"]) == {name.rpartition("/")[2] for name in one["models"]}
        before = it.loads
        for name in ("a", "b", "b", "a"):
            assert (await it.run(name)).status is JobStatus.SUCCEEDED
        assert it.loads == before
        again = await it.warm()
        assert all(one["loaded"] and one["job"] is None for one in again.values()), again


async def test_a_warming_job_leaves_nothing_behind(redis_port: int, tmp_path: Path) -> None:
    async with world(redis_port, tmp_path, "g1") as it:
        await it.run("plain")
        redis: Any = it.fleet.stores.redis
        kept = (
            "fleet:durations:*",
            "fleet:result:*",
            "fleet:sched:errors:*",
            "fleet:saved:*",
            "fleet:merge:*",
        )

        async def seen() -> dict[str, Any]:
            return {key: await redis.dump(key) for one in kept for key in await redis.keys(one)}

        before = await seen()
        for name in ("plain", "a"):
            done = (await it.warm(workflows=[name]))["g1"]
            ended = await it.fleet.ended(done["job"])
            assert ended.status is JobStatus.SUCCEEDED
            assert (ended.tier, ended.outputs, ended.cached) == (WARMING, (), False)
            assert ended.expires_at - ended.created_at < 3700
            shown = (await it.api.client.get(f"/api/v1/jobs/{ended.id}")).json()
            assert (shown["tier"], shown["priority"]) == ("warming", -1_000_000)
            assert (await it.fleet.job(ended.id)).excerpt == "warms g1"
        assert await seen() == before
        ran = it.fleet.sims["g1"].engine.history
        assert len(ran) == 3, "an equal job's result was not taken for it"


async def _bobs(it: World, count: int) -> list[str]:
    """Submit jobs of somebody who has had more of the GPUs' time than the operator."""
    return [(await it.fleet.submit(picture(number), owner="bob")).id for number in range(count)]


async def _starts(it: World, jobs: list[str]) -> list[float]:
    return [(await it.fleet.ended(job)).started_at or 0 for job in jobs]


async def test_real_jobs_go_first_on_the_next_turns(redis_port: int, tmp_path: Path) -> None:
    async with world(redis_port, tmp_path, "g1", sim=SLOW) as it:
        first = (await it.fleet.submit(picture(99), owner="bob")).id
        await until(lambda: it.fleet.sims["g1"].engine.running, what="g1 works")
        skipped = (await it.warm(workflows=["a"]))["g1"]
        assert skipped["job"] is None and skipped["why"].startswith("busy")
        warms = (await it.warm(workflows=["a"], wait_s=60))["g1"]["job"]
        real = await _bobs(it, 3)
        starts = await _starts(it, [first, *real, warms])
        assert starts[-1] == max(starts)


async def test_a_node_that_is_no_longer_idle_is_left_to_its_jobs(redis_port: int, tmp_path: Path) -> None:
    async with world(redis_port, tmp_path, "g1", sim=SLOW) as it:
        await it.fleet.stores.nodes.cordon("g1", reason="x")
        await it.fleet.verdict("g1", "drain")
        assert "drained" in (await it.warm(workflows=["a"]))["g1"]["why"]
        await it.fleet.stores.nodes.uncordon("g1")
        await it.fleet.verdict("g1")
        await it.fleet.dispatchers[0].end()
        done = await it.warm(workflows=["a"])
        warms = done["g1"]["job"]
        assert warms, done
        real = await _bobs(it, 3)
        await it.fleet.dispatcher("d2")
        starts = await _starts(it, [*real, warms])
        assert starts[-1] == max(starts), "though it came first"


async def test_a_node_that_still_starts_is_waited_for(redis_port: int, tmp_path: Path) -> None:
    async with world(redis_port, tmp_path, "g1") as it:
        assert (await it.run("a")).status is JobStatus.SUCCEEDED
        await it.fleet.sims["g1"].crash()
        await it.fleet.verdict("g1", "down")
        left = (await it.warm())["g1"]
        assert left["job"] is None and left["why"].startswith("not up: ") and "--wait" in left["why"]
        waits = (await it.warm(wait_s=60))["g1"]
        assert not waits["loaded"], "what it had on its card is gone"
        await it.fleet.sims["g1"].restart()
        assert (await it.fleet.ended(waits["job"])).status is JobStatus.SUCCEEDED
        assert it.card("g1") == {"a.safetensors"}


async def test_only_so_many_nodes_are_warmed_at_a_time(
    redis_port: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(warming, "MOST_AT_ONCE", 1)
    async with world(redis_port, tmp_path, "g1", "g2") as it:
        first = await it.warm(workflows=["a"])
        assert [bool(one["job"]) for one in first.values()] == [True, False]
        assert first["g2"]["why"] == "1 nodes are warmed at a time: call again"
        await it.fleet.ended(first["g1"]["job"])
        again = await it.warm(workflows=["a"])
        assert again["g1"]["loaded"] and again["g2"]["job"]


async def test_the_command_shows_each_node_and_why_not(redis_port: int, tmp_path: Path) -> None:
    async with world(redis_port, tmp_path, "g1", "g2", "g3") as it:
        none = await it.cli()
        assert "no stored workflow has run on these nodes lately" in str(none.exception)
        assert "--workflow NAME" in str(none.exception)
        await it.fleet.stores.nodes.cordon("g3", reason="x")
        done = await it.cli("--workflow", "a", "--workflow", "given")
        assert done.exit_code == 0, done.output
        lines = done.stdout.splitlines()
        assert lines[0].split() == ["Node", "Workflow", "Models", "Took", "Result"]
        for name, line in zip(("g1", "g2"), lines[1:], strict=False):
            assert re.fullmatch(rf"{name} +a +a\.safetensors +\S+ +ok", line), line
        assert "drained" in lines[3]
        assert lines[4].startswith("given warms no node of pool default: ") and "photo" in lines[4]
        again = await it.cli("g1", "--workflow", "a", "--json")
        assert [one["status"] for one in orjson.loads(again.stdout)["nodes"]] == ["warm"]
        for argv, words in (
            (("g9",), "no node 'g9'"),
            (("--pool", "big"), "no node is in pool 'big'"),
            (("--workflow", "nope"), "no workflow 'nope'"),
        ):
            refused = await it.cli(*argv)
            assert words in str(refused.exception), refused.exception
