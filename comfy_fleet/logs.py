"""Structured logs: one JSON object a line, or a readable line on a terminal.

The message is a constant and the facts are fields, so that ``grep JOB_ID`` tells a job's whole story
across all processes. Fields come from ``extra``; ``job_id`` is on every line that concerns a job.
"""

import logging
import sys
from datetime import UTC, datetime
from typing import Any

import orjson

_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName", "color_message"}
_SECRET = ("api_key", "authorization", "token", "secret", "password")


def setup(process: str, *, level: str = "info", fmt: str = "auto") -> None:
    """Send all logs of this process to stderr.

    Args:
        process: Name on every line, e.g. ``dispatch``.
        level: Least severe line to show.
        fmt: ``json``, ``text``, or ``auto`` (text on a terminal).
    """
    handler = logging.StreamHandler(sys.stderr)
    text = fmt == "text" or (fmt == "auto" and sys.stderr.isatty())
    handler.setFormatter(TextFormatter(process) if text else JsonFormatter(process))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    # What a client garbled is answered to the client; a line each would let anybody fill the log.
    logging.getLogger("python_multipart").setLevel("ERROR")
    for noisy in ("httpx", "httpcore", "websockets", "uvicorn.access", "asyncio"):
        logging.getLogger(noisy).setLevel("WARNING")


def fields(record: logging.LogRecord) -> dict[str, Any]:
    """Return what ``extra`` added, with anything that smells of a secret masked."""
    return {
        key: "***" if any(part in key.lower() for part in _SECRET) else value
        for key, value in vars(record).items()
        if key not in _STANDARD
    }


class JsonFormatter(logging.Formatter):
    """One JSON object a line: ts, level, process, logger, msg, then the fields."""

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
            "msg": record.getMessage(),
            **fields(record),
        }
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return orjson.dumps(line, default=str).decode()


class TextFormatter(logging.Formatter):
    """``15:04:05 info dispatch: job finished job_id=... node=...``."""

    def __init__(self, process: str) -> None:
        super().__init__()
        self.process = process

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        when = datetime.fromtimestamp(record.created).astimezone().strftime("%H:%M:%S")
        facts = "".join(f" {key}={value}" for key, value in fields(record).items())
        line = f"{when} {record.levelname.lower():7} {self.process}: {record.getMessage()}{facts}"
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line
