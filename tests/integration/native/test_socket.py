"""ComfyUI's websocket in front of a fleet: what a client is told of its prompts, and when."""

import pytest
from redis.asyncio import Redis

from tests.factories import picture
from tests.integration.native.socket_kit import faced, shapes


@pytest.fixture(autouse=True)
def clean(redis: Redis) -> None:
    """Every test begins with an empty database."""


async def test_a_prompt_is_told_as_a_comfyui_tells_it(redis_port: int) -> None:
    async with faced(redis_port, "g1") as fleet:
        client = await fleet.client()
        prompt = await client.post(picture(1))
        told = await client.ended(prompt)
        assert shapes(told) == [
            "execution_start",
            "execution_cached",
            "executing 1",
            "executing 2",
            "executed 2",
            "execution_success",
            "executing None",
        ]
