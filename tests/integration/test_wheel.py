"""A wheel that works installed alone: templates, Lua and stored workflows are inside."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import comfy_fleet
from comfy_fleet.cli.up.programs import find_haproxy

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("wheel")
    # hatchling comes with the development tools, so that building needs no package index.
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(out)],
        cwd=ROOT,
        check=True,
        capture_output=True,
    )
    (built,) = out.glob("*.whl")
    return built


def test_everything_that_is_read_at_run_time_is_inside(wheel: Path) -> None:
    inside = set(zipfile.ZipFile(wheel).namelist())
    for folder in ("haproxy", "workflows"):
        for path in (ROOT / folder).rglob("*"):
            if path.is_file() and "__pycache__" not in path.parts:
                assert f"comfy_fleet/_files/{path.relative_to(ROOT)}" in inside
    for pattern in ("*.lua", "*.js", "*.json", "py.typed"):
        for path in (ROOT / "comfy_fleet").rglob(pattern):
            assert str(path.relative_to(ROOT)) in inside
    assert not any(name.startswith(("tests/", "scripts/", ".fleet")) for name in inside)
    version = comfy_fleet.__version__
    assert f"comfy_fleet-{version}.dist-info/licenses/LICENSE" in inside


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel's content alone in a folder, as an installer lays it out."""
    target = tmp_path_factory.mktemp("installed")
    zipfile.ZipFile(wheel).extractall(target)
    return target


def run(installed: Path, *argv: str) -> subprocess.CompletedProcess[str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("FLEET_")}
    return subprocess.run(
        # -P: the checkout's folder must not be looked into
        [sys.executable, "-P", "-m", "comfy_fleet", *argv],
        cwd=installed.parent,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={**kept, "PYTHONPATH": str(installed), "FLEET_HAPROXY_BIN": find_haproxy("haproxy")},
    )


def test_the_installed_package_is_the_one_that_runs(installed: Path) -> None:
    where = subprocess.run(
        [sys.executable, "-P", "-c", "import comfy_fleet; print(comfy_fleet.__file__)"],
        cwd=installed.parent,
        env={**os.environ, "PYTHONPATH": str(installed)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert where.stdout.strip() == str(installed / "comfy_fleet" / "__init__.py")


@pytest.mark.parametrize("argv", [("doctor",), ("haproxy", "check", "--empty"), ("--version",)])
def test_commands_find_their_files(installed: Path, argv: tuple[str, ...]) -> None:
    data = () if argv == ("--version",) else ("--data", str(installed.parent / "d"))
    told = run(installed, *argv, *data)
    assert told.returncode == 0, told.stdout + told.stderr
    if argv == ("doctor",):
        assert "_files" in told.stdout
