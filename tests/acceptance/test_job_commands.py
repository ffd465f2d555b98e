"""`fleet submit -n`, `job download`, `keep`, `retry` and `rm` on a whole fleet, until its disk is empty."""

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from comfy_fleet.cli.exits import Exit
from tests.acceptance.up import Up, start_fleet, stop_fleet

pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    folder = tmp_path_factory.mktemp("jobs")
    env = {"FLEET_BLOB_GRACE_S": "0", "FLEET_RETENTION_S": "45"}
    up = start_fleet(folder / "data", "--nodes", "2", "--job-seconds", "0.2", env=env)
    yield up
    stop_fleet(up)


def run(fleet: Up, *argv: str) -> subprocess.CompletedProcess[str]:
    """Run a command as an operator on that machine does: by the console's address."""
    command = [sys.executable, "-m", "comfy_fleet", *argv, "--api", fleet.console or fleet.url]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def said(fleet: Up, *argv: str) -> str:
    done = run(fleet, *argv)
    assert done.returncode == 0, done.stderr
    return done.stdout


def stored(fleet: Up) -> int:
    """Return how many files the fleet keeps."""
    return sum(path.is_file() for path in (fleet.data / "files" / "blobs").rglob("*"))


def test_several_jobs_are_made_downloaded_kept_and_removed(fleet: Up, tmp_path: Path) -> None:
    told = said(fleet, "submit", "image_card", "-p", "prompt=a fox", "-n", "3", "--wait", "--json")
    jobs = json.loads(told)["jobs"]
    assert {job["status"] for job in jobs} == {"succeeded"}
    assert len({job["params"]["seed"] for job in jobs}) == 3
    first, second, third = [job["id"] for job in jobs]
    said(fleet, "job", "keep", first, second)
    out = tmp_path / "out"
    said(fleet, "job", "download", first, second, "--out", str(out))
    assert len(list(out.iterdir())) == 2

    # The third is forgotten after its retention; the others stay as long as they are kept.
    deadline = time.monotonic() + 200
    while httpx.get(f"{fleet.console}/api/v1/jobs/{third}", timeout=30).status_code == 200:
        assert time.monotonic() < deadline
        time.sleep(0.5)
    assert run(fleet, "job", "show", third).returncode == Exit.NOT_FOUND
    again = said(fleet, "job", "retry", first, "--wait", "--json")
    assert json.loads(again)["params"] == jobs[0]["params"]
    listed = json.loads(said(fleet, "job", "ls", "--kept", "--json"))["jobs"]
    assert {job["id"] for job in listed} == {first, second}
    assert listed[0]["excerpt"] == "a fox"

    assert stored(fleet) >= 2
    said(fleet, "job", "rm", first, second)
    assert json.loads(said(fleet, "job", "ls", "--kept", "--json"))["jobs"] == []
    while stored(fleet):  # the sweep comes once a minute
        assert time.monotonic() < deadline + 100
        time.sleep(0.5)
