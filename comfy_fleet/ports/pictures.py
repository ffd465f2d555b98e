"""Pictures that were made of others."""

from typing import Protocol


class MadePictures(Protocol):
    """Keeps them for a while, so that they need not be made again. What is kept can be lost at any time."""

    async def size(self, name: str) -> int | None:
        """Return a picture's bytes, or None."""

    async def get(self, name: str) -> bytes | None:
        """Return a picture, or None."""

    async def put(self, name: str, data: bytes) -> None:
        """Keep a picture, if there is room.

        Args:
            name: Equal names mean equal bytes: a hash, and how it was made. Letters, digits and ``-``.
            data: The picture.
        """
