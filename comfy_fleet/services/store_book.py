"""The stores that there are, in a process's memory: who may use which, and what opens them."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import orjson

from comfy_fleet.domain.errors import BadInput, Conflict, NotFound
from comfy_fleet.domain.stores.named_store import (
    MOST_STORES,
    NamedStore,
    checked_secrets,
    default_of,
)
from comfy_fleet.ports.stores import NamedStores, ObjectStorage
from comfy_fleet.services.webhook_secrets import SecretSealer

FRESH_S = 1.0
"""For how long what was read counts: a change is seen everywhere within it."""


class StoreBook:
    """Finds and changes stores.

    Args:
        records: Where they are kept.
        objects: Asks them.
        sealer: Encrypts their credentials.
        clock: Seconds, of any kind.
    """

    def __init__(
        self,
        records: NamedStores,
        objects: ObjectStorage,
        sealer: SecretSealer,
        *,
        clock: Callable[[], float],
    ) -> None:
        self._records = records
        self._objects = objects
        self._sealer = sealer
        self._clock = clock
        self._known: Mapping[str, NamedStore] = {}
        self._read_at = float("-inf")
        self._turn = asyncio.Lock()

    async def all(self, *, fresh: bool = False) -> Mapping[str, NamedStore]:
        """Return all stores, by name, as they were a second ago at the earliest.

        Raises:
            StoreDown: Redis does not answer.
        """
        if fresh or self._clock() - self._read_at >= FRESH_S:
            async with self._turn:
                asked = self._clock()
                if fresh or asked - self._read_at >= FRESH_S:
                    self._known, self._read_at = await self._records.read(), asked
        return self._known

    async def get(self, name: str, *, fresh: bool = False) -> NamedStore:
        """Return a store.

        Raises:
            NotFound: There is none of this name.
        """
        found = (await self.all(fresh=fresh)).get(name) or (await self.all(fresh=True)).get(name)
        if found is None:
            raise NotFound(f"no store {name[:80]!r}", details={"store": name[:80]})
        return found

    async def usable(self, name: str, tenant: str) -> NamedStore:
        """Return a store that a tenant may use.

        Raises:
            NotFound: There is none of this name that it may use; which of both is not told.
        """
        stores = await self.all()
        if name not in stores:
            stores = await self.all(fresh=True)
        found = stores.get(name)
        if found is None or not found.serves(tenant):
            own = self._named(stores, tenant)
            raise NotFound(
                f"there is no store {name[:80]!r} for you: {', '.join(own[:20]) or 'there is none at all'}",
                details={"store": name[:80], "stores": own[:100]},
            )
        return found

    async def default(self, tenant: str) -> NamedStore | None:
        """Return a tenant's default store; None if it has none."""
        return default_of(list((await self.all()).values()), tenant)

    @staticmethod
    def _named(stores: Mapping[str, NamedStore], tenant: str) -> Sequence[str]:
        return sorted(one.name for one in stores.values() if one.serves(tenant))

    # -- changes -----------------------------------------------------------------

    async def add(
        self, store: NamedStore, secrets: Mapping[str, str] | None, *, replaces: bool, probe: bool
    ) -> NamedStore:
        """Keep a store, once it was tried.

        Args:
            store: It, without credentials.
            secrets: Its credentials; None: those that it has, if it replaces one, else those of the machine.
            replaces: Whether it may take the place of one of its name.
            probe: Whether it is tried first: an object is written, read and deleted.

        Raises:
            BadInput: Its credentials are none.
            Conflict: There is one of its name already, or too many, or its tenant has another default.
            ObjectError: It does not answer, or refuses.
        """
        stores = await self.all(fresh=True)
        before = stores.get(store.name)
        if before is not None and not replaces:
            raise Conflict(
                f"there is a store {store.name!r} already: send replace=true (`fleet store add --replace`)",
                details={"field": "name"},
            )
        if before is None and len(stores) >= MOST_STORES:
            raise Conflict(f"there are {MOST_STORES} stores already: remove one that is not needed")
        if secrets is None and before is not None and before.sealed:
            if (before.url, before.endpoint, before.account) != (store.url, store.endpoint, store.account):
                raise BadInput(
                    "credentials: another url, endpoint or account needs its credentials again",
                    details={"field": "credentials"},
                )
            store = replace(store, sealed=before.sealed)
        elif checked := checked_secrets(store.kind, secrets or {}):
            store = replace(store, sealed=self._sealer.seal(orjson.dumps(dict(checked))).decode())
        for tenant in store.default_for:
            others = [one for one in stores.values() if one.name != store.name and tenant in one.default_for]
            if others:
                raise Conflict(
                    f"default_for: tenant {tenant!r} has the default store {others[0].name!r} already",
                    details={"field": "default_for", "store": others[0].name},
                )
        if before is not None:
            store = replace(store, created_at=before.created_at)
        if probe:
            await self._objects.probe(store, write=True)
        if not await self._records.save(store, new=not replaces):
            raise Conflict(f"there is a store {store.name!r} already", details={"field": "name"})
        await self.all(fresh=True)
        return store

    async def test(self, name: str) -> NamedStore:
        """Try a store: write, read and delete an object.

        Raises:
            NotFound: There is none of this name.
            ObjectError: It does not answer, or refuses.
        """
        store = await self.get(name, fresh=True)
        await self._objects.probe(store, write=True)
        return store

    async def drop(self, name: str) -> None:
        """Forget a store and its credentials. What is in it stays.

        Raises:
            NotFound: There is none of this name.
        """
        if not await self._records.drop(name):
            raise NotFound(f"no store {name[:80]!r}", details={"store": name[:80]})
        await self.all(fresh=True)
