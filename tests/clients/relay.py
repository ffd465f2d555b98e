"""A relay on this machine that shows a key for programs that can't."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import urlsplit

import httpx

from tests.clients.caller import Caller
from tests.conftest import free_port

# The same as in docs/howto/comfyui-clients.md.
CONFIG = """\
defaults
    mode http
    timeout connect 5s
    timeout client 1h
    timeout server 1h
    timeout tunnel 1d

frontend comfyui
    bind 127.0.0.1:{port}
    http-request set-header Authorization "Bearer {key}"
    default_backend fleet

backend fleet
    server fleet {fleet}
"""


@asynccontextmanager
async def relay(me: Caller, folder: Path) -> AsyncIterator[Caller]:
    """Run a relay for one person; yields them at the relay's address, without a key."""
    port = free_port()
    config = folder / f"relay-{port}.cfg"
    config.write_text(CONFIG.format(port=port, key=me.key, fleet=urlsplit(me.url).netloc))
    process = await asyncio.create_subprocess_exec("haproxy", "-db", "-f", str(config))
    there = Caller(f"http://127.0.0.1:{port}")
    try:
        async with httpx.AsyncClient() as http, asyncio.timeout(10):
            while True:
                try:
                    await http.get(f"{there.url}/prompt")
                    break
                except httpx.TransportError:
                    await asyncio.sleep(0.05)
        yield there
    finally:
        process.terminate()
        await process.wait()
