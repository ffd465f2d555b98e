"""Stores on a real Redis."""

from collections.abc import AsyncIterator

import pytest

from comfy_fleet.bootstrap import Stores, open_stores
from comfy_fleet.settings import Settings


@pytest.fixture
async def stores(redis_port: int, redis: object) -> AsyncIterator[Stores]:
    """All stores, on an empty database."""
    async with open_stores(Settings(redis_url=f"redis://127.0.0.1:{redis_port}/0")) as opened:
        yield opened
