"""What processes get to know by environment and command line: no stranger has a secret of the fleet's."""

import os
import sys
from pathlib import Path
from typing import Any

import pytest

from comfy_fleet.adapters.system.child_processes import Child
from tests.integration.up_kit import environment, processes_of, up

COLLECTOR = "a-collectors-password"
TOKEN, PASSWORD = "a-token-of-this-test", "a-password-of-this-test"
SLEEPS = [sys.executable, "-c", "import time; print('up', flush=True); time.sleep(60)"]


def environ(pid: int) -> bytes:
    return Path(f"/proc/{pid}/environ").read_bytes()


@pytest.mark.parametrize("ours", [True, False])
async def test_only_a_process_of_the_fleet_s_has_its_variables(
    monkeypatch: pytest.MonkeyPatch, *, ours: bool
) -> None:
    monkeypatch.setenv("FLEET_AGENT_TOKEN", TOKEN)
    monkeypatch.setenv("fleet_redis_url", f"redis://:{PASSWORD}@127.0.0.1/0")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", f"authorization={COLLECTOR}")
    monkeypatch.setenv("SOMETHING_ELSE", "stays")
    child = Child("stranger", SLEEPS, ours=ours, env={"FLEET_STOP_WAIT_S": "0"})
    await child.start()
    try:
        assert child.pid is not None
        found = environ(child.pid)
        secrets = (TOKEN, PASSWORD, COLLECTOR)
        assert [one.encode() in found for one in secrets] == [ours] * len(secrets)
        assert b"SOMETHING_ELSE=stays" in found
        assert b"FLEET_STOP_WAIT_S=0" in found  # what is meant for it
    finally:
        await child.stop()


def test_no_stranger_below_fleet_up_has_a_secret(tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text(f"op {PASSWORD} admin\n")
    keys.chmod(0o600)
    told: dict[str, Any] = {
        "FLEET_AGENT_TOKEN": TOKEN,
        "FLEET_KEYS_FILE": str(keys),
        "FLEET_API_KEY": PASSWORD,
    }
    with up(tmp_path / "data", "--nodes", "2", port=None, **told) as fleet:
        found = processes_of(fleet.data)
        strangers = {
            pid: argv
            for pid, argv in found.items()
            if any(word in argv for word in ("haproxy -", "haproxy-", "redis", "valkey", "comfy_fleet sim"))
            and "haproxy run" not in argv
        }
        kinds = {kind for kind in ("haproxy", "sim", "re") for argv in strangers.values() if kind in argv}
        assert {"haproxy", "sim"} <= kinds, found
        for pid, argv in strangers.items():
            assert not {
                word
                for word in (TOKEN, PASSWORD, "FLEET_REDIS_URL", "FLEET_KEYS_FILE")
                if word.encode() in environ(pid)
            }, argv
        for pid in found:
            line = Path(f"/proc/{pid}/cmdline").read_bytes()
            assert TOKEN.encode() not in line
            assert PASSWORD.encode() not in line
    assert "FLEET_AGENT_TOKEN" not in environment()
    assert os.environ.get("FLEET_AGENT_TOKEN") is None
