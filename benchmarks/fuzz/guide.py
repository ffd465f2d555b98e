"""Starts the process that fuzzes a target guided by coverage, and reads what it says."""

import importlib.util
import re
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Callable
from pathlib import Path

from benchmarks.fuzz.inside import HANG_S, Finding, Outcome, at_most, found
from benchmarks.fuzz.target import Target
from comfy_fleet.settings import SOURCE

_MOST_BYTES = 64 * 1024
_MOST_MIB = 3072
_DONE = re.compile(r"^#(\d+)\s", re.MULTILINE)


def available() -> bool:
    """Return whether atheris is installed; it has no builds for some versions of Python."""
    return importlib.util.find_spec("atheris") is not None


def fuzz(target: Target, *, cases: int, until: float, begin: int, say: Callable[[int], None]) -> Outcome:
    """Run a target; see :func:`benchmarks.fuzz.inside.fuzz`. The first finding ends it."""
    out = Outcome(name=target.name, way="atheris")
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="fleet-fuzz-") as name:
        folder = Path(name)
        (folder / "corpus").mkdir()
        for number, data in enumerate(target.corpus):
            (folder / "corpus" / str(number)).write_bytes(data)
        argv = [
            *(sys.executable, "-m", "benchmarks.fuzz.guided", target.name),
            *(f"-runs={cases}", f"-seed={zlib.crc32(f'{target.name}:{begin}'.encode()) or 1}"),
            *(f"-max_len={_MOST_BYTES}", f"-rss_limit_mb={_MOST_MIB}", f"-timeout={2 * HANG_S:g}"),
            *(f"-max_total_time={max(1, int(until - began))}", f"-artifact_prefix={folder}/found-"),
            str(folder / "corpus"),
        ]
        with subprocess.Popen(
            argv, cwd=SOURCE, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, errors="replace"
        ) as process:
            assert process.stderr
            lines: list[str] = []
            for line in process.stderr:
                lines.append(line)
                if done := _DONE.match(line):
                    say(int(done[1]))
            process.wait()
        text = "".join(lines)
        out.cases = max((int(done) for done in _DONE.findall(text)), default=0)
        out.seconds = time.monotonic() - began
        if process.returncode:
            finding = _finding(target, text, folder)
            finding.again = f"scripts/fuzz --target {target.name} --seed {begin} --cases {cases}"
            out.add(finding)
    return out


def _finding(target: Target, text: str, folder: Path) -> Finding:
    """Return what ended the process, as it looks in this one."""
    case = next((file.read_bytes() for file in folder.glob("found-*")), b"")
    try:
        with at_most(HANG_S):
            target.check(case)
    except Exception as error:  # noqa: BLE001 - it is what was looked for
        return found(error, case)
    return Finding(what=text[-2000:], case=repr(case))  # such as too much memory, which has no exception
