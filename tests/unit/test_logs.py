"""Log lines: one line each, whatever stands in them, and no noise where they can't be written."""

import io
import json
import logging
import sys

import pytest

from comfy_fleet import logs
from tests.fleet import until

EVIL = "a\nb\r\x1b[2J\x1b]0;title\x07\x9b31m\u2028c\u202etxt\u2066\u061c\ufeff"


def record(**extra: object) -> logging.LogRecord:
    return logging.makeLogRecord({"msg": "job ended", "levelname": "INFO", "created": 0.0, **extra})


@pytest.mark.parametrize("where", ["msg", "fact"])
def test_text_lines_show_control_characters_as_escapes(where: str) -> None:
    line = logs.TextFormatter("api").format(record(**{where: EVIL}))
    assert line.isprintable()
    assert r"a\nb\r\x1b[2J\x1b]0;title\x07\x9b31m\u2028c\u202etxt\u2066\u061c\ufeff" in line


def test_a_traceback_keeps_its_lines_and_nothing_else_of_the_kind() -> None:
    try:
        raise ValueError(EVIL)
    except ValueError:
        made = record(exc_info=sys.exc_info())
    line = logs.TextFormatter("api").format(made)
    assert "Traceback" in line
    assert all(part.isprintable() for part in line.split("\n"))


def test_json_lines_are_one_line() -> None:
    line = logs.JsonFormatter("api").format(record(fact=EVIL))
    assert line.isprintable()
    assert len(line.splitlines()) == 1
    assert json.loads(line)["fact"] == EVIL


@pytest.mark.parametrize("value", ["half \udcff", {"a": ["\udcff"]}, 2**70, {1: 2}, {"a": 2**70}])
def test_what_json_lacks_costs_no_line(value: object) -> None:
    made = record(fact=value, job_id="j")
    for formatter in (logs.JsonFormatter("api"), logs.TextFormatter("api")):
        line = formatter.format(made)
        assert line.isprintable() and line.encode()
    read = json.loads(logs.JsonFormatter("api").format(made))
    assert (read["msg"], read["job_id"]) == ("job ended", "j") and "fact" in read


class Full(io.StringIO):
    """A file on a full disk."""

    def write(self, text: str, /) -> int:
        raise OSError(28, "No space left on device")


def test_what_can_not_be_written_is_lost_without_a_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    heard, root = io.StringIO(), logging.getLogger()
    before, level = root.handlers[:], root.level
    monkeypatch.setattr(sys, "stderr", Full())
    try:
        logs.setup("api", fmt="json")
        monkeypatch.setattr(sys, "stderr", heard)  # where logging complains
        logging.getLogger("x").error("lost")
        assert heard.getvalue() == ""
        logging.getLogger("x").error("%d is no number", "one")  # a defect of ours is still told
        assert "Logging error" in heard.getvalue()
    finally:
        root.handlers[:] = before
        root.setLevel(level)


async def test_lines_that_follow_one_another_are_written_together(monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[str] = []

    class File(io.StringIO):
        def write(self, text: str, /) -> int:
            written.append(text)
            return len(text)

    root = logging.getLogger()
    before, level = root.handlers[:], root.level
    monkeypatch.setattr(sys, "stderr", File())
    monkeypatch.setattr(logs, "TOGETHER_S", 0.5)
    try:
        logs.setup("api", fmt="json")
        log = logging.getLogger("x")
        log.info("first")
        log.info("second")
        log.info("third")
        assert [text.count("\n") for text in written] == [1], "the first is written at once"
        await until(lambda: len(written) == 2, what="the others are written")
        log.info("fourth")
        log.warning("fifth")
        told = [json.loads(line)["msg"] for line in "".join(written).splitlines()]
        assert told == ["first", "second", "third", "fourth", "fifth"]
        assert written[-1].count("\n") == 2, "a warning waits for nothing"
        log.info("last")
        root.handlers[0].flush()  # as when the process ends
        assert "last" in written[-1]
    finally:
        root.handlers[:] = before
        root.setLevel(level)


@pytest.mark.parametrize(
    ("name", "message", "event"),
    [
        ("comfy_fleet.services.execution", "job ended", "job_ended"),
        ("comfy_fleet.agent.host", "orphan can't be taken off the node", "orphan_cant_be_taken_off_the_node"),
        ("comfy_fleet.api.app", "picture %s, which can't be read: %s", "picture_which_cant_be_read"),
        ("uvicorn.error", "Started server process [17]", None),
    ],
)
def test_our_own_lines_name_their_event(name: str, message: str, event: str | None) -> None:
    made = record(name=name, msg=message, args=("a", "b") if "%s" in message else ())
    assert json.loads(logs.JsonFormatter("api").format(made)).get("event") == event
