"""``fleet api`` as a process of its own, to be killed."""

import os
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx

from tests.children import mortal
from tests.conftest import free_port
from tests.fleet import until


@asynccontextmanager
async def api_process(
    redis_port: int, folder: Path, **more: str
) -> AsyncIterator[tuple[httpx.AsyncClient, subprocess.Popen[bytes]]]:
    """Run ``fleet api`` with further settings; it is killed at the end at the latest."""
    port = free_port()
    settings = {
        "FLEET_REDIS_URL": f"redis://127.0.0.1:{redis_port}/0",
        "FLEET_DATA": str(folder),
        "FLEET_API_PORT": str(port),
        "FLEET_LOG_FORMAT": "json",
        **more,
    }
    with (folder / "log").open("ab") as log:
        process = subprocess.Popen(
            mortal([sys.executable, "-m", "comfy_fleet", "api"]), env={**os.environ, **settings}, stderr=log
        )
    try:
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=20) as client:

            async def up() -> bool:
                assert process.poll() is None, (folder / "log").read_text()[-2000:]
                try:
                    return (await client.get("/health")).status_code == 200
                except httpx.TransportError:
                    return False

            await until(up, what="the API serves", timeout_s=60)
            yield client, process
    finally:
        process.kill()
        process.wait()
