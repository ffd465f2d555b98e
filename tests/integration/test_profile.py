"""``scripts/profile`` draws a real process, and says what to do if it can't."""

import subprocess
import sys
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks import profile
from tests.children import mortal

PY_SPY = Path(sys.executable).with_name("py-spy")
BUSY = """
def chews_the_cud():
    while True:
        sum(range(1000))
print("on", flush=True)
chews_the_cud()
"""


@pytest.fixture
def busy() -> Iterator[int]:
    argv = mortal([sys.executable, "-c", BUSY])
    with subprocess.Popen(argv, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stdout.readline() == b"on\n"
        yield process.pid
        process.kill()


def test_a_busy_process_is_drawn_by_the_names_of_its_functions(
    busy: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "flame.svg"
    argv = ["--pid", str(busy), "--seconds", "1", "--out", str(out), "--py-spy", str(PY_SPY)]
    assert profile.main(argv) == 0, capsys.readouterr().err
    texts = [one.text or "" for one in ET.parse(out).iter() if one.tag.endswith("title")]
    assert any("chews_the_cud" in text for text in texts), texts
    assert f"process {busy}, 1 s at 200 Hz" in out.read_text()


@pytest.mark.parametrize(
    ("said", "status", "advice"),
    [
        ("Permission Denied: Try running again with elevated permissions", 1, "sudo scripts/profile"),
        ("Error: No stack counts found", 1, "put load on it"),
        ("Error: No such file or directory (os error 2)", 1, "py-spy ended with 1: Error: No such"),
        ("", 0, "put load on it"),
    ],
)
def test_what_py_spy_refuses_is_told_with_a_way_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], said: str, status: int, advice: str
) -> None:
    stand_in, out = tmp_path / "py-spy", tmp_path / "flame.svg"
    stand_in.write_text(f"#!/bin/sh\necho '{said}' >&2\nexit {status}\n")
    stand_in.chmod(0o755)
    out.write_text("an old picture")
    assert profile.main(["--pid", "1", "--out", str(out), "--py-spy", str(stand_in)]) == 1
    assert advice in capsys.readouterr().err
    assert not out.exists(), "an old picture is not taken for the new one"


def test_a_process_that_does_not_run_is_named_with_those_that_do(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert profile.main(["dispatch", "--data", str(tmp_path)]) == 1
    assert f"no dispatch runs on {tmp_path}" in capsys.readouterr().err
