"""Whole fleets, one of each kind for all tests of this folder.

They end with the folder: an idle fleet takes a twentieth of a core from all tests that come after.
"""

from collections.abc import Iterator
from urllib.parse import urlsplit

import httpx
import pytest

from tests.acceptance.up import Up, keyed_fleet, start_fleet, stop_fleet
from tests.acceptance.wire import AGENT, ANN, BOB, CLEO, DAN, GENERATE, KEYED_LIMIT, OPS


@pytest.fixture(scope="package")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    """Two quick simulated nodes behind the public port."""
    up = start_fleet(tmp_path_factory.mktemp("acceptance") / "data", "--nodes", "2", "--job-seconds", "0.2")
    yield up
    stop_fleet(up)


@pytest.fixture(scope="package")
def keyed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    """A fleet of several users."""
    folder = tmp_path_factory.mktemp("keyed")
    keys = f"ann {ANN}\nbob {BOB}\ncleo {CLEO}\ndan {DAN}\nops {OPS} admin\n"
    env = {
        "FLEET_MAX_BODY_BYTES": str(KEYED_LIMIT),
        "FLEET_MAX_STREAMS": "2",
        "FLEET_LOG_LEVEL": "debug",
        **GENERATE,
    }
    with keyed_fleet(folder, keys, AGENT, "--job-seconds", "0.2", **env) as up:
        yield up


@pytest.fixture(scope="package")
def picture(fleet: Up) -> str:
    answer = httpx.post(
        f"{fleet.url}/api/v2/assets", files={"file": ("r", b"0123456789")}, data={"file_path": "r"}
    )
    return str(urlsplit(answer.json()["url"]).path)
