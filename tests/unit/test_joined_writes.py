"""What an answer writes in one turn of the event loop leaves together."""

import asyncio
from collections.abc import Callable
from typing import Any, cast

from comfy_fleet.api.joined_writes import MOST_BYTES, JoinedWrites


class Wire:
    """A transport that keeps what is written, and the turns of an event loop."""

    def __init__(self) -> None:
        self.sent: list[bytes] = []
        self.closed = False
        self.due: list[Callable[[], None]] = []
        self.joined = JoinedWrites(cast(asyncio.Transport, self), self.due.append)

    def write(self, data: bytes) -> None:
        assert not self.closed
        self.sent.append(data)

    def close(self) -> None:
        self.closed = True

    def is_closing(self) -> bool:
        return self.closed

    def get_extra_info(self, name: str, default: Any) -> Any:
        return name, default

    def turn(self) -> None:
        due, self.due[:] = list(self.due), []
        for one in due:
            one()


def test_head_and_body_leave_together_in_the_next_turn() -> None:
    wire = Wire()
    wire.joined.write(b"head ")
    wire.joined.write(b"body")
    assert wire.sent == []
    wire.turn()
    wire.joined.write(b"more")
    wire.turn()
    wire.turn()
    assert wire.sent == [b"head body", b"more"]


def test_much_leaves_at_once_so_that_a_slow_reader_stops_the_writer() -> None:
    wire = Wire()
    wire.joined.write(b"head")
    wire.joined.write(b"x" * MOST_BYTES)
    assert wire.sent == [b"head" + b"x" * MOST_BYTES]
    wire.turn()
    assert len(wire.sent) == 1


def test_all_leaves_before_it_is_closed_and_nothing_afterwards() -> None:
    wire = Wire()
    wire.joined.write(b"last words")
    wire.joined.close()
    assert (wire.sent, wire.closed, wire.joined.is_closing()) == ([b"last words"], True, True)
    wire.joined.write(b"too late")
    wire.turn()
    assert wire.sent == [b"last words"]


def test_it_tells_of_the_connection_what_the_transport_does() -> None:
    assert Wire().joined.get_extra_info("peername", 1) == ("peername", 1)
