"""An answer's head leaves with the first part of its body."""

import asyncio
from collections.abc import Callable
from typing import Any, cast

from comfy_fleet.api.joined_writes import JoinedWrites


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


HEAD = b"HTTP/1.1 200 OK\r\n\r\n"


def test_the_head_leaves_with_the_first_part_and_the_rest_as_it_comes() -> None:
    wire = Wire()
    wire.joined.write(HEAD)
    assert wire.sent == []
    wire.joined.write(b"body")
    wire.joined.write(b"more")
    wire.turn()
    assert wire.sent == [HEAD + b"body", b"more"]


def test_a_head_alone_waits_for_one_turn() -> None:
    wire = Wire()
    wire.joined.write(HEAD)
    wire.turn()
    wire.joined.write(b"body")
    assert wire.sent == [HEAD, b"body"]


def test_all_leaves_before_it_is_closed_and_nothing_afterwards() -> None:
    wire = Wire()
    wire.joined.write(HEAD)
    wire.joined.close()
    assert (wire.sent, wire.closed, wire.joined.is_closing()) == ([HEAD], True, True)
    wire.joined.write(HEAD)
    wire.turn()
    assert wire.sent == [HEAD]


def test_it_tells_of_the_connection_what_the_transport_does() -> None:
    assert Wire().joined.get_extra_info("peername", 1) == ("peername", 1)
