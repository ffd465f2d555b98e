"""Stores on a real Redis, and a stand-in for NVIDIA's library."""

import shutil
import subprocess
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from comfy_fleet.bootstrap import Stores, open_stores
from comfy_fleet.settings import Settings

STANDIN = Path(__file__).parents[1] / "native" / "nvml_standin.c"


@pytest.fixture
async def stores(redis_port: int, redis: object) -> AsyncIterator[Stores]:
    """All stores, on an empty database."""
    async with open_stores(Settings(redis_url=f"redis://127.0.0.1:{redis_port}/0")) as opened:
        yield opened


@pytest.fixture(scope="session")
def build(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Return the folder of the stand-in, compiled with an option."""
    compiler = shutil.which("cc") or pytest.fail("there is no C compiler: scripts/setup --tests")
    built: dict[str, Path] = {}

    def folder(option: str) -> Path:
        if option not in built:
            built[option] = tmp_path_factory.mktemp("nvml")
            flags = ["-std=c11", "-Wall", "-Wextra", "-Werror", "-O1", "-shared", "-fPIC", option]
            subprocess.run(
                [compiler, *flags, "-o", built[option] / "libnvidia-ml.so.1", STANDIN], check=True, timeout=60
            )
        return built[option]

    return folder
