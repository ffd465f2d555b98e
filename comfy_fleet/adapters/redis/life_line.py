"""A dispatcher's life line (port ``LifeLine``): a subscription, which ends with its connection."""

from contextlib import AbstractAsyncContextManager
from typing import Any

from comfy_fleet.adapters.redis.events import RedisEvents
from comfy_fleet.adapters.redis.keys import Keyspace


class RedisLifeLine:
    """One dispatcher's.

    Args:
        events: The process's subscriptions.
        keys: Makes the channel's name.
        id_: Drawn anew in each process: another one of the same name has another.
    """

    def __init__(self, events: RedisEvents, keys: Keyspace, id_: str) -> None:
        self.id = id_
        self._events = events
        self._channel = keys.alive(id_)

    def held(self) -> AbstractAsyncContextManager[Any]:
        """Hold it for as long as the block lasts."""
        return self._events.channel(self._channel)

    def unbroken_since(self) -> float | None:
        """Return since when it has been held without a break (monotonic seconds); None: it is not held."""
        return self._events.unbroken_since(self._channel)
