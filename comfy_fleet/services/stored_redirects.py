"""Finds where in a store an output's bytes are, so that a client can be sent there for them."""

import logging
from collections import OrderedDict
from collections.abc import Callable
from typing import Literal

from comfy_fleet.domain.errors import ObjectError
from comfy_fleet.domain.jobs.asset import Asset
from comfy_fleet.domain.jobs.job import Job
from comfy_fleet.domain.principal import DEFAULT_TENANT
from comfy_fleet.domain.stores.named_store import NamedStore
from comfy_fleet.domain.stores.output_plan import StoreState, object_metadata
from comfy_fleet.ports.jobs import JobStore
from comfy_fleet.ports.stores import ObjectStorage
from comfy_fleet.services.store_book import StoreBook
from comfy_fleet.timeouts import Timeout

logger = logging.getLogger(__name__)

GOOD_S = 300.0
"""For how long a client may begin to read what it is sent to; a store's own bound may be shorter."""
KNOWN_S = 60.0
"""For how long an object counts as there after the store has said so."""
_WITHIN_S = 3.0
_MOST_KNOWN = 10_000


class StoredRedirects:
    """Signs URLs of objects that are outputs as they are.

    Args:
        jobs: Reads jobs.
        book: The stores.
        objects: Asks them.
        clock: Seconds, of any kind.
    """

    def __init__(
        self, jobs: JobStore, book: StoreBook, objects: ObjectStorage, *, clock: Callable[[], float]
    ) -> None:
        self._jobs = jobs
        self._book = book
        self._objects = objects
        self._clock = clock
        self._known: OrderedDict[tuple[NamedStore, str, str, str], float] = OrderedDict()

    async def url(
        self, asset: Asset, *, asked: bool, method: Literal["GET", "HEAD"], most_s: float = GOOD_S
    ) -> str | None:
        """Return a URL of a store that gives these very bytes for a while; None if there is none.

        Args:
            asset: A file that the caller may read.
            asked: Whether this is wanted whatever the store's own option says.
            method: How the URL will be requested.
            most_s: Longest life of the URL, in seconds.
        """
        if asset.job_id is None or most_s < 1:
            return None
        stores = await self._book.all()
        if not any(one.signs and (asked or one.redirect) for one in stores.values()):
            return None
        job = await self._jobs.get(asset.job_id)
        found = None if job is None else _object_of(job, asset)
        store = None if found is None else stores.get(found[0])
        if job is None or found is None or store is None or not store.signs:
            return None
        if not (asked or store.redirect) or not store.serves(job.tenant or DEFAULT_TENANT):
            return None
        key = found[1]
        try:
            async with Timeout(_WITHIN_S):
                if not await self._is_there(store, key, job.id, asset):
                    return None
                return await self._objects.signed_url(store, key, method=method, most_s=min(GOOD_S, most_s))
        except (ObjectError, TimeoutError) as error:
            logger.warning("no redirect to a store", extra={"store": store.name, "reason": str(error)})
            return None

    async def _is_there(self, store: NamedStore, key: str, job_id: str, asset: Asset) -> bool:
        """Return whether the object is this output: another job may have replaced it."""
        about, now = (store, key, job_id, asset.hash), self._clock()
        if now - self._known.get(about, float("-inf")) < KNOWN_S:
            return True
        there = await self._objects.holds(
            store, key, size=asset.size_bytes, metadata=object_metadata(job_id, asset.hash)
        )
        self._known.pop(about, None)
        if there:
            self._known[about] = now
            if len(self._known) > _MOST_KNOWN:
                self._known.popitem(last=False)
        return there


def _object_of(job: Job, asset: Asset) -> tuple[str, str] | None:
    """Return the store and the key under which an output is stored as it is."""
    if job.output is None:
        return None
    for output in job.outputs:
        if output.asset_id != asset.id or output.withheld or output.temporary:
            continue
        stored = job.stored_of(output)
        if stored is None or stored.state is not StoreState.STORED:
            continue
        if not job.output.converts(output.kind, output.content_type):
            return stored.store, stored.key
    return None
