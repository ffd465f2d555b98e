"""What the doctor makes of what it finds."""

import socket
import sys
from pathlib import Path

import pytest

from comfy_fleet.adapters.haproxy.build import Build
from comfy_fleet.adapters.system import extras
from comfy_fleet.adapters.system.disk import Disk
from comfy_fleet.cli import doctor_checks
from comfy_fleet.cli.doctor_checks import Severity
from comfy_fleet.cli.gpus import Gpu, Gpus, Memory, Nvml
from comfy_fleet.cli.up import ports
from comfy_fleet.cli.up.lock import DataLock
from comfy_fleet.settings import Settings

BUILD_26 = (
    "HAProxy version 2.6.12-1+deb12u2 2025/04/16 - https://haproxy.org/\nFeature list : -ENGINE +EPOLL +LUA\n"
)
BUILD_26 += "Available services : prometheus-exporter\n"


def verdicts(findings: list[doctor_checks.Finding]) -> dict[str, Severity]:
    return {finding.check: finding.verdict for finding in findings}


def test_an_old_python_fails() -> None:
    assert doctor_checks.python((3, 10, 4)).verdict is Severity.FAIL
    assert doctor_checks.python((3, 11, 0)).verdict is Severity.OK


def test_debians_haproxy_is_fine() -> None:
    assert set(verdicts(doctor_checks.haproxy_build(Build.read(BUILD_26), "/usr/sbin/haproxy")).values()) == {
        Severity.OK
    }


@pytest.mark.parametrize(
    ("text", "failed"),
    [
        (BUILD_26.replace("2.6.12", "2.4.0"), "HAProxy"),
        ("HA-Proxy version 2.2.9-2+deb11u6 2023/12/29\nFeature list : -LUA", "HAProxy"),
        (BUILD_26.replace("+LUA", "-LUA"), "HAProxy Lua"),
        (BUILD_26.replace("prometheus-exporter", ""), "HAProxy metrics"),
        ("nginx", "HAProxy"),
    ],
)
def test_what_haproxy_lacks_fails_and_says_what_to_do(text: str, failed: str) -> None:
    findings = doctor_checks.haproxy_build(Build.read(text), "/x")
    assert [finding.check for finding in findings if finding.verdict is Severity.FAIL] == [failed]
    assert all(finding.do for finding in findings if finding.verdict is Severity.FAIL)


def test_a_missing_haproxy_fails_with_the_one_command() -> None:
    (finding,) = doctor_checks.haproxy("surely-no-such-haproxy")
    assert finding.verdict is Severity.FAIL
    assert "apt-get install" in finding.do


GOOD = {"redis_version": "7.0.15", "aof_enabled": "1", "maxmemory_policy": "noeviction"}


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({}, {}),
        ({"aof_enabled": "0"}, {"Redis AOF": Severity.WARN}),
        ({"appendfsync": "everysec"}, {"Redis AOF": Severity.WARN}),
        ({"appendfsync": "always"}, {}),
        ({"maxmemory_policy": "allkeys-lru"}, {"Redis eviction": Severity.FAIL}),
        ({"maxmemory": "1000", "used_memory": "900"}, {"Redis memory": Severity.WARN}),
        ({"maxmemory": "1000", "used_memory": "700"}, {}),
        ({"maxmemory": "0", "used_memory": "900"}, {}),
        ({"redis_version": "6.0.16"}, {"Redis server": Severity.FAIL}),
        ({"redis_version": ""}, {"Redis server": Severity.FAIL}),
    ],
)
def test_redis_is_judged_by_what_it_says(change: dict[str, str], expected: dict[str, Severity]) -> None:
    found = verdicts(doctor_checks.redis_state({**GOOD, **change}, "redis://x"))
    assert {check: verdict for check, verdict in found.items() if verdict is not Severity.OK} == expected


def test_valkey_is_welcome_by_its_own_name() -> None:
    (first, _) = doctor_checks.redis_state(
        {**GOOD, "redis_version": "7.2.4", "valkey_version": "9.1.2"}, "redis://x"
    )
    assert (first.verdict, first.found) == (Severity.OK, "Valkey 9.1.2 at redis://x")


def test_a_server_that_was_named_must_answer(tmp_path: Path) -> None:
    settings = Settings(redis_url=f"redis://:geheim@127.0.0.1:{ports.draw(1)[0]}/0")
    (asked,) = doctor_checks.redis_server(settings, asked=True)
    (unasked,) = doctor_checks.redis_server(settings, asked=False)
    assert (asked.verdict, unasked.verdict) == (Severity.FAIL, Severity.OK)
    assert "geheim" not in asked.found + unasked.found


def test_a_server_that_only_happens_to_run_fails_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    async def info(_: str) -> dict[str, str]:
        return {**GOOD, "aof_enabled": "0", "maxmemory_policy": "allkeys-lru"}

    monkeypatch.setattr(doctor_checks, "_redis_info", info)
    asked = doctor_checks.redis_server(Settings(), asked=True)
    unasked = doctor_checks.redis_server(Settings(), asked=False)
    assert [one.verdict for one in asked] == [Severity.OK, Severity.WARN, Severity.FAIL]
    assert [one.verdict for one in unasked] == [Severity.OK, Severity.WARN, Severity.WARN]
    assert "only with --redis" in unasked[0].found


def test_what_is_missing_is_added_to_where_the_fleet_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "prefix", "/opt/comfy-fleet")
    assert extras.command("valkey") == "pip install 'comfy-fleet[valkey]'"
    monkeypatch.setattr(sys, "prefix", "/home/me/.local/pipx/venvs/comfy-fleet")
    assert extras.command("mcp") == "pipx runpip comfy-fleet install 'comfy-fleet[mcp]'"


@pytest.mark.parametrize("why", list(Nvml))
def test_every_reason_of_nvml_has_a_finding(why: Nvml) -> None:
    memory = Memory(total=139 * 2**30, used=0, free=139 * 2**30)
    gpus = (Gpu(index=0, name="H200", memory=memory),) if why is Nvml.OK else ()
    finding = doctor_checks.nvml(Gpus(why=why, gpus=gpus, driver="580.1"))
    assert finding.verdict is (Severity.OK if why in (Nvml.OK, Nvml.NO_LIBRARY) else Severity.WARN)
    assert finding.do or why is Nvml.OK
    assert ("H200, 139 GiB" in finding.found) == (why is Nvml.OK)


def test_a_lost_gpu_among_others_is_a_warning() -> None:
    gpus = (Gpu(index=0, name="H200"), Gpu(index=1, name="H200", lost=True))
    finding = doctor_checks.nvml(Gpus(why=Nvml.OK, gpus=gpus, driver="580.1"))
    assert finding.verdict is Severity.WARN
    assert "GPU 1 is lost" in finding.found
    assert "dmesg" in finding.do


def test_a_taken_port_is_a_warning_unless_our_fleet_has_it(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        settings = Settings(data=tmp_path, port=server.getsockname()[1])
        (taken,) = doctor_checks.port_findings(settings)
        with DataLock(tmp_path):
            (ours,) = doctor_checks.port_findings(settings)
    (free,) = doctor_checks.port_findings(settings)
    assert (taken.verdict, ours.verdict, free.verdict) == (Severity.WARN, Severity.OK, Severity.OK)
    assert "--port" in taken.do


def test_a_data_folder_that_can_not_be_written_fails(tmp_path: Path) -> None:
    (good,) = doctor_checks.data_folder(Settings(data=tmp_path / "not" / "yet"))
    (bad,) = doctor_checks.data_folder(Settings(data=Path("/proc/fleet")))
    assert (good.verdict, bad.verdict) == (Severity.OK, Severity.FAIL)
    assert not (tmp_path / "not").exists()


def test_a_full_disk_fails_in_readable_sizes(tmp_path: Path) -> None:
    (full,) = doctor_checks.data_folder(Settings(data=tmp_path, disk_floor_bytes=10**18))
    assert full.verdict is Severity.FAIL and "make room" in full.do
    assert f"left at {tmp_path}, needs 1000000 TB" in full.found and "GiB" not in full.found
    free = Disk(tmp_path).room().free_bytes
    (low,) = doctor_checks.data_folder(Settings(data=tmp_path, disk_floor_bytes=free * 2 // 3))
    assert low.verdict is Severity.WARN and "submits are refused" in low.found


@pytest.mark.parametrize(
    ("limits", "verdict"),
    [((1024, 1_048_576), Severity.WARN), ((65536, 65536), Severity.OK), ((-1, -1), Severity.OK)],
)
def test_open_files(limits: tuple[int, int], verdict: Severity) -> None:
    assert doctor_checks.open_files(limits).verdict is verdict


def test_a_broken_workflow_fails_by_name(tmp_path: Path) -> None:
    (tmp_path / "half").mkdir()
    (tmp_path / "half" / "workflow.json").write_text("{")
    findings = doctor_checks.workflows(Settings(workflows=tmp_path))
    assert [finding.verdict for finding in findings] == [Severity.FAIL]
    assert findings[0].found.startswith("half: ")
    assert doctor_checks.workflows(Settings(workflows=tmp_path / "gone"))[0].verdict is Severity.FAIL


@pytest.mark.parametrize("setting", ["default_workflow", "generate_workflow"])
def test_a_workflow_that_is_named_and_not_there_is_found(
    setting: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(f"FLEET_{setting.upper()}", "image_card")
    assert verdicts(doctor_checks.workflows(Settings())) == {"Workflows": Severity.OK}
    monkeypatch.setenv(f"FLEET_{setting.upper()}", "image_cart")
    found = doctor_checks.workflows(Settings())[-1]
    assert found.verdict is Severity.WARN
    assert found.found.startswith(f"FLEET_{setting.upper()} names image_cart, which ")


def test_a_check_that_breaks_is_a_finding(tmp_path: Path) -> None:
    settings = Settings(data=tmp_path, haproxy=tmp_path)  # no templates there
    findings = doctor_checks.examine(settings)
    assert verdicts(findings)["HAProxy files"] is Severity.FAIL
    assert verdicts(findings)["Python"] is Severity.OK
