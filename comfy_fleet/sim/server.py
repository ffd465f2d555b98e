"""A process that hosts simulated nodes."""

import asyncio
import contextlib
import signal
import sys
from collections.abc import AsyncIterator

from comfy_fleet.sim.node import SimNode
from comfy_fleet.sim.options import SimOptions


@contextlib.asynccontextmanager
async def nodes(options: SimOptions) -> AsyncIterator[list[SimNode]]:
    """Run nodes for as long as the context is open.

    Raises:
        OSError: A port is taken.
        ValueError: The models' file has another form.
        BadFault: A fault is unknown or has a wrong value.
    """
    async with contextlib.AsyncExitStack() as stack:
        started = []
        for index in range(1, options.nodes + 1):
            port = options.port + index - 1 if options.port else 0
            node = SimNode(options.node(index), host=options.host, port=port)
            await stack.enter_async_context(node)
            if options.faults:
                await node.set_faults(options.faults)
            started.append(node)
        yield started


async def serve_async(options: SimOptions, *, quiet: bool = False) -> None:
    """Run nodes until SIGTERM or SIGINT, after printing one ``NAME URL`` a line."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    async with nodes(options) as started:
        if not quiet:
            for node in started:
                sys.stdout.write(f"{node.name} {node.url} SIMULATED\n")
            sys.stdout.flush()
        await stop.wait()


def serve(options: SimOptions) -> None:
    """Run nodes until SIGTERM or SIGINT, on uvloop."""
    import uvloop

    uvloop.run(serve_async(options))
