"""How a process ended, in words, from its status and the end of its output.

The last line of its output is rarely the reason: a killed process wrote it about something else.
"""

import json
import re
import signal
from collections.abc import Sequence

_TROUBLE = re.compile(
    r"error|exception|fatal|alert|panic|abort|fail|can.?not|can.?t\b|unable|no such|no module|not found"
    r"|denied|refused|missing|invalid|in use|unknown|unrecogni[sz]ed|what\(\)",
    re.IGNORECASE,
)
_LONGEST = 300
_BY_SIGNAL = 128  # a shell, or HAProxy's master, adds this to the number of the signal that ended its child
_COLOURS = re.compile(r"\x1b\[[0-9;?]*[ -/]*[@-~]")
_FRAME = " │╭╮╰╯─"  # the frame around errors of our own command line
_DEFECTS = ("SIGSEGV", "SIGBUS", "SIGILL", "SIGFPE")


def end_of(status: int) -> str:
    """Return how a process ended, in words: ``exit 3``, ``SIGKILL``, ``signal 65``."""
    if status >= 0:
        return f"exit {status}"
    try:
        return signal.Signals(-status).name
    except ValueError:
        return f"signal {-status}"


def reason_of(status: int, lines: Sequence[str]) -> str:
    """Return why a process ended, as far as that is known.

    Args:
        status: Its exit status; negative: the signal that ended it.
        lines: The end of its output.
    """
    if status > _BY_SIGNAL and end_of(_BY_SIGNAL - status).startswith("SIG"):
        status = _BY_SIGNAL - status
    words = end_of(status)
    if status >= 0:
        return error_in(lines) or words
    if words == "SIGKILL":
        return "killed by signal SIGKILL (perhaps out of memory)"
    if words == "SIGABRT":  # a process does that to itself, and prints the reason first
        message = error_in(lines)
        return f"gave up with signal SIGABRT{f': {message}' if message else ''}"
    if words in _DEFECTS:
        return f"crashed with signal {words}"
    return f"ended by {words if words.startswith('signal') else f'signal {words}'}"


def error_in(lines: Sequence[str]) -> str:
    """Return the last line about an error; empty if there is none.

    Lines of JSON are skipped: they are our own processes' logs, and HAProxy's log of requests.
    """
    for line in reversed(lines):
        found = _logged(line) if line.startswith("{") else _said(line)
        if found:
            return found[:_LONGEST]
    return ""


def _logged(line: str) -> str:
    try:
        fields = json.loads(line)
    except ValueError:
        return ""
    if not isinstance(fields, dict) or fields.get("level") not in ("error", "critical"):
        return ""
    more = fields.get("reason") or fields.get("error") or ""
    return f"{fields.get('msg', '')}{f': {more}' if more else ''}"


def _said(line: str) -> str:
    words = _COLOURS.sub("", line).strip(_FRAME)
    if words.lower() == "error" or words.startswith("hint:"):
        return ""
    return words if _TROUBLE.search(words) else ""
