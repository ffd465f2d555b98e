"""The fleet's processes, each alone: they start before Redis, wait for it, and live through its loss."""

import asyncio
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from comfy_fleet.adapters.redis.dispatchers import live_dispatchers
from comfy_fleet.adapters.system.redis_program import program
from comfy_fleet.bootstrap import open_stores
from comfy_fleet.domain.errors import StoreDown
from comfy_fleet.settings import Settings
from tests.children import mortal
from tests.conftest import free_port
from tests.fleet import until

PROCESSES = {
    "api": ("api",),
    "dispatch": ("dispatch", "--name", "d1"),
    "serve": ("serve", "--name", "d2"),
    "haproxy": ("haproxy", "run"),
    "agent": ("agent",),
}
PORTS = ("PORT", "CONSOLE_PORT", "API_PORT", "LEASE_PORT", "DIRECT_PORT", "AGENT_PORT")
METRICS = ("DISPATCH_METRICS_PORT", "AGENT_METRICS_PORT", "HAPROXY_METRICS_PORT")


@contextmanager
def redis_at(port: int, folder: Path) -> Iterator[None]:
    """Run a Redis; at the end it is killed."""
    argv = [program(), "--port", str(port), "--bind", "127.0.0.1", "--dir", str(folder)]
    with (folder / "redis.log").open("ab") as log:
        server = subprocess.Popen(mortal([*argv, "--save", "", "--appendonly", "no"]), stdout=log, stderr=log)
    try:
        yield
    finally:
        server.kill()
        server.wait()


@contextmanager
def process(name: str, folder: Path, variables: dict[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    own = {**variables, "FLEET_API_PORT": str(free_port())} if name == "serve" else variables
    with (folder / f"{name}.log").open("wb") as log:
        started = subprocess.Popen(
            mortal([sys.executable, "-m", "comfy_fleet", *PROCESSES[name]]),
            env={**os.environ, **own},
            stdout=log,
            stderr=log,
        )
    try:
        yield started
    finally:
        started.kill()
        started.wait()


@pytest.mark.timeout(300)
async def test_every_process_waits_for_redis_and_outlives_it(tmp_path: Path) -> None:
    port = free_port()
    variables = {
        "FLEET_REDIS_URL": f"redis://127.0.0.1:{port}/0",
        "FLEET_DATA": str(tmp_path / "data"),
        "FLEET_LOG_FORMAT": "json",
        **{f"FLEET_{one}": str(free_port()) for one in PORTS},
        **{f"FLEET_{one}": "0" for one in METRICS},
    }

    def said(name: str) -> str:
        return (tmp_path / f"{name}.log").read_text()

    async def works() -> bool:
        try:
            return {"d1", "d2"} <= set(await live_dispatchers(stores.redis))
        except StoreDown:
            return False

    with ExitStack() as stack:
        started = {name: stack.enter_context(process(name, tmp_path, variables)) for name in PROCESSES}
        waits = "dispatcher waits for Redis: start it, or correct FLEET_REDIS_URL"
        await until(lambda: waits in said("dispatch"), what="fleet dispatch waits", timeout_s=60)
        await until(lambda: waits in said("serve"), what="fleet serve waits", timeout_s=60)
        settings = Settings(redis_url=variables["FLEET_REDIS_URL"], data=tmp_path / "data")
        async with open_stores(settings) as stores:
            with redis_at(port, tmp_path):
                await until(works, what="both dispatchers work", timeout_s=60)
                await until(lambda: "haproxy ready" in said("haproxy"), what="HAProxy runs", timeout_s=60)
            before = said("haproxy").count("registry can't be read")
            await until(
                lambda: said("haproxy").count("registry can't be read") > before,
                what="the controller has looked in vain",
                timeout_s=60,
            )
            with redis_at(port, tmp_path):
                await until(works, what="both dispatchers work again", timeout_s=60)
        assert {name: one.poll() for name, one in started.items()} == dict.fromkeys(PROCESSES)
        for one in started.values():
            one.terminate()
        ended = {name: await asyncio.to_thread(one.wait, 60) for name, one in started.items()}
        assert ended == dict.fromkeys(PROCESSES, 0)
    for name in PROCESSES:
        assert "Traceback" not in said(name), name
