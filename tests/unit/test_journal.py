"""Lines of the log as entries of systemd's journal, on a socket like the journal's."""

import array
import fcntl
import logging
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from comfy_fleet import journal, logs

JOB_ID = "fee18684-1906-49a8-aae2-a6125f7539a7"


class Reads:
    """What journald does with its socket."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(str(path))
        self.socket.settimeout(30)
        self.files = 0

    def entry(self) -> dict[str, str]:
        data, rights, _, _ = self.socket.recvmsg(1 << 20, socket.CMSG_SPACE(4))
        for _, _, passed in rights:
            (file,) = array.array("i", passed)
            assert not data and fcntl.fcntl(file, fcntl.F_GET_SEALS) & fcntl.F_SEAL_WRITE
            with os.fdopen(file, "rb") as content:
                content.seek(0)
                data = content.read()
            self.files += 1
        found = {}
        while data:
            line, _, data = data.partition(b"\n")
            name, equals, value = line.partition(b"=")
            if not equals:
                size = int.from_bytes(data[:8], "little")
                value, data = data[8 : 8 + size], data[9 + size :]
            assert name.replace(b"_", b"").isalnum() and name.isupper() and len(name) <= 64, name
            found[name.decode()] = value.decode()
        return found


@pytest.fixture
def reads(tmp_path: Path) -> Iterator[Reads]:
    made = Reads(tmp_path / "socket")
    yield made
    made.socket.close()


@contextmanager
def told_to(to: journal.Journal, process: str) -> Iterator[logging.Logger]:
    """Yield a logger whose lines go to a journal, as do those of all modules of ours."""
    ours = logging.getLogger("comfy_fleet")
    before = ours.handlers[:], ours.level, ours.propagate
    ours.handlers[:] = [logs.JournalHandler(process, to)]
    ours.setLevel("DEBUG")
    ours.propagate = False
    try:
        yield logging.getLogger("comfy_fleet.here")
    finally:
        ours.handlers[:], level, ours.propagate = before
        ours.setLevel(level)
        to.close()


def run(code: str, path: Path) -> str:
    """Run a process whose journal is at a path; return what it wrote to stderr."""
    begin = (
        "import logging; from pathlib import Path; from comfy_fleet import journal, logs; "
        f"journal.SOCKET = Path({str(path)!r}); logs.setup('api', fmt='journald'); "
    )
    argv = [sys.executable, "-c", begin + code]
    return subprocess.run(argv, capture_output=True, text=True, check=True, timeout=60).stderr


@pytest.fixture
def log(reads: Reads) -> Iterator[logging.Logger]:
    with told_to(journal.Journal(reads.path), "dispatch") as made:
        yield made


def test_each_fact_is_a_field(reads: Reads, log: logging.Logger) -> None:
    log.info("job ended", extra={"job_id": JOB_ID, "outputs": 1, "duration_s": 1.5, "why": None})
    assert reads.entry() == {
        "MESSAGE": f"job ended job_id={JOB_ID} outputs=1 duration_s=1.5 why=null",
        "PRIORITY": "6",
        "SYSLOG_IDENTIFIER": "fleet-dispatch",
        "COMFY_PROCESS": "dispatch",
        "COMFY_LOGGER": "comfy_fleet.here",
        "COMFY_EVENT": "job_ended",
        "COMFY_JOB_ID": JOB_ID,
        "COMFY_OUTPUTS": "1",
        "COMFY_DURATION_S": "1.5",
        "COMFY_WHY": "null",
    }
    levels = [(logging.DEBUG, "7"), (logging.WARNING, "4"), (logging.ERROR, "3"), (logging.CRITICAL, "2")]
    for level, priority in levels:
        log.log(level, "so it is")
        assert reads.entry()["PRIORITY"] == priority


def test_nothing_in_a_fact_makes_another_field_or_shows_a_secret(reads: Reads, log: logging.Logger) -> None:
    odd = "x\nPRIORITY=0\nMESSAGE=forged\x1b[2J"
    log.warning(
        "node at fault", extra={odd: 1, "error": odd, "half": "\udcff", "api_key": "k", "s": {"a": [odd]}}
    )
    entry = reads.entry()
    shown = entry["MESSAGE"]
    assert entry["PRIORITY"] == "4" and shown.startswith("node at fault") and shown.isprintable()
    assert entry["COMFY_ERROR"] == r"x\nPRIORITY=0\nMESSAGE=forged\x1b[2J"
    assert entry["COMFY_API_KEY"] == "***" and entry["COMFY_HALF"]
    try:
        raise ValueError(odd)
    except ValueError:
        log.exception("run broke off")
    entry = reads.entry()
    lines = entry["COMFY_TRACEBACK"].split("\n")
    assert lines[0].startswith("Traceback") and all(line.isprintable() for line in lines)


def test_what_is_larger_than_a_datagram_comes_as_a_sealed_file(
    reads: Reads, log: logging.Logger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logs, "MOST_FIELD", 2**24)
    log.error("request failed", extra={"story": "y" * 2**22})
    assert len(reads.entry()["COMFY_STORY"]) == 2**22 and reads.files == 1


def test_long_facts_are_cut(reads: Reads, log: logging.Logger) -> None:
    log.error("request failed", extra={"story": "y" * 2**22, "job_id": JOB_ID})
    entry = reads.entry()
    assert len(entry["COMFY_STORY"]) == len(entry["MESSAGE"]) == logs.MOST_FIELD
    assert entry["COMFY_JOB_ID"] == JOB_ID


def test_a_journal_that_takes_nothing_holds_nobody_up_and_the_loss_is_told(reads: Reads) -> None:
    now = [0.0]
    to = journal.Journal(reads.path, clock=lambda: now[0])
    with told_to(to, "api") as log:
        sent = 0
        while not to.lost:  # until its queue is full
            log.info("job accepted")
            sent += 1
            assert sent < 100_000
        for _ in range(50):  # nothing is waited for any more
            log.info("job accepted")
        assert to.lost == 51
        for _ in range(sent - 1):
            assert reads.entry()["COMFY_EVENT"] == "job_accepted"
        now[0] = journal.PAUSE_S
        log.info("job ended")
        assert reads.entry()["COMFY_EVENT"] == "job_ended"
        told = reads.entry()
        found = told["COMFY_EVENT"], told["COMFY_COUNT"], told["PRIORITY"]
        assert found == ("log_lines_were_lost", "51", "4")
        reads.socket.close()
        reads.path.unlink()
        log.info("job ended")  # the journal is gone: nothing is raised
        assert to.lost == 1


ENDS = "logging.getLogger('comfy_fleet.x').info('job ended', extra={'job_id': 'j'})"


def test_a_process_without_a_journal_says_so_and_writes_to_stderr(tmp_path: Path) -> None:
    first, second = run(ENDS, tmp_path / "none").splitlines()
    assert '"event":"no_journal_here_lines_go_to_stderr"' in first and '"job_id":"j"' in second


def test_a_process_writes_to_the_journal_and_nothing_to_stderr(reads: Reads) -> None:
    assert run(ENDS, reads.path) == ""
    assert reads.entry()["COMFY_JOB_ID"] == "j"
