"""The keys that count, in the memory of a process: those of the store, and those of an operator's file.

Every process has all of them, so that no key that somebody shows, right or wrong, makes a call to the store.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from comfy_fleet.domain.errors import ConfigError, StoreDown
from comfy_fleet.domain.limits import (
    NO_LIMITS,
    Limits,
    ScopedLimits,
    least,
    limits_of_roles,
    stored_limits,
)
from comfy_fleet.domain.people import AccessKey, People, TenantSharing, User, digest_of
from comfy_fleet.domain.principal import Principal, PrincipalLimits
from comfy_fleet.domain.roles import Role
from comfy_fleet.ports.people import KeysFile, PeopleStore

logger = logging.getLogger(__name__)

EVERY_S = 0.5
"""How often the store and the file are looked at: a change counts within a second in every process."""


class KeyRing:
    """All keys, as they were half a second ago.

    Args:
        limits: How much each caller may use at once.
        by_role: Limits by role.
        store: Where they are stored; None: only the file counts.
        file: An operator's file; None for none.
        clock: Unix seconds.
        every_s: How often both are looked at.
    """

    def __init__(
        self,
        limits: PrincipalLimits,
        *,
        by_role: Mapping[Role, Limits] | None = None,
        store: PeopleStore | None = None,
        file: KeysFile | None = None,
        clock: Callable[[], float] = time.time,
        every_s: float = EVERY_S,
    ) -> None:
        self._limits = limits
        self._by_role = by_role or {}
        self._store = store
        self._file = file
        self._clock = clock
        self._every_s = every_s
        self._version: str | None = None
        self._people = People()
        self._stored = People()
        self._of_file: Sequence[AccessKey] = ()
        self._by_digest: Mapping[str, AccessKey] = {}
        self._by_id: Mapping[str, AccessKey] = {}
        self._principals: dict[str, Principal] = {}
        self._turn = asyncio.Lock()

    @property
    def people(self) -> People:
        """Everybody: those who are stored, and the file's names and keys."""
        return self._people

    @property
    def file_owners(self) -> tuple[str, ...]:
        """The file's names, in its order."""
        return tuple(dict.fromkeys(key.user for key in self._of_file))

    # -- who is who ----------------------------------------------------------

    def find(self, shown: str) -> Principal | None:
        """Return whose key this is; None if it is nobody's, or has expired."""
        # Who guesses can't choose the hash, so the time of this look-up tells nothing about any key.
        key = self._by_digest.get(digest_of(shown))
        return None if key is None or not key.holds(self._clock()) else self._principal(key)

    def by_id(self, id_: str) -> Principal | None:
        """Return who has the key with an id; None if there is none, or it has expired."""
        key = self._by_id.get(id_)
        return None if key is None or not key.holds(self._clock()) else self._principal(key)

    def holds(self, id_: str) -> bool:
        """Return whether a key is still good; what is no key's (an empty id) always is."""
        key = self._by_id.get(id_)
        return not id_ or (key is not None and key.holds(self._clock()))

    def digest(self, id_: str) -> bytes | None:
        """Return a key's hash."""
        key = self._by_id.get(id_)
        return None if key is None else bytes.fromhex(key.digest)

    def file_ids(self) -> Sequence[str]:
        """Return the ids of the file's keys."""
        return [key.id for key in self._of_file]

    def seen_by(self, who: Principal) -> Sequence[str]:
        """Return whose jobs a principal sees: their own, and in a shared tenant those of its members."""
        tenant = self._people.tenant_of(who.owner)
        if tenant.sharing is not TenantSharing.SHARED:
            return [who.owner]
        return sorted({who.owner, *self._people.members(tenant.name)})

    def _principal(self, key: AccessKey) -> Principal:
        if (known := self._principals.get(key.id)) is None:
            known = self._principals[key.id] = self.principal(
                key.user, key.roles, key=key.id, limits=stored_limits(key.limits)
            )
        return known

    def principal(
        self, user: str, roles: frozenset[Role], *, key: str = "", limits: Limits = NO_LIMITS
    ) -> Principal:
        """Return who acts for a user.

        Args:
            user: The user's name, stored or not.
            roles: What they may do.
            key: The id of their key, if they showed one.
            limits: That key's.
        """
        tenant = self._people.tenant_of(user)
        quotas = [
            ScopedLimits(
                scope="user", subject=user, owners=(user,), limits=limits_of_roles(self._by_role, roles)
            ),
            ScopedLimits(scope="key", subject=key, owners=(user,), limits=limits),
        ]
        if tenant.limits:
            quotas.append(
                ScopedLimits(
                    scope="tenant",
                    subject=tenant.name,
                    owners=tuple(self._people.members(tenant.name)),
                    limits=stored_limits(tenant.limits),
                )
            )
        found = tuple(one for one in quotas if one.limits != NO_LIMITS)
        streams, sockets = least(found, "streams"), least(found, "sockets")
        own = self._limits
        return Principal(
            owner=user,
            tenant=tenant.name,
            key=key,
            roles=roles,
            limits=PrincipalLimits(
                streams=min(own.streams, streams[0]) if streams else own.streams,
                sockets=min(own.sockets, sockets[0]) if sockets else own.sockets,
            ),
            quotas=found,
        )

    def quotas_of(self, user: str) -> tuple[ScopedLimits, ...]:
        """Return the limits of a user and of their tenant, whichever of their keys is used.

        What role somebody has whom a proxy names, only the proxy knows: their tenant's limits count.
        """
        roles = [key.roles for key in self._people.keys_of(user)]
        found = self.principal(user, frozenset().union(*roles)).quotas
        return found if roles else tuple(one for one in found if one.scope == "tenant")

    # -- what has changed ----------------------------------------------------

    def read_file(self) -> None:
        """Read the file, if it has changed.

        Raises:
            ConfigError: It can't be used; its last keys count.
        """
        if self._file is not None and (keys := self._file.read()) is not None:
            self._of_file = keys
            self.take(self._stored)

    async def ready(self) -> None:
        """Read the store, unless that was done since this process began.

        Raises:
            StoreDown: It can't be read, so nobody knows yet which keys there are.
        """
        if self._store is not None and self._version is None:
            await self.refresh()

    async def refresh(self) -> None:
        """Read what has changed in the store.

        Raises:
            StoreDown: It can't be read; the last keys count.
        """
        if self._store is None:
            return
        async with self._turn:
            if await self._store.version() != self._version:
                self._version, people = await self._store.read()
                self.take(people)

    async def change(self, update: Callable[[People], People]) -> None:
        """Change who is stored. It counts here at once.

        Raises:
            StoreDown: It can't be stored.
        """
        if self._store is None:
            raise StoreDown("there is no store of keys")
        await self._store.change(update)
        await self.refresh()

    async def left_by(self, user: str) -> Sequence[str]:
        """Return what there is of a name that nobody has, in words: of somebody who was removed, perhaps.

        Raises:
            StoreDown: That can't be read.
        """
        return () if self._store is None else await self._store.left_by(user)

    async def run(self) -> None:
        """Read what has changed, as long as the process runs."""
        while True:
            try:
                self.read_file()
            except ConfigError as error:
                logger.error("keys file not taken over: the keys before count", extra={"why": error.message})
            try:
                await self.refresh()
            except StoreDown as error:
                logger.debug("keys not looked at", extra={"error": error.message})
            await asyncio.sleep(self._every_s)

    def take(self, people: People) -> None:
        """Count these from now on, beside the file's."""
        self._stored = people
        stored = {id_: key for id_, key in people.keys.items() if not key.from_file}
        users = {name: User(name=name) for name in self.file_owners}
        keys = {key.id: key for key in self._of_file} | stored
        self._people = replace(people, users={**users, **people.users}, keys=keys)
        self._principals = {}
        self._by_id = keys
        self._by_digest = {key.digest: key for key in keys.values()}
