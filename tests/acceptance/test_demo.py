"""The demo, as somebody sees it who has just cloned the project."""

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.children import mortal
from tests.conftest import free_port
from tests.integration.up_kit import processes_of

pytestmark = pytest.mark.timeout(300)


def environment(**more: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("FLEET_", "COMFYUI_"))}
    return {**kept, "COLUMNS": "100", **more}


def demo(tmp_path: Path, *argv: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [
            *(sys.executable, "-m", "comfy_fleet", "demo", "--port", str(free_port())),
            *("--data", str(tmp_path / "data"), "--out", str(tmp_path / "pictures"), *argv),
        ],
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
        env=environment(**env),
    )


def test_pictures_spread_over_simulated_nodes_and_nothing_stays(tmp_path: Path) -> None:
    # What a shell is set to for a fleet elsewhere is not for the demo's own.
    told = demo(
        tmp_path, FLEET_KEYS_FILE="/nowhere", FLEET_HOST="192.0.2.1", FLEET_REDIS_URL="redis://192.0.2.1"
    )
    assert told.returncode == 0, told.stdout + told.stderr
    assert told.stdout.count("SIMULATED") >= 8  # the start, the first picture, every row
    pictures = list((tmp_path / "pictures").glob("*.png"))
    assert len(pictures) == 7
    assert all(picture.read_bytes().startswith(b"\x89PNG") for picture in pictures)
    spread = re.search(r"spread: (.*);", told.stdout)
    assert spread is not None
    assert len(spread[1].split(", ")) == 3
    assert processes_of(tmp_path / "data") == {}


def test_a_folder_without_a_comfyui_is_refused_before_anything_starts(tmp_path: Path) -> None:
    told = demo(tmp_path, COMFYUI_HOME=str(tmp_path))
    assert told.returncode == 2
    assert "holds no ComfyUI" in told.stderr
    assert "Starting" not in told.stdout
    assert not (tmp_path / "data").exists()


def test_another_server_on_the_port_is_named(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        told = demo(tmp_path, "--port", str(server.getsockname()[1]))
    assert told.returncode == 8
    assert f"(pid {os.getpid()})" in told.stderr
    assert not (tmp_path / "data").exists()


def test_a_taken_default_port_is_no_hindrance_and_keep_leaves_it_running(tmp_path: Path) -> None:
    taken = contextlib.ExitStack()
    with contextlib.suppress(OSError):  # somebody has it anyway
        taken.enter_context(socket.create_server(("127.0.0.1", 8188)))
    argv = ("--nodes", "1", "--data", str(tmp_path / "data"), "--out", str(tmp_path / "pictures"))
    try:
        with taken:
            told = subprocess.run(
                [sys.executable, "-m", "comfy_fleet", "demo", "--keep", *argv],
                capture_output=True,
                text=True,
                timeout=280,
                check=False,
                env=environment(),
            )
        assert told.returncode == 0, told.stdout + told.stderr
        first = re.match(r"port 8188 is taken by .+; the fleet takes port (\d+)\n", told.stdout)
        assert first, told.stdout
        assert f"at http://127.0.0.1:{first[1]}" in told.stdout
        assert f"fleet down --data {tmp_path / 'data'}" in " ".join(told.stdout.split())
        assert processes_of(tmp_path / "data")
        assert demo(tmp_path).returncode == 8  # a second one
    finally:
        stopped = subprocess.run(
            [sys.executable, "-m", "comfy_fleet", "down", "--data", str(tmp_path / "data")],
            check=False,
            env=environment(),
        )
    assert stopped.returncode == 0
    assert processes_of(tmp_path / "data") == {}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_an_interrupted_demo_takes_its_fleet_along(tmp_path: Path, number: signal.Signals) -> None:
    data = tmp_path / "data"
    process = subprocess.Popen(
        mortal(
            [
                *(sys.executable, "-m", "comfy_fleet", "demo", "--port", str(free_port())),
                *("--data", str(data), "--out", str(tmp_path / "pictures")),
            ]
        ),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=environment(),
        start_new_session=True,
    )
    deadline = time.monotonic() + 90
    while len(processes_of(data)) < 6:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(number)
    assert process.wait(60) != 0
    deadline = time.monotonic() + 60
    while processes_of(data):
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.comfyui
def test_real_comfyui_nodes_make_real_pictures(tmp_path: Path, comfyui_home: Path) -> None:
    python = {"COMFYUI_PYTHON": os.environ["COMFYUI_PYTHON"]} if "COMFYUI_PYTHON" in os.environ else {}
    told = demo(tmp_path, "--nodes", "2", COMFYUI_HOME=str(comfyui_home), **python)
    assert told.returncode == 0, told.stdout + told.stderr
    assert "SIMULATED" not in told.stdout
    assert "-cpu0-1 " in told.stdout or "-gpu" in told.stdout  # named after the host, stable across starts
    assert len(list((tmp_path / "pictures").glob("*.png"))) == 7
    assert processes_of(tmp_path / "data") == {}
