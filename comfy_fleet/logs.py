"""Structured logs: one JSON object per line, or readable lines on a terminal.

The message is a constant and the facts are fields, so that ``grep JOB_ID`` finds a job's whole story across
all processes. Fields come from ``extra``; every line about a job has ``job_id``.
"""

import asyncio
import contextlib
import logging
import re
import sys
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any, TextIO

import orjson

from comfy_fleet import journal
from comfy_fleet.domain.text import clean
from comfy_fleet.request_context import in_request

logger = logging.getLogger(__name__)

TOGETHER_S = 0.05
"""How long a line may wait for others to be written with it."""
_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName", "color_message"}
# Characters that move a terminal's cursor, end a line or change its direction, or are no text by themselves:
# C0, C1, separators, bidi marks, halves of characters.
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff\ufeff]")
_NO_TEXT = re.compile(r"'|%[a-z]")
_NO_WORD = re.compile(r"[^a-z0-9]+")
_OURS = __name__.partition(".")[0]
MOST_FIELD = 64 * 1024
"""Characters of a field of the journal."""
_PRIORITIES = ((50, 2), (40, 3), (30, 4), (20, 6), (0, 7))
"""Levels of logging, and syslog's numbers for them."""
_SECRET = ("api_key", "authorization", "token", "secret", "password")


def setup(process: str, *, level: str = "info", fmt: str = "auto") -> None:
    """Send all logs of this process to stderr, or to the journal.

    Args:
        process: Name on every line, e.g. ``dispatch``.
        level: Least severe line to show.
        fmt: ``json``, ``text``, ``auto`` (text on a terminal), or ``journald``; where there is no journal,
            that is JSON on stderr.
    """
    handler: logging.Handler
    lacking = fmt == "journald" and not journal.SOCKET.exists()
    if fmt == "journald" and not lacking:
        handler = JournalHandler(process, journal.Journal(journal.SOCKET))
    else:
        handler = _Stderr(sys.stderr)
        text = fmt == "text" or (fmt == "auto" and sys.stderr.isatty())
        handler.setFormatter(TextFormatter(process) if text else JsonFormatter(process))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    # Lines don't show the place in the code, the thread, process or task: skip looking them up.
    logging._srcfile = None  # noqa: SLF001 - the way that logging's documentation names
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    # Clients get an answer to a malformed request; a log line for each would let anybody fill the log.
    logging.getLogger("python_multipart").setLevel("ERROR")
    for noisy in ("httpx", "httpcore", "websockets", "uvicorn.access", "asyncio"):
        logging.getLogger(noisy).setLevel("WARNING")
    if lacking:
        logger.warning("no journal here, lines go to stderr", extra={"socket": str(journal.SOCKET)})


class _Stderr(logging.StreamHandler[TextIO]):
    """Writes lines; those that can't be written, e.g. on a full disk, are lost and work goes on.

    A line that follows another within a moment waits for more: a write for each costs a busy process more
    than making them. Warnings and worse are written at once, with all before them.
    """

    def __init__(self, stream: TextIO) -> None:
        super().__init__(stream)
        self._lines: list[str] = []
        self._written_at = -TOGETHER_S

    def emit(self, record: logging.LogRecord) -> None:
        """Write a line, now or in a moment."""
        try:
            self._lines.append(self.format(record) + self.terminator)
            if record.levelno >= logging.WARNING or not self._can_wait():
                self.flush()
        except Exception:  # noqa: BLE001 - no failure of logging may stop the work
            self.handleError(record)

    def flush(self) -> None:
        """Write what waits; also called as the process ends."""
        with self.lock or contextlib.nullcontext():
            lines, self._lines = self._lines, []
            self._written_at = time.monotonic()
            if lines:
                self.stream.write("".join(lines))
            super().flush()

    def _can_wait(self) -> bool:
        """Return whether lines were written a moment ago, and more will be."""
        if time.monotonic() - self._written_at >= TOGETHER_S:
            return False
        if len(self._lines) == 1:  # the others have been told to wait for the same moment
            try:
                asyncio.get_running_loop().call_later(TOGETHER_S, self._flush_late)
            except RuntimeError:
                return False
        return True

    def _flush_late(self) -> None:
        with contextlib.suppress(OSError):
            self.flush()

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - logging's name
        """Do nothing; logging would try to print a traceback for every line."""
        if not isinstance(sys.exc_info()[1], OSError):
            super().handleError(record)


class JournalHandler(logging.Handler):
    """Makes an entry of the journal of each line, with each fact as a field of its own.

    ``MESSAGE`` is what a line of text has after its process. What the journal does not take is lost, and told
    after the next entry that it takes.

    Args:
        process: The process.
        to: The journal.
    """

    def __init__(self, process: str, to: journal.Journal) -> None:
        super().__init__()
        self._process = process
        self._journal = to

    def emit(self, record: logging.LogRecord) -> None:
        """Send an entry."""
        try:
            lost = self._journal.lost
            if self._journal.send(self._entry(record)) and lost:
                logger.warning("log lines were lost", extra={"count": lost})
        except Exception:  # noqa: BLE001 - no failure of logging may stop the work
            self.handleError(record)

    def _entry(self, record: logging.LogRecord) -> dict[str, str]:
        facts = {key: _as_text(value) for key, value in fields(record).items()}
        shown = "".join(f" {key}={value}" for key, value in facts.items())
        entry = {
            "MESSAGE": one_line(record.getMessage() + shown)[:MOST_FIELD],
            "PRIORITY": str(next(number for least, number in _PRIORITIES if record.levelno >= least)),
            "SYSLOG_IDENTIFIER": f"fleet-{self._process}",
            "COMFY_PROCESS": self._process,
            "COMFY_LOGGER": record.name,
        }
        if str(record.name).startswith(_OURS):
            entry["COMFY_EVENT"] = event_of(record.msg)
        if record.exc_info:
            trace = (self.formatter or logging.Formatter()).formatException(record.exc_info)
            entry["COMFY_TRACEBACK"] = "\n".join(map(one_line, trace.split("\n")))[-MOST_FIELD:]
        return entry | {journal.field_name(key): value[:MOST_FIELD] for key, value in facts.items()}


def _as_text(value: object) -> str:
    """Return a fact as one line of text: JSON, unless it is a text already."""
    return one_line(value) if isinstance(value, str) else json_line({"": value})[4:-1]


def one_line(text: str) -> str:
    """Return text with its control characters shown as escapes, such as ``\\n`` and ``\\x1b``."""
    return _CONTROL.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def json_line(fields: Mapping[str, Any]) -> str:
    """Return fields as one line of JSON, without characters that control a terminal."""
    try:
        made = orjson.dumps(fields, default=str).decode()
    except TypeError:  # half a character, an integer beyond 64 bits, a key that is no text
        made = orjson.dumps({key: clean(str(value)) for key, value in fields.items()}).decode()
    return _CONTROL.sub(lambda found: f"\\u{ord(found[0]):04x}", made)


def fields(record: logging.LogRecord) -> dict[str, Any]:
    """Return the fields from ``extra``; values that look like secrets are masked."""
    found = {
        key: "***" if _is_secret(key) else value
        for key, value in vars(record).items()
        if key not in _STANDARD
    }
    return {**found, **about} if (about := in_request.get()) else found


@lru_cache(1000)
def _is_secret(key: str) -> bool:
    return any(part in key.lower() for part in _SECRET)


@lru_cache(1000)
def event_of(message: str) -> str:
    """Return the name of the event that a line of our own tells: its message as one word."""
    return _NO_WORD.sub("_", _NO_TEXT.sub("", message.lower())).strip("_")


class JsonFormatter(logging.Formatter):
    """One JSON object a line: ts, level, process, logger, event, msg, then the fields.

    Lines of libraries, whose messages are not constant, have no event.
    """

    def __init__(self, process: str) -> None:
        super().__init__()
        self.process = process

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        line: dict[str, Any] = {
            "ts": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "process": self.process,
            "logger": record.name,
            **({"event": event_of(record.msg)} if str(record.name).startswith(_OURS) else {}),
            "msg": record.getMessage(),
            **fields(record),
        }
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json_line(line)


class TextFormatter(logging.Formatter):
    """``15:04:05 info dispatch: job finished job_id=... node=...``."""

    def __init__(self, process: str) -> None:
        super().__init__()
        self.process = process

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        when = datetime.fromtimestamp(record.created).astimezone().strftime("%H:%M:%S")
        facts = "".join(f" {key}={value}" for key, value in fields(record).items())
        line = one_line(f"{when} {record.levelname.lower():7} {self.process}: {record.getMessage()}{facts}")
        if not record.exc_info:
            return line
        trace = self.formatException(record.exc_info).split("\n")
        return "\n".join([line, *map(one_line, trace)])
