"""Where `scripts/chaos --two-boxes` plays: who is cut off reaches nobody, and names can change.

The whole play takes two minutes and is run by hand.
"""

import asyncio
import os
from collections.abc import AsyncIterator

import pytest

from benchmarks.stage import BenchError
from benchmarks.two_boxes import ADDRESSES, Network, ran
from tests.fleet import until


@pytest.fixture
async def network() -> AsyncIterator[Network]:
    made = Network()
    try:
        await made.make()
    except (BenchError, OSError) as error:
        await made.remove()
        pytest.skip(f"no network namespaces here, which need root and iproute2: {error}")
    try:
        yield made
    finally:
        await made.remove()


async def answers(network: Network, box: str, host: str) -> bool:
    code, _ = await ran(
        *("ip", "netns", "exec", network.spaces[box]),
        *("curl", "-s", "-m", "2", "--connect-timeout", "1", f"http://{host}:8099/"),
    )
    return code == 0


async def test_a_box_that_is_cut_off_reaches_nobody(network: Network) -> None:
    server = await asyncio.create_subprocess_exec(
        *("ip", "netns", "exec", network.spaces["a"], "python3", "-m", "http.server", "8099"),
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )
    try:
        await until(lambda: answers(network, "b", ADDRESSES["a"]), what="the server answers")
        await until(lambda: answers(network, "b", "fleet-box"), what="the name leads there")
        network.name("b", "b")
        assert not await answers(network, "b", "fleet-box")
        network.name("b", "a")
        await network.cut("a")
        assert not await answers(network, "b", "fleet-box")
        assert await answers(network, "a", "127.0.0.1")
        await network.join("a")
        await until(lambda: answers(network, "b", "fleet-box"), what="it is there again")
    finally:
        server.kill()
        await server.wait()
