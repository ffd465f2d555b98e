"""A node pack comes onto two hosts: installed, rolled, shown by ``node diff``; no job is lost meanwhile."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis
from typer.testing import CliRunner, Result

from comfy_fleet.agent.main import AgentOptions, run
from comfy_fleet.cli.app import build
from comfy_fleet.domain.jobs.job import JobStatus
from comfy_fleet.processes.dispatcher import open_dispatcher
from tests.factories import new_job, picture
from tests.integration.agent_kit import cpu, host_of
from tests.integration.haproxy_kit import eventually

pytestmark = pytest.mark.timeout(300)

BOXES = {"h1": "box1", "h2": "box2"}
NODES = ("h1-cpu0", "h2-cpu0")


def install(home: Path) -> None:
    """Put a pack into a ComfyUI's folder; it is loaded at the next start."""
    made = {"input": {"required": {}}, "output": ["IMAGE"], "python_module": "custom_nodes.kids"}
    (home / "custom_nodes").mkdir(exist_ok=True)
    (home / "custom_nodes" / "pack.json").write_text(json.dumps({"KidsOne": made, "KidsTwo": made}))


async def test_a_pack_is_installed_on_both_hosts_and_rolled_out(
    redis: Redis, redis_port: int, tmp_path: Path
) -> None:
    for box in (*BOXES.values(), "checkout1", "checkout2"):
        (tmp_path / box).mkdir()
    first, second = (cpu(tmp_path / name, "--sim-name", "sim") for name in ("checkout1", "checkout2"))
    async with host_of(
        redis_port,
        tmp_path / "box1",
        supervision=first,
        haproxy=True,
        ask_nodes=True,
        agent_metrics_port=None,
    ) as host:
        stop, jobs = asyncio.Event(), list[str]()

        async def fleet(*argv: str) -> Result:
            whole = [*argv, "--api", host.api.url]
            return await asyncio.to_thread(lambda: CliRunner().invoke(build(argv), whole))

        async def ended(job_id: str) -> bool:
            found = await host.api.stores.jobs.get(job_id)
            assert found is not None
            assert found.status is not JobStatus.FAILED, found.error
            return found.status is JobStatus.SUCCEEDED

        async def load() -> None:
            while not stop.is_set():
                new = new_job(picture(len(jobs) + 1))
                sent = await host.api.stores.jobs.submit(new, idempotency=None, depth_limit=100)
                jobs.append(sent.job.id)

                async def done() -> bool:
                    return await ended(jobs[-1])

                await eventually("a job succeeds", done, within_s=120)

        async def told(*argv: str) -> dict[str, Any]:
            shown = await fleet("node", "diff", *argv, "--json")
            found: dict[str, Any] = json.loads(shown.stdout)
            return found

        settings = host.settings.model_copy(update={"data": tmp_path / "box2"})
        other = AgentOptions(join=host.api.url, host="h2", port=0, supervision=second)
        agent = asyncio.create_task(run(settings, other, stop))
        for name in NODES:
            await host.is_up(name, within_s=120)

        async def read() -> bool:
            return not (await told())["unread"]

        await eventually("both are read", read, within_s=120)
        equal = await fleet("node", "diff", *NODES, "--exit-code")
        assert (equal.exit_code, equal.stdout.strip()) == (0, "no differences"), equal.output
        async with open_dispatcher(host.settings, host.api.stores, name="d1") as dispatcher:
            running = asyncio.create_task(dispatcher.run(end := asyncio.Event()))
            loading = asyncio.create_task(load())
            for number, supervision in enumerate((first, second)):
                install(supervision.checkout.home)
                rolled = await fleet("node", "roll")
                assert rolled.exit_code == 0, rolled.output
                shown = await fleet("node", "diff", *NODES, "--exit-code")
                if number == 0:
                    assert shown.exit_code == 1, shown.output
                    assert "kids (2 classes)" in shown.output
                    (row,) = (await told())["differences"]
                    assert row["nodes"] == {"h1-cpu0": "yes", "h2-cpu0": ""}
                    assert (row["kind"], row["classes"]) == ("pack", ["KidsOne", "KidsTwo"])
                    listed = await fleet("node", "ls")
                    assert "differ in classes or models: fleet node diff" in listed.output
                else:
                    assert (shown.exit_code, shown.stdout.strip()) == (0, "no differences"), shown.output
            before = len(jobs)
            await eventually("jobs go on", lambda: len(jobs) > before, within_s=60)
            stop.set()
            await loading
            assert all([await ended(job_id) for job_id in jobs])
            end.set()
            await running
        await agent
