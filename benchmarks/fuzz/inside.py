"""Fuzzes targets inside this process: hypothesis draws the cases, and makes a finding small."""

import random
import signal
import threading
import time
import traceback
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FrameType
from typing import Any

from hypothesis import HealthCheck, Phase, given, seed, settings

from benchmarks.fuzz.target import Target

ROUND = 400
"""Cases of one round; a finding ends its round, and the next one goes on with another seed."""
HANG_S = 20.0
_MOST_FINDINGS = 5


class Hangs(Exception):
    """A case took too long."""


@dataclass(kw_only=True)
class Finding:
    """Something that went wrong.

    Attributes:
        what: The exception, in one line.
        where: The innermost lines of the code.
        case: The input, as small as it could be made.
        again: How to see it again.
    """

    what: str
    where: str = ""
    case: str = ""
    again: str = ""


@dataclass(kw_only=True)
class Outcome:
    """What fuzzing one target came to.

    Attributes:
        taken: How many of a document's operations have taken a request; empty: there is no document.
        untaken: Those that were allowed to whoever asked, and have taken none.
    """

    name: str
    cases: int = 0
    seconds: float = 0.0
    findings: list[Finding] = field(default_factory=list)
    way: str = "hypothesis"
    taken: str = ""
    untaken: list[str] = field(default_factory=list)

    def add(self, finding: Finding) -> None:
        """Keep a finding, unless it is known."""
        if (finding.what, finding.where) not in [(one.what, one.where) for one in self.findings]:
            self.findings.append(finding)


def fuzz(target: Target, *, cases: int, until: float, begin: int, say: Callable[[int], None]) -> Outcome:
    """Run a target.

    Args:
        target: It.
        cases: At most so many.
        until: Monotonic time at which no further round begins.
        begin: The seed.
        say: Told the cases so far, now and then.
    """
    out = Outcome(name=target.name)
    began = time.monotonic()
    number = 0
    while out.cases < cases and time.monotonic() < until and len(out.findings) < _MOST_FINDINGS:
        finding, done = one_round(target, f"{begin}:{number}", min(ROUND, cases - out.cases))
        out.cases += done
        if finding is not None:
            finding.again = f"scripts/fuzz --target {target.name} --seed {begin} --round {number}"
            out.add(finding)
        number += 1
        say(out.cases)
    out.seconds = time.monotonic() - began
    return out


def one_round(target: Target, begin: str, cases: int) -> tuple[Finding | None, int]:
    """Run one round; return what it found, and how many cases it took."""
    done = 0
    last: Any = None

    @seed(zlib.crc32(f"{target.name}:{begin}".encode()))
    @settings(
        max_examples=cases,
        deadline=None,
        database=None,
        phases=(Phase.generate, Phase.shrink),
        suppress_health_check=list(HealthCheck),
        report_multiple_bugs=False,
        print_blob=False,
    )
    @given(target.cases)
    def run(case: Any) -> None:
        nonlocal done, last
        done += 1
        last = case
        with at_most(HANG_S):
            target.check(case)

    state = random.getstate()
    try:
        run()
    except Exception as error:  # noqa: BLE001 - it is what is looked for
        return found(error, last), done
    finally:
        random.setstate(state)
    return None, done


def found(error: BaseException, case: Any) -> Finding:
    """Return an exception as a finding."""
    frames = [one for one in traceback.extract_tb(error.__traceback__) if "comfy_fleet/" in one.filename]
    if not frames:
        frames = traceback.extract_tb(error.__traceback__)[-2:]
    lines = [
        f"{one.filename.partition('comfy_fleet/')[2] or one.filename}:{one.lineno} {one.line}"
        for one in frames
    ]
    return Finding(
        what=f"{type(error).__name__}: {str(error).splitlines()[0][:300] if str(error) else ''}",
        where=" < ".join(reversed(lines[-3:])),
        case=repr(case),
    )


@contextmanager
def at_most(seconds: float) -> Iterator[None]:
    """Raise Hangs in what takes longer; only in the main thread, where signals come."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def late(_: int, __: FrameType | None) -> None:
        raise Hangs(f"a case takes more than {seconds:g} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
