"""Which websockets clients have, at any API process."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientSocket:
    """A client's newest websocket.

    Attributes:
        owner: Whose client it is.
        client_id: The client, in its own words.
        socket: The websocket's id, drawn anew for each.
        since: When it was opened, in Unix seconds.
        open: Whether it is still open.
        shown: The job whose prompt it shows, or None.
        untold: Jobs whose end its client has still to be told; first those that have ended.
        told: Jobs whose end it has certainly got, of the last moments.
        kept_at: The store's time before this state was read.
    """

    owner: str
    client_id: str
    socket: str
    since: float
    open: bool
    shown: str | None
    untold: tuple[str, ...] = ()
    told: tuple[str, ...] = ()
    kept_at: float = 0.0


class SocketStore(Protocol):
    """Websockets of clients. All that is kept is forgotten two minutes after it was written last."""

    async def now(self) -> float:
        """Return the store's Unix seconds, by which jobs' times are noted, too."""

    async def keep(self, sockets: Sequence[ClientSocket]) -> None:
        """Write what is so now."""

    async def last(self, owner: str, client_id: str) -> ClientSocket | None:
        """Return a client's newest websocket, open or not, or None if it has had none lately."""

    async def newest(self, owner: str) -> ClientSocket | None:
        """Return the websocket that was opened last among an owner's open ones, or None."""
