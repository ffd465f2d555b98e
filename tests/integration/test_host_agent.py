"""A GPU host's agent: it starts, watches and registers ComfyUIs, and takes them out in time."""

import asyncio
import os
import re
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from uuid import uuid4

import httpx
import pytest
from redis.asyncio import Redis

from comfy_fleet.agent.main import AgentOptions, run
from comfy_fleet.domain.errors import ConfigError
from comfy_fleet.domain.jobs.job import JobStatus
from comfy_fleet.domain.nodes.process_supervision import RestartLimits
from comfy_fleet.processes.dispatcher import open_dispatcher
from comfy_fleet.settings import Settings
from tests.children import mortal
from tests.factories import GRAPH, new_job
from tests.fleet import Running
from tests.integration.agent_kit import Host, checkout, cpu, host_of
from tests.integration.api_kit import running
from tests.integration.haproxy_kit import eventually
from tests.integration.redis_kit import claim, submit

pytestmark = pytest.mark.timeout(180)  # several waits of 20 s may add up before one says why

NODE = "h1-cpu0"


def starts(folder: Path, name: str = NODE) -> int:
    path = folder / "comfyui" / name / "starts"
    return len(path.read_text()) if path.exists() else 0


async def test_one_command_starts_and_registers_comfyuis_and_nothing_is_left_after_it(
    redis: Redis, redis_port: int, tmp_path: Path
) -> None:
    async with host_of(redis_port, tmp_path, supervision=cpu(tmp_path, per_gpu=2)) as host:
        for name in (f"{NODE}-0", f"{NODE}-1"):
            await host.said(name, "ready")
        first, second = [await host.state(f"{NODE}-{n}") for n in (0, 1)]
        assert first.node.url != second.node.url
        assert first.node.agent == second.node.agent
        assert first.node.labels == {"host": "h1"}
        await eventually("both have told their memory", lambda: _seen_by(host, "ComfyUI's /system_stats"))
        report = await host.report(f"{NODE}-0")
        assert (report["phase"], report["restarts"], report["busy"]) == ("up", 0, False)
        assert report["version"]
        pid = report["pid"]
        os.kill(pid, 0)
        url = first.node.url
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    async with host_of(redis_port, tmp_path, supervision=cpu(tmp_path, per_gpu=2)) as host:

        async def again() -> bool:
            report = await host.report(f"{NODE}-0")
            return report.get("phase") == "up" and report["pid"] != pid

        await eventually("it runs again", again)
        assert (await host.state(f"{NODE}-0")).node.url == url  # name and port stay


async def _seen_by(host: Host, source: str) -> bool:
    return bool((await host.report(f"{NODE}-0"))["vram"]["source"] == source)


async def test_a_second_agent_on_the_same_folder_starts_nothing(
    redis: Redis, redis_port: int, tmp_path: Path
) -> None:
    async with host_of(redis_port, tmp_path, supervision=cpu(tmp_path)) as host:
        await host.said(NODE, "ready")
        ports = (tmp_path / "comfyui" / "ports.json").read_text()
        second = AgentOptions(join=host.api.url, host="h2", port=0, supervision=cpu(tmp_path))
        with pytest.raises(ConfigError, match=rf"pid {os.getpid()}\) works on .*--data"):
            await run(host.settings, second, asyncio.Event())
        assert starts(tmp_path) == 1
        assert (tmp_path / "comfyui" / "ports.json").read_text() == ports


@pytest.mark.parametrize("url", ["ftp://127.0.0.1", "127.0.0.1:8188"])
async def test_a_url_that_is_none_is_told_before_anything_starts(tmp_path: Path, url: str) -> None:
    options = AgentOptions(join=url, host="h1", port=0, advertise="127.0.0.1", supervision=cpu(tmp_path))
    with pytest.raises(ConfigError, match="must look like http"):
        await run(Settings(data=tmp_path), options, asyncio.Event())


async def test_a_killed_comfyui_takes_jobs_again_within_its_start_and_two_seconds(
    redis: Redis, redis_port: int, tmp_path: Path
) -> None:
    supervision = cpu(tmp_path, "--slow-start", "1.5")
    async with host_of(redis_port, tmp_path, supervision=supervision, haproxy=True) as host:
        await host.is_up(NODE)
        pid = (await host.report(NODE))["pid"]
        killed_at = time.time()
        os.kill(pid, signal.SIGKILL)

        async def told() -> bool:
            word, why = await host.api.stores.hosts.words(NODE)
            return word == "drain" and "SIGKILL" in why

        async def taken_out() -> bool:  # by the agent's word, and by the health check soon after
            return (await host.state(NODE)).verdict in ("drain", "down")

        await asyncio.gather(  # each before it is up again
            eventually("the reason is told", told), eventually("HAProxy gives no lease", taken_out)
        )
        await host.is_up(NODE)
        took_s = time.time() - killed_at
        assert (await host.report(NODE))["restarts"] == 1
        assert starts(tmp_path) == 2
        # How long its own start took, from the first instruction to its open port, as busy as all is now.
        born, open_ = map(float, (tmp_path / "comfyui" / NODE / "own").read_text().split())
        start_s = open_ - born
        assert born > killed_at - 0.1 and start_s >= 1.5  # the kernel counts in hundredths
        assert took_s <= start_s + 2.0, (took_s, start_s)  # what operators are promised


async def test_a_frozen_comfyui_is_killed_and_started_again(
    redis: Redis, redis_port: int, tmp_path: Path
) -> None:
    limits = RestartLimits(frozen_s=2)
    async with host_of(redis_port, tmp_path, supervision=cpu(tmp_path, limits=limits)) as host:
        await host.said(NODE, "ready")
        pid = (await host.report(NODE))["pid"]
        os.kill(pid, signal.SIGSTOP)

        silent_s: list[str] = []

        async def told() -> bool:
            why = (await host.api.stores.hosts.words(NODE))[1]
            silent_s.extend(re.findall(r"frozen: silent and without progress for (\d+) s", why))
            return bool(silent_s)

        await eventually("the reason is told", told, within_s=20)  # without the limit: after 30 s
        assert int(silent_s[0]) >= 2

        async def again() -> bool:
            report = await host.report(NODE)
            return report.get("pid") not in (None, pid) and report["phase"] == "up"

        await eventually("another process answers", again)
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


async def test_a_comfyui_whose_worker_died_is_killed_and_its_job_runs_elsewhere(
    redis: Redis, redis_port: int, tmp_path: Path
) -> None:
    async with host_of(redis_port, tmp_path, supervision=cpu(tmp_path, per_gpu=2), haproxy=True) as host:
        for name in (f"{NODE}-0", f"{NODE}-1"):
            await host.is_up(name)
        url = (await host.state(f"{NODE}-0")).node.url
        pid = (await host.report(f"{NODE}-0"))["pid"]
        async with httpx.AsyncClient() as client:
            assert (await client.post(f"{url}/sim/faults", json={"worker_dies": 1})).status_code == 200
        stores = host.api.stores
        await stores.nodes.cordon(f"{NODE}-1", reason="the other one gets it first")
        async with open_dispatcher(host.settings, stores, name="d1") as dispatcher:
            stop = asyncio.Event()
            running_ = Running(dispatcher, stop, asyncio.create_task(dispatcher.run(stop)))
            job = (await stores.jobs.submit(new_job(), idempotency=None, depth_limit=10)).job

            async def told() -> bool:
                return "runs its prompts died" in (await host.api.stores.hosts.words(f"{NODE}-0"))[1]

            await eventually("the reason is told", told)  # its silence: after 600 s
            await stores.nodes.uncordon(f"{NODE}-1")

            async def done() -> bool:
                found = await stores.jobs.get(job.id)
                return found is not None and found.status is JobStatus.SUCCEEDED

            await eventually("the job succeeds", done)
            await host.is_up(f"{NODE}-0")
            assert (await host.report(f"{NODE}-0"))["pid"] != pid
            await running_.end()


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGUSR2], ids=["computes", "reads"])
async def test_a_model_load_that_starves_the_event_loop_is_not_frozen(
    redis: Redis, redis_port: int, tmp_path: Path, number: signal.Signals
) -> None:
    async with host_of(
        redis_port, tmp_path, supervision=cpu(tmp_path, limits=RestartLimits(frozen_s=2))
    ) as host:
        await host.said(NODE, "ready")
        pid = (await host.report(NODE))["pid"]
        os.kill(pid, number)

        async def silent(least_s: float, most_s: float) -> bool:
            return least_s <= ((await host.report(NODE)).get("answered_s_ago") or 0.0) <= most_s

        await eventually("it is silent for twice the limit", lambda: silent(4, 60))
        (tmp_path / "comfyui" / NODE / "loaded").touch()
        await eventually("it answers again", lambda: silent(0, 1))
        await host.said(NODE, "ready")
        report = await host.report(NODE)
        assert (report["pid"], report["restarts"], starts(tmp_path)) == (pid, 0, 1)


async def test_a_leaking_comfyui_is_recycled_when_nobody_needs_it(
    redis: Redis, redis_port: int, tmp_path: Path
) -> None:
    limits = RestartLimits(rss_bytes=400 * 2**20)
    async with host_of(redis_port, tmp_path, supervision=cpu(tmp_path, limits=limits)) as host:
        await host.said(NODE, "ready")
        leak = tmp_path / "comfyui" / NODE / "leak"
        leak.touch()

        async def told() -> bool:
            word, why = await host.api.stores.hosts.words(NODE)
            assert word == "ready" or "host memory" in why
            return word == "drain"

        await eventually("the reason is told", told)
        leak.unlink()
        await eventually("it was started again", lambda: starts(tmp_path) == 2)
        await host.said(NODE, "ready")
        assert (await host.report(NODE))["host_memory_bytes"] < 400 * 2**20


async def test_a_comfyui_is_recycled_after_so_many_jobs_but_not_while_it_works(
    redis: Redis, redis_port: int, tmp_path: Path
) -> None:
    supervision = cpu(tmp_path, "--job-s", "5", limits=RestartLimits(jobs=1))
    async with host_of(redis_port, tmp_path, supervision=supervision) as host:
        await host.said(NODE, "ready")
        url = (await host.state(NODE)).node.url
        prompts = [await _post(host, url, seed) for seed in range(2)]
        at = time.time()  # the second one begins when the first one has ended, and takes its whole time
        assert (await host.http.post(f"{url}/interrupt", json={"prompt_id": prompts[0]})).is_success
        await host.said(NODE, "drain")
        await eventually("it was started again", lambda: starts(tmp_path) == 2)
        assert float((tmp_path / "comfyui" / NODE / "born").read_text()) - at >= 5  # an idle one: about 3
        await host.said(NODE, "ready")
        assert (await host.report(NODE))["jobs"] == 0


async def _post(host: Host, url: str, seed: int) -> str:
    graph = {**GRAPH, "1": {**GRAPH["1"], "inputs": {**GRAPH["1"]["inputs"], "color": seed}}}
    answer = await host.http.post(f"{url}/prompt", json={"prompt": graph, "client_id": "x"})
    assert answer.status_code == 200, answer.text
    return str(answer.json()["prompt_id"])


async def test_worn_comfyuis_of_one_host_are_recycled_one_after_the_other(
    redis: Redis, redis_port: int, tmp_path: Path
) -> None:
    names = [f"{NODE}-{n}" for n in (0, 1)]
    supervision = cpu(tmp_path, "--slow-start", "1", limits=RestartLimits(jobs=2), per_gpu=2)
    async with host_of(redis_port, tmp_path, supervision=supervision) as host:
        for name in names:
            await host.said(name, "ready")
        for name in names:
            for seed in range(2):
                await _post(host, (await host.state(name)).node.url, seed)
        away: list[int] = []

        async def both_came_back() -> bool:
            (h1,) = await host.api.stores.hosts.hosts()
            away.append([said["word"] for said in h1.record["nodes"]].count("drain"))  # both at one instant
            return all(starts(tmp_path, name) == 2 for name in names) and not away[-1]

        await eventually("both were recycled", both_came_back, within_s=60)
        assert max(away) == 1, away


async def test_the_job_of_a_killed_comfyui_runs_elsewhere_within_two_seconds(
    redis: Redis, redis_port: int, tmp_path: Path
) -> None:
    # So slow to start that it can't be back in time itself.
    supervision = cpu(tmp_path, "--job-s", "4", "--slow-start", "3", per_gpu=2)
    async with host_of(redis_port, tmp_path, supervision=supervision, haproxy=True) as host:
        for name in (f"{NODE}-0", f"{NODE}-1"):
            await host.is_up(name)
        stores = host.api.stores
        async with open_dispatcher(host.settings, stores, name="d1") as dispatcher:
            stop = asyncio.Event()
            running_ = Running(dispatcher, stop, asyncio.create_task(dispatcher.run(stop)))
            try:
                job = (await stores.jobs.submit(new_job(), idempotency=None, depth_limit=10)).job

                async def runs_on() -> str | None:
                    found = await stores.jobs.get(job.id)
                    assert found is not None
                    return found.node if found.status is JobStatus.RUNNING else None

                async def started() -> bool:
                    if (node := await runs_on()) is None:
                        return False
                    queue = await host.http.get(f"{(await host.state(node)).node.url}/queue")
                    return bool(queue.json()["queue_running"])

                await eventually("it runs", started)
                first = await runs_on()
                assert first is not None
                os.kill((await host.report(first))["pid"], signal.SIGKILL)
                killed_at = time.monotonic()

                async def elsewhere() -> bool:
                    return await runs_on() not in (None, first)

                await eventually("it runs elsewhere", elsewhere)
                assert time.monotonic() - killed_at < 2.0  # what operators are promised

                async def done() -> bool:
                    found = await stores.jobs.get(job.id)
                    return found is not None and found.status is JobStatus.SUCCEEDED

                await eventually("it succeeds", done)
            finally:
                await running_.end()


@pytest.mark.parametrize("hurries", [False, True])
async def test_an_agent_that_is_to_end_lets_what_runs_end_first_unless_it_is_hurried(
    redis: Redis, redis_port: int, tmp_path: Path, hurries: bool
) -> None:
    async with running(redis_port, tmp_path, stop_wait_s=60.0) as api, httpx.AsyncClient() as http:
        supervision = cpu(tmp_path, "--job-s", "600")
        options = AgentOptions(join=api.url, host="h1", port=0, supervision=supervision)
        stop, hurry = asyncio.Event(), asyncio.Event()
        agent = asyncio.create_task(run(api.deps.settings, options, stop, hurry=hurry))
        hosts = api.stores.hosts

        async def said(word: str, why: str) -> bool:
            return await hosts.words(NODE) == (word, why)

        async def busy() -> bool:
            return (await hosts.report(NODE) or {}).get("busy") is True

        async def beat_after(at: float) -> bool:
            (host,) = await hosts.hosts()
            return host.seen_at > at

        await eventually("it is ready", lambda: said("ready", ""))
        await submit(api.stores)
        run_ = (await claim(api.stores, NODE, ttl=60)).run
        url = (await api.stores.nodes.nodes())[0].url
        extra = {"fleet": {"job": str(uuid4()), "run": run_}}
        body = {"prompt": GRAPH, "prompt_id": run_, "client_id": "x", "extra_data": extra}
        assert (await http.post(f"{url}/prompt", json=body)).is_success
        await eventually("it is seen to work", busy)
        stop.set()
        await eventually("no job may come", lambda: said("drain", "its agent is stopping"))
        for _ in range(2):  # it lives, and waits
            (before,) = await hosts.hosts()
            await eventually("another heartbeat", partial(beat_after, before.seen_at))
        if hurries:
            hurry.set()
        else:
            await http.post(f"{url}/interrupt", json={"prompt_id": run_})
        async with asyncio.timeout(40):  # less than it would wait for the prompt
            await agent


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
async def test_no_comfyui_outlives_its_agent(
    redis: Redis, redis_port: int, tmp_path: Path, number: signal.Signals
) -> None:
    home = checkout(tmp_path).home
    async with running(redis_port, tmp_path, agent_token="agents-token-01") as api:
        command = [sys.executable, "-m", "comfy_fleet", "agent", "--join", api.url, "--host", "h1"]
        command += ["--port", "0", "--comfyui", str(home), "--python", sys.executable, "--gpus", "cpu"]
        environment = {**os.environ, "FLEET_AGENT_TOKEN": "agents-token-01", "FLEET_DATA": str(tmp_path)}
        agent = subprocess.Popen(mortal(command), env=environment, cwd=tmp_path, stderr=subprocess.DEVNULL)
        try:

            async def ready() -> bool:
                return (await api.stores.hosts.words(NODE))[0] == "ready"

            await eventually("it is ready", ready)
            pid = (await api.stores.hosts.report(NODE) or {})["pid"]
            os.kill(pid, 0)
            agent.send_signal(number)
            assert await asyncio.to_thread(agent.wait, 20) == (0 if number is signal.SIGTERM else -9)
        finally:
            agent.kill()
        await eventually("its ComfyUI has ended", lambda: not Path(f"/proc/{pid}").exists())


async def test_a_crash_in_a_row_is_told_and_waited_out(redis: Redis, redis_port: int, tmp_path: Path) -> None:
    supervision = cpu(tmp_path)
    (supervision.checkout.home / "main.py").write_text("raise SystemExit('no module named torch')\n")
    async with host_of(redis_port, tmp_path, supervision=supervision) as host:
        await host.said(NODE, "drain")

        async def told() -> bool:
            return "no module named torch" in (await host.api.stores.hosts.words(NODE))[1]

        await eventually("the reason is told", told)
        await eventually("it is tried again", lambda: _restarts(host))


async def _restarts(host: Host) -> bool:
    return int((await host.report(NODE)).get("restarts", 0)) >= 2
