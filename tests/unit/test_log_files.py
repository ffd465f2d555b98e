"""Log files are read in order of time, and followed through whatever happens to them."""

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import pytest

from comfy_fleet.cli.log_files import LogLine, Logs, PartLog


def logged(second: int, message: str, **more: object) -> str:
    return json.dumps(
        {"ts": f"2026-01-01T00:00:{second:02}.000+00:00", "level": "info", "msg": message, **more}
    )


def write(path: Path, *lines: str, end: str = "\n") -> Path:
    with path.open("a") as file:
        file.write("\n".join(lines) + end)
    return path


@pytest.fixture
def part() -> Iterator[Callable[[Path], PartLog]]:
    """Opens a log, which is closed after the test."""
    with ExitStack() as stack:
        yield lambda path: stack.enter_context(closing(PartLog(path)))


def told(lines: list[LogLine]) -> list[str]:
    return [f"{line.part} {line.fields['msg']}" for line in lines]


def read(folder: Path, *, tail: int | None = None, about: str = "") -> list[str]:
    with Logs(folder) as logs:
        return told(list(logs.history(tail=tail, about=about)))


def test_parts_are_joined_in_order_of_time_and_older_files_come_first(tmp_path: Path) -> None:
    write(tmp_path / "api.log.1", logged(1, "one"), logged(4, "four"))
    write(tmp_path / "api.log", logged(6, "six"))
    write(tmp_path / "dispatch.log", logged(2, "two"), logged(5, "five"))
    write(tmp_path / "gone.log.1", logged(3, "three"))  # its newest file was taken away
    (tmp_path / "notes.txt").write_text("no log")
    whole = ["api one", "dispatch two", "gone three", "api four", "dispatch five", "api six"]
    assert read(tmp_path) == whole
    for count in range(8):
        assert read(tmp_path, tail=count) == whole[len(whole) - min(count, len(whole)) :]
    assert read(tmp_path, about="five") == ["dispatch five"]


def test_lines_of_one_part_keep_their_order_whatever_they_say(tmp_path: Path) -> None:
    odd = ("Traceback", '{"msg": 1}', '{"ts": [1], "msg": "no time"}', logged(2, "back"), "{half")
    future = json.dumps({"ts": "2999-01-01T00:00:00+00:00", "msg": "future"})
    write(tmp_path / "a.log", logged(5, "five"), *odd, future, logged(6, "six"))
    write(tmp_path / "b.log", "", logged(1, "one"), logged(9, "nine"))
    assert read(tmp_path) == [
        "b one",
        "a five",
        *("a Traceback", 'a {"msg": 1}', "a no time", "a back", "a {half", "a future"),
        "a six",
        "b nine",
    ]


def test_bytes_that_are_no_text_are_read(tmp_path: Path) -> None:
    (tmp_path / "a.log").write_bytes(b"\xff\x00\x1b[2J\r\n" + b"x" * 3_000_000 + b"\nhalf")
    first, *pieces, last = read(tmp_path)
    assert (first, last) == ("a \ufffd\x00\x1b[2J", "a half")
    assert sum(piece.count("x") for piece in pieces) == 3_000_000


def _moved(path: Path) -> None:
    write(path, logged(2, "last of the old"))
    path.replace(path.with_name(f"{path.name}.1"))


def _emptied(path: Path) -> None:
    path.write_text("")


def _deleted(path: Path) -> None:
    path.unlink()


@pytest.mark.parametrize(
    ("happens", "lost"), [(_moved, ["a last of the old"]), (_emptied, []), (lambda _: None, [])]
)
def test_a_follower_misses_and_repeats_nothing(
    tmp_path: Path, part: Callable[[Path], PartLog], happens: Callable[[Path], None], lost: list[str]
) -> None:
    path = write(tmp_path / "a.log", logged(1, "first", much="x" * 1000))
    log = part(path)
    assert told(list(log.lines(log.history()))) == ["a first"]
    assert list(log.new()) == []
    happens(path)
    write(path, logged(3, "third"), logged(4, "half of it")[:20], end="")
    assert told(list(log.lines(log.new()))) == [*lost, "a third"]
    write(path, logged(4, "half of it")[20:])
    assert told(list(log.lines(log.new()))) == ["a half of it"]
    assert list(log.new()) == []


def test_a_file_that_is_deleted_is_read_on_and_its_successor_after_it(
    tmp_path: Path, part: Callable[[Path], PartLog]
) -> None:
    path = write(tmp_path / "a.log", logged(1, "first"))
    log = part(path)
    with path.open("a") as writer:  # as the fleet does: it does not notice
        _deleted(path)
        writer.write(logged(2, "into the deleted file") + "\n")
        writer.flush()
        assert told(list(log.lines(log.history()))) == ["a first", "a into the deleted file"]
    write(path, logged(3, "new file"))
    assert told(list(log.lines(log.new()))) == ["a new file"]


def test_a_file_that_became_the_older_one_meanwhile_is_read_once(
    tmp_path: Path, part: Callable[[Path], PartLog]
) -> None:
    path = write(tmp_path / "a.log", logged(1, "first"))
    log = part(path)
    path.replace(tmp_path / "a.log.1")
    write(path, logged(2, "second"))
    assert told(list(log.lines(log.history()))) == ["a first", "a second"]


def test_parts_that_appear_later_are_followed_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("comfy_fleet.cli.log_files.LOOK_S", 0.001)
    write(tmp_path / "a.log", logged(1, "first"))
    with Logs(tmp_path) as logs, Logs(tmp_path, ["b"]) as chosen:
        lines = logs.follow()
        assert told([next(lines)]) == ["a first"]
        write(tmp_path / "b.log", logged(3, "b began"))
        write(tmp_path / "a.log", logged(2, "second"))
        assert told([next(lines), next(lines)]) == ["a second", "b b began"]
        assert told([next(chosen.follow())]) == ["b b began"]
