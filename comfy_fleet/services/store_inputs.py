"""Lets jobs read inputs from stores, where operators allow it, and within the limits of inputs by URL."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from comfy_fleet.domain.errors import NotFound, ObjectError, OutboundFailed, OutboundRefused
from comfy_fleet.domain.people import Tenant
from comfy_fleet.domain.stores.input_url import StoreInput, parse_store_input
from comfy_fleet.domain.stores.named_store import NamedStore
from comfy_fleet.ports.outbound import OutboundAnswer
from comfy_fleet.ports.stores import ObjectStorage
from comfy_fleet.services.store_book import StoreBook

_OK, _UNCHANGED = 200, 304


class StoreInputs:
    """Finds objects that are inputs.

    Args:
        book: The stores.
        objects: Asks them.
        tenant_of: Returns an owner's tenant, as it is now.
    """

    def __init__(self, book: StoreBook, objects: ObjectStorage, tenant_of: Callable[[str], Tenant]) -> None:
        self._book = book
        self._objects = objects
        self._tenant_of = tenant_of

    async def check(self, owner: str, url: str) -> None:
        """Check that an owner's jobs may read from a URL's store. The object itself is not asked for.

        Raises:
            OutboundRefused: They may not.
        """
        await self._found(owner, url)

    @asynccontextmanager
    async def get(
        self, owner: str, url: str, *, etag: str, most_bytes: int, within_s: float
    ) -> AsyncIterator[OutboundAnswer]:
        """Read an object, as :meth:`comfy_fleet.ports.outbound.GuardedCalls.get` reads a URL.

        Args:
            owner: Whose job it is for.
            url: It.
            etag: That of what is here already; empty: nothing is. If it is still the same, the status is 304.
            most_bytes: Most bytes of it.
            within_s: Most time for everything, the context's body included.

        Raises:
            OutboundRefused: They may not, by now; or there is no such object, or it is too large.
            OutboundFailed: The store did not give it.
        """
        store, named = await self._found(owner, url)
        try:
            async with self._objects.read(store, named.key, etag=etag, within_s=within_s) as found:
                if found is None:
                    raise OutboundRefused(f"{url} is not there: the store has no such object")
                if found.size > most_bytes:
                    raise OutboundRefused(f"{url} has {found.size} bytes, more than {most_bytes}")
                yield OutboundAnswer(
                    url=url,
                    status=_UNCHANGED if found.unchanged else _OK,
                    headers={"etag": found.etag},
                    chunks=found.chunks,
                )
        except ObjectError as error:
            raise OutboundFailed(f"{url}: {error.message}") from error

    async def _found(self, owner: str, url: str) -> tuple[NamedStore, StoreInput]:
        named = parse_store_input(url)
        try:
            store = await self._book.usable(named.store, self._tenant_of(owner).name)
        except NotFound as error:
            raise OutboundRefused(error.message, details=error.details) from None
        if not store.inputs:
            raise OutboundRefused(
                f"store {store.name!r} is not for inputs: operators allow it by `fleet store add --inputs`"
            )
        if not named.fits(store):
            raise OutboundRefused(
                f"store {store.name!r} is none of {named.scheme}://: write store://{store.name}/KEY"
            )
        return store, named
