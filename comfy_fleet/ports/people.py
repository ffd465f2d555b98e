"""Tenants, users and keys, where they are stored."""

from collections.abc import Callable, Sequence
from typing import Protocol

from comfy_fleet.domain.people import AccessKey, People


class PeopleStore(Protocol):
    """The one place that has them; every process keeps a copy in memory."""

    async def version(self) -> str:
        """Return a word that is another one after each change; empty if nothing was ever stored."""

    async def read(self) -> tuple[str, People]:
        """Return all of them, and the version that they are."""

    async def change(self, update: Callable[[People], People]) -> People:
        """Store what a function makes of them, and return that.

        The function is called again if somebody else has changed them meanwhile; what it raises is raised.
        """

    async def left_by(self, user: str) -> Sequence[str]:
        """Return in words what there is of a user's name, such as ``jobs``; empty if there is nothing."""


class KeysFile(Protocol):
    """An operator's file of keys."""

    def read(self) -> Sequence[AccessKey] | None:
        """Return its keys; None if it is the same as at the last call.

        Raises:
            ConfigError: It can't be used; told once for each content.
        """
