"""A stand-in for NVIDIA's library."""

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

STANDIN = Path(__file__).parents[1] / "native" / "nvml_standin.c"


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
