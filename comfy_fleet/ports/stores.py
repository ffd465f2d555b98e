"""Stores, where they are named, and what is in them."""

from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from math import inf
from pathlib import Path
from typing import Literal, Protocol

from comfy_fleet.domain.stores.named_store import NamedStore


@dataclass(frozen=True, kw_only=True)
class ObjectSource:
    """What is to be put into a store.

    Attributes:
        content: The bytes, or a file that has them.
        size: How many these are.
        content_type: Of the object.
        metadata: Written beside it; names and values in ASCII.
    """

    content: bytes | Path
    size: int
    content_type: str
    metadata: Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class ObjectContent:
    """An object that is read.

    Attributes:
        size: Its bytes; 0 if it is unchanged.
        etag: Changes with its content; empty: the store has none.
        unchanged: Whether it is what the reader has already.
        chunks: Its bytes as they come; raises ObjectError.
    """

    size: int
    etag: str
    unchanged: bool
    chunks: AsyncIterator[bytes] = field(repr=False)


class NamedStores(Protocol):
    """The record of all stores; their credentials are sealed in it."""

    async def read(self) -> Mapping[str, NamedStore]:
        """Return all, by name. Raises StoreDown."""

    async def save(self, store: NamedStore, *, new: bool) -> bool:
        """Write a store; False if it is to be new and there is one of its name. Raises StoreDown."""

    async def drop(self, name: str) -> bool:
        """Remove a store; False if there is none. Raises StoreDown."""


class ObjectStorage(Protocol):
    """What is in stores. A client for each is kept; every call is bounded in time."""

    async def put(self, store: NamedStore, key: str, source: ObjectSource, *, replace: bool) -> None:
        """Write an object; what this job has written before counts as written.

        Raises:
            ObjectTaken: It is not to be replaced, and another one is there.
            ObjectError: The store did not take it.
        """

    def read(
        self, store: NamedStore, key: str, *, etag: str, within_s: float
    ) -> AbstractAsyncContextManager[ObjectContent | None]:
        """Read an object; None if there is none.

        Args:
            store: Where.
            key: Which.
            etag: That of what the reader has; empty: nothing.
            within_s: Most time for everything, the context's body included.

        Raises:
            ObjectError: The store did not give it, or not in time.
        """

    async def delete(self, store: NamedStore, key: str) -> None:
        """Delete an object; one that is not there counts as deleted. Raises ObjectError."""

    async def holds(
        self, store: NamedStore, key: str, *, metadata: Mapping[str, str], size: int | None = None
    ) -> bool:
        """Return whether there is an object with this written beside it, and of this size if one is given.

        Raises:
            ObjectError: The store did not say.
        """

    async def signed_url(
        self, store: NamedStore, key: str, *, method: Literal["GET", "HEAD"] = "GET", most_s: float = inf
    ) -> str | None:
        """Return a URL that is good for a while; None if the store can sign none.

        Args:
            store: Where.
            key: Which.
            method: How it will be requested.
            most_s: Longest life of the URL, in seconds; the store's own may be shorter.

        Raises:
            ObjectError: It can't be made.
        """

    async def probe(self, store: NamedStore, *, write: bool) -> None:
        """See if a store answers, with ``write`` by writing, reading and deleting a small object.

        Raises:
            ObjectError: It does not, or it refuses.
        """
