"""What the console lets through: whole ids and URLs, and nothing that a terminal obeys."""

import json
from datetime import UTC, datetime, timedelta
from io import StringIO
from uuid import UUID

import pytest
from rich.text import Text

from comfy_fleet.cli import doctor_checks, webhooks
from comfy_fleet.cli.console import FleetConsole, facts, json_text, printable, table
from comfy_fleet.cli.doctor import listing
from comfy_fleet.cli.node_state import COLUMNS
from comfy_fleet.cli.node_state import row as node_row

ID = "6bbb1aba-0f5e-4d6f-b012-3c4d5e6f7a8b"
URL = "http://127.0.0.1:27301/api/v2/assets/6bbb1aba-0f5e-4d6f-b012-3c4d5e6f7a8b/content?name=a.png"
ATTACKS = (
    "\x1b]0;owned\x07",
    "\x1b[2J",
    "\x1b]52;c;aGk=\x07",
    "\x9b2J",
    "\u202eevil",
    "\u2066x\u2069",
    "\x7f",
    "\r",
)


def printed(renderable: object, width: int | None = 80, **options: object) -> list[str]:
    console = FleetConsole()
    console.file = StringIO()
    if width is not None:
        console.width = width
    console.print(renderable, **options)
    return console.file.getvalue().splitlines()


@pytest.mark.parametrize("width", [20, 40, 80])
def test_a_narrow_terminal_breaks_no_id_and_no_url(width: int) -> None:
    lines = printed(
        table(["Job", "Message", "URL"], [(ID, "went down and " * 4, URL), ("short", "", "")]), width
    )
    assert any(ID in line for line in lines)
    assert any(URL in line for line in lines)
    assert all(line == line.rstrip() for line in lines)
    assert URL in "\n".join(printed(facts({"url": URL}), width))


def test_words_wrap_between_words_so_that_a_row_fits() -> None:
    lines = printed(table(["<Node", "State"], [("gpu-1", "down: nothing listens at that address " * 4)]))
    assert len(lines) > 3
    assert max(map(len, lines)) <= 80
    assert " ".join(" ".join(lines[1:]).split()).count("nothing listens at that address") == 4


def test_what_the_doctor_finds_is_wrapped_like_any_table() -> None:
    path = "/srv/" + "a-long-folder/" * 6 + "haproxy"
    found = doctor_checks.Finding(
        check="HAProxy", verdict=doctor_checks.Severity.OK, found=f"2.6.12 at {path}; one thread"
    )
    todo = doctor_checks.Finding(
        check="Port", verdict=doctor_checks.Severity.WARN, found="8188 is taken", do=f"see {path}"
    )
    lines = printed(listing([found, todo]))
    assert sum(path in line for line in lines) == 2
    assert all(line == line.rstrip() for line in lines)


def test_a_long_word_in_the_last_column_makes_only_its_own_line_too_long() -> None:
    path = "/opt/" + "a-folder/" * 12 + "valkey-server"
    words = "several words that say what was found, " * 4
    lines = printed(
        table(["<", "<Check", "Found"], [("OK", "Redis program", f"9.1 at {path}"), ("OK", "x", words)])
    )
    assert [line.split() for line in lines if len(line) > 80] == [[path]]
    assert " ".join(line[19:] for line in lines[3:]).split() == words.split()


def test_in_a_pipe_a_record_is_a_line() -> None:
    rows = [("gpu-1", "down: " + "a very long reason " * 30, URL), ("gpu-2", "up", URL)]
    lines = printed(table(["<Node", "State", "URL"], rows), width=None)
    assert len(lines) == 3
    assert lines[1].endswith(URL)


@pytest.mark.parametrize("attack", ATTACKS)
def test_nothing_that_a_terminal_obeys_goes_through(attack: str) -> None:
    ways: list[list[str]] = [
        printed(table(["Name"], [(attack,)])),
        printed(table(["Name"], [(Text(attack),)])),
        printed(table(["Name"], [], title=attack)),
        printed(facts({"name": attack, attack: "value"})),
        printed(Text(attack)),
        printed(attack, markup=False),
        printed(attack, markup=False, soft_wrap=True),
    ]
    for lines in ways:
        shown = "\n".join(lines)
        assert not set(attack) & set("\x1b\x07\x9b\u202e\u2066\u2069\x7f\r") & set(shown)
    assert printable("\x1b[2J\u202e\x9b") == r"\x1b[2J\u202e\x9b"


@pytest.mark.parametrize("attack", ATTACKS)
def test_json_says_the_same_without_commanding_the_terminal(attack: str) -> None:
    text = json_text({"message": f"ä {attack}"})
    assert json.loads(text) == {"message": f"ä {attack}"}
    assert "ä" in text
    assert text.isprintable()


def test_colours_of_our_own_still_reach_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert "\x1b[" in "".join(printed(table(["State"], [("failed",)])))


@pytest.mark.parametrize("line_break", ["\n", "\r\n", "\n\n  "])
def test_a_reason_of_several_lines_is_whole_and_its_record_one_line(line_break: str) -> None:
    reason = f"bad\x1b[2Jreason{line_break}second line"
    drained = {"name": "sim-1", "verdict": "drain", "why": reason, "pool": "default", "simulated": True}
    _, line = printed(table(COLUMNS, [node_row(drained)]), width=None)
    assert r"sim-1  drain: bad\x1b[2Jreason second line  default" in line

    _, line = printed(table(["Job", "Message"], [("6bbb1aba", reason)]), width=None)
    assert line == r"6bbb1aba  bad\x1b[2Jreason second line"


def test_a_list_of_webhooks_fits_80_columns_with_ids_that_can_be_copied() -> None:
    now = datetime(2026, 11, 29, tzinfo=UTC)
    id_ = f"msg_{UUID(int=7)}_succeeded"

    def told(state: str, attempts: int, due: timedelta | None, error: str) -> tuple[object, ...]:
        one = {"id": id_, "state": state, "attempts": attempts, "error": error, "last_status": 500}
        one["timestamp"] = (now - timedelta(days=3, hours=5)).isoformat()
        return webhooks.row({**one, "next_attempt_at": due and (now + due).isoformat()}, now)

    rows = [
        told("delivered", 1, None, ""),
        told("waiting", 6, timedelta(hours=10), "the receiver did not answer within 20 s"),
        told("failed", 8, None, "the receiver answered 500"),
    ]
    console = FleetConsole()
    console.width, console.file = 80, StringIO()
    console.print(table(webhooks.COLUMNS, rows))
    lines = console.file.getvalue().splitlines()
    assert max(map(len, lines)) <= 80
    assert sum(id_ in line for line in lines) == 3
    assert "try 7" in console.file.getvalue() and "failed, 8" in console.file.getvalue()
