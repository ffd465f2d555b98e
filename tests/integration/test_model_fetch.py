"""One command has the agents of two hosts fetch a model file, and jobs use it on both."""

import asyncio
import hashlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis
from typer.testing import CliRunner, Result

from comfy_fleet.agent.main import AgentOptions, Beside, run
from comfy_fleet.cli.app import build
from comfy_fleet.processes.dispatcher import open_dispatcher
from comfy_fleet.sim import NodeOptions, SimNode, SimTiming
from tests.children import mortal
from tests.conftest import free_port
from tests.factories import sampled
from tests.integration.agent_kit import SOURCE, Host, host_of
from tests.integration.haproxy_kit import eventually
from tests.web_site import Sends, Site, page, site

pytestmark = pytest.mark.timeout(240)

BODY = b"tensors" * 100_000
HASH = hashlib.sha256(BODY).hexdigest()
PATH = "/kids.safetensors"
HOSTS = {"h1": "gpu1", "h2": "gpu2"}
ENDS = ("done", "failed", "canceled")


def graph(lora: str, seed: int) -> dict[str, Any]:
    """A graph that loads a LoRA."""
    made = sampled(64, seed=seed)
    made["7"] = {
        "class_type": "LoraLoaderModelOnly",
        "inputs": {"model": ["1", 0], "lora_name": lora, "strength_model": 1.0},
    }
    made["4"]["inputs"]["model"] = ["7", 0]
    return made


@dataclass
class TwoHosts:
    """Two hosts with one simulated node each, whose models are in a folder."""

    host: Host
    site: Site
    folder: Path
    stack: AsyncExitStack

    def models(self, host: str) -> Path:
        return self.folder / host / "models"

    def files(self, host: str) -> list[str]:
        root = self.models(host)
        return sorted(str(path.relative_to(root)) for path in root.rglob("*") if not path.is_dir())

    async def cli(self, *argv: str) -> Result:
        whole = [*argv, "--api", self.host.api.url]
        return await asyncio.to_thread(lambda: CliRunner().invoke(build(argv), whole))

    async def agent(self, host: str, url: str) -> None:
        """Start an agent beside the first one."""
        stop = asyncio.Event()
        options = AgentOptions(
            join=self.host.api.url,
            host=host,
            port=0,
            zone=host,
            beside=[Beside(name=HOSTS[host], url=url, gpu="cpu", models=self.models(host))],
        )
        task = asyncio.create_task(run(self.host.settings, options, stop))

        async def end() -> None:
            stop.set()
            await task

        self.stack.push_async_callback(end)

    async def fetch(self, **more: Any) -> dict[str, Any]:
        body = {"url": self.site.url(PATH), "folder": "loras", "sha256": HASH, **more}
        answer = await self.host.api.client.post("/api/v1/model-fetches", json=body)
        assert answer.status_code == 202, answer.text
        found: dict[str, Any] = answer.json()
        return found

    async def show(self, fetch_id: str) -> dict[str, Any]:
        found: dict[str, Any] = (await self.host.api.client.get(f"/api/v1/model-fetches/{fetch_id}")).json()
        return found

    async def ended(self, fetch_id: str) -> dict[str, Any]:
        async def over() -> bool:
            return (await self.show(fetch_id))["state"] in ENDS

        await eventually("the fetch is over", over, within_s=90)
        return await self.show(fetch_id)

    async def runs(self, lora: str, host: str, seed: int) -> None:
        """Submit a job that uses a LoRA on a host, as soon as it is taken; wait until it is done."""
        sent: list[str] = []

        async def taken() -> bool:
            body = {"workflow": graph(lora, seed), "zone": host}
            answer = await self.host.api.client.post("/api/v2/jobs", json=body)
            if answer.status_code == 201:
                sent.append(answer.json()["id"])
            return bool(sent)

        await eventually(f"a job that needs {lora} is taken for {host}", taken, within_s=90)

        async def succeeded() -> bool:
            job = (await self.host.api.client.get(f"/api/v2/jobs/{sent[0]}")).json()
            assert job["status"] not in ("failed", "expired"), job
            return bool(job["status"] == "succeeded")

        await eventually("the job succeeds", succeeded, within_s=90)


@asynccontextmanager
async def two_hosts(redis_port: int, folder: Path, *, shared: bool = False) -> AsyncIterator[TwoHosts]:
    async with AsyncExitStack() as stack:
        sims = {}
        for host, name in HOSTS.items():
            models = folder / host / "models"
            if shared and host != "h1":
                models.parent.mkdir(parents=True)
                models.symlink_to(folder / "h1" / "models")
            else:
                (models / "loras").mkdir(parents=True)
            options = NodeOptions(
                name=name,
                timing=SimTiming(scale=0),
                models={"checkpoints": {"m.safetensors": 1000}, "loras": {}},
                models_folder=models,
            )
            sims[host] = await stack.enter_async_context(SimNode(options, port=free_port()))
        served = await stack.enter_async_context(site())
        served.pages[PATH] = page(BODY)
        (folder / "fleet").mkdir()
        beside = Beside(name="gpu1", url=sims["h1"].url, gpu="cpu", models=folder / "h1" / "models")
        host_ = await stack.enter_async_context(
            host_of(
                redis_port,
                folder / "fleet",
                haproxy=True,
                ask_nodes=True,
                options={"beside": [beside], "zone": "h1"},
                model_allow="127.0.0.1",
                model_free_bytes=0,
                agent_metrics_port=None,
            )
        )
        made = TwoHosts(host_, served, folder, stack)
        await made.agent("h2", sims["h2"].url)
        for name in HOSTS.values():
            await host_.is_up(name)
        yield made


async def test_a_new_lora_by_one_command_is_used_on_both_hosts(
    redis: Redis, redis_port: int, tmp_path: Path
) -> None:
    async with two_hosts(redis_port, tmp_path) as it:
        async with open_dispatcher(it.host.settings, it.host.api.stores, name="d1") as dispatcher:
            stop = asyncio.Event()
            running = asyncio.create_task(dispatcher.run(stop))
            told = await it.cli("model", "fetch", it.site.url(PATH), "--folder", "loras", "--sha256", HASH)
            assert told.exit_code == 0, told.output
            for number, host in enumerate(HOSTS):
                assert (it.models(host) / "loras/kids.safetensors").read_bytes() == BODY
                assert it.files(host) == ["loras/kids.safetensors"]
                await it.runs("kids.safetensors", host, number)
            assert it.site.asked(PATH) == 1  # the second host has it from the first
            # A file that somebody copies there by hand is found, too.
            (it.models("h2") / "loras" / "own.safetensors").write_bytes(b"x")
            await it.runs("own.safetensors", "h2", 9)
            stop.set()
            await running
        listed = await it.cli("model", "ls", "--folder", "loras")
        assert "all 2" in listed.output and "1 of 2: gpu2" in listed.output, listed.output
        lacks = await it.cli("model", "ls", "--missing-on", "gpu1", "--json")
        assert [one["name"] for one in _json(lacks)["files"]] == ["own.safetensors"]
        fetches = _json(await it.cli("model", "fetches", "--json"))["fetches"]
        assert [(one["state"], one["by"]) for one in fetches] == [("done", "local")]
        assert {host["host"]: host["words"].split()[0] for host in fetches[0]["hosts"]} == {
            "h1": "from",
            "h2": "from",
        }
        events = (await it.host.api.client.get("/api/v1/audit")).json()["entries"]
        assert "model.fetched" in [one["event"] for one in events]
        # What makes it fail is told, and leaves nothing.
        url = it.site.url(PATH) + "?key=secret"
        it.site.pages[PATH + "?key=secret"] = page(BODY)
        bad = ("--folder", "loras", "--sha256", "0" * 64, "--name", "b.safetensors")
        wrong = await it.cli("model", "fetch", url, *bad)
        assert wrong.exit_code == 1
        assert "SHA-256" in " ".join(wrong.output.split()), wrong.output
        assert it.files("h1") == ["loras/kids.safetensors"]
        everything = str((await it.host.api.client.get("/api/v1/model-fetches")).json()) + str(events)
        assert "secret" not in everything
        for body, word in (
            ({"folder": "../x"}, "folder"),
            ({"name": "../x.safetensors"}, "name"),
            ({"name": "x.ckpt"}, "allow"),
            ({"sha256": "1"}, "sha256"),
            ({"url": "ftp://x/y.safetensors"}, "http"),
        ):
            whole = {"url": it.site.url(PATH), "folder": "loras", "sha256": HASH, **body}
            answer = await it.host.api.client.post("/api/v1/model-fetches", json=whole)
            assert answer.status_code in (400, 422), answer.text
            assert word in answer.json()["error"]["message"]


def _json(result: Result) -> dict[str, Any]:
    assert result.exit_code == 0, result.output
    found: dict[str, Any] = json.loads(result.stdout)
    return found


def slow(seconds: float = 3600) -> Sends:
    async def send(writer: asyncio.StreamWriter) -> None:
        writer.write(f"HTTP/1.1 200 OK\r\nContent-Length: {len(BODY)}\r\n\r\n".encode() + BODY[:-1])
        await writer.drain()
        await asyncio.sleep(seconds)

    return send


async def test_a_shared_folder_gets_one_copy_and_a_cancel_stops_all(
    redis: Redis, redis_port: int, tmp_path: Path
) -> None:
    async with two_hosts(redis_port, tmp_path, shared=True) as it:
        found = await it.ended((await it.fetch())["id"])
        assert found["state"] == "done", found
        assert it.site.asked(PATH) == 1
        assert it.files("h1") == ["loras/kids.safetensors"]
        it.site.pages[PATH] = slow()
        slowly = await it.fetch(name="other.safetensors", sha256="1" * 64)

        async def begun() -> bool:
            return any(host["bytes"] for host in (await it.show(slowly["id"]))["hosts"])

        await eventually("some of it is there", begun, within_s=60)
        told = await it.cli("model", "cancel", slowly["id"])
        assert told.exit_code == 0, told.output
        assert (await it.ended(slowly["id"]))["state"] == "canceled"

        async def swept() -> bool:
            return it.files("h1") == ["loras/kids.safetensors"]

        await eventually("nothing of it stays", swept, within_s=60)


async def test_an_agent_that_is_killed_begins_again(redis: Redis, redis_port: int, tmp_path: Path) -> None:
    async with AsyncExitStack() as stack:
        served = await stack.enter_async_context(site())
        served.pages[PATH] = slow()
        models = tmp_path / "models"
        (models / "loras").mkdir(parents=True)
        node = await stack.enter_async_context(SimNode(NodeOptions(name="gpu2"), port=free_port()))
        (tmp_path / "fleet").mkdir()
        host = await stack.enter_async_context(
            host_of(redis_port, tmp_path / "fleet", options={"beside": []}, agent_metrics_port=None)
        )
        it = TwoHosts(host, served, tmp_path, stack)
        argv = mortal(
            [
                *(sys.executable, "-m", "comfy_fleet", "agent", "--join", host.api.url, "--host", "h2"),
                *("--node", f"gpu2={node.url}@cpu", "--models-dir", f"gpu2={models}", "--port", "0"),
                *("--metrics-port", "none", "--data", str(tmp_path / "agent")),
            ]
        )
        env = {**os.environ, "FLEET_MODEL_ALLOW": "127.0.0.1", "FLEET_MODEL_FREE_BYTES": "0"}

        def start() -> "subprocess.Popen[bytes]":
            return subprocess.Popen(argv, cwd=SOURCE, env=env, stderr=subprocess.DEVNULL)

        agent = start()
        try:

            async def joined() -> bool:
                return bool((await host.report("gpu2")).get("models"))

            await eventually("the agent has joined", joined, within_s=90)
            fetch = await it.fetch()

            async def half() -> bool:
                return any(host["bytes"] for host in (await it.show(fetch["id"]))["hosts"])

            await eventually("some of it is there", half, within_s=60)
            agent.send_signal(signal.SIGKILL)
            await asyncio.to_thread(agent.wait)
            (left,) = (models / "loras").iterdir()
            assert left.name.endswith(".part")  # never under its own name
            served.pages[PATH] = page(BODY)
            agent = start()
            assert (await it.ended(fetch["id"]))["state"] == "done"
            assert [path.name for path in (models / "loras").iterdir()] == ["kids.safetensors"]
            assert (models / "loras/kids.safetensors").read_bytes() == BODY
        finally:
            agent.terminate()
            await asyncio.to_thread(agent.wait)
