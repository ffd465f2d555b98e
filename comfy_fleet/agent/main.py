"""The process ``fleet agent``."""

import asyncio
import signal

import uvloop

from comfy_fleet.agent.server import Agent
from comfy_fleet.agent.source import HttpNodes
from comfy_fleet.settings import Settings


def serve(settings: Settings, *, join: str | None = None, token: str | None = None) -> None:
    """Answer agent-checks until SIGTERM or SIGINT.

    Args:
        settings: Where to listen, and where the API is.
        join: Base of the API or of the edge; the API of the settings when None.
        token: The agents' token; the settings' own when None.

    Raises:
        ConfigError: The port is taken.
    """
    uvloop.run(_serve(settings, join, token))


async def _serve(settings: Settings, join: str | None, token: str | None) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    host = f"[{settings.api_host}]" if ":" in settings.api_host else settings.api_host
    source = HttpNodes(join or f"http://{host}:{settings.api_port}", token=token or settings.agent_token)
    await Agent(source, host=settings.agent_host, port=settings.agent_port).run(stop)
