"""Redis takes every script: a name too many, and it compiles none of it."""

from typing import Any

import pytest

from comfy_fleet.adapters.redis import scripts
from comfy_fleet.adapters.redis.client import FleetRedis

NAMES = sorted(name for name in scripts.texts() if "/" not in name)
SPARE = 6
"""Names that whoever adds a function still finds room for."""


@pytest.mark.parametrize("name", NAMES)
async def test_it_compiles_and_has_room_for_more_names(redis: FleetRedis, name: str) -> None:
    client: Any = redis
    more = "".join(f"local spare_{number} = {number}\n" for number in range(SPARE))
    assert await client.script_load(more + scripts.source(name, "fleet"))
