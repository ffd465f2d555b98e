"""Tenants, users and keys in Redis (port ``PeopleStore``)."""

import contextlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar
from uuid import uuid4

import orjson

from comfy_fleet.adapters.redis.client import FleetRedis
from comfy_fleet.adapters.redis.job_records import Complaints
from comfy_fleet.adapters.redis.scripts import Scripts
from comfy_fleet.domain.errors import BadInput
from comfy_fleet.domain.graphs.folders import Folder
from comfy_fleet.domain.people import AccessKey, People, Tenant, User
from comfy_fleet.domain.records import UNREADABLE, from_fields
from comfy_fleet.domain.roles import Role, parse_role

T = TypeVar("T")
R = TypeVar("R", Tenant, User, AccessKey)


class RedisPeople:
    """:class:`comfy_fleet.ports.people.PeopleStore`.

    Args:
        redis: A client that returns bytes.
    """

    def __init__(self, redis: FleetRedis) -> None:
        self._redis: Any = redis  # redis-py can't say that this client answers in bytes
        self._keys = redis.keyspace
        self._scripts = Scripts(redis)
        self._complaints = Complaints()

    async def version(self) -> str:
        """See :meth:`comfy_fleet.ports.people.PeopleStore.version`."""
        found: bytes | None = await self._redis.get(self._keys.people_version)
        return (found or b"").decode(errors="replace")

    async def read(self) -> tuple[str, People]:
        """See :meth:`comfy_fleet.ports.people.PeopleStore.read`."""
        while True:
            # Not in one transaction, which a full Redis refuses: a change in between shows in the version.
            async with self._redis.pipeline(transaction=False) as pipe:
                pipe.get(self._keys.people_version)
                pipe.hgetall(self._keys.tenants)
                pipe.hgetall(self._keys.users)
                pipe.hgetall(self._keys.access_keys)
                pipe.get(self._keys.people_version)
                before, tenants, users, keys, after = await pipe.read()
            if before == after:
                break
        people = People(
            tenants=_closed(tenants) | self._records("tenant", tenants, lambda raw: from_fields(Tenant, raw)),
            users=self._records("user", users, lambda raw: from_fields(User, raw)),
            keys=self._records("key", keys, _key),
        )
        return (before or b"").decode(errors="replace"), people

    async def change(self, update: Callable[[People], People]) -> People:
        """See :meth:`comfy_fleet.ports.people.PeopleStore.change`."""
        while True:
            version, before = await self.read()
            after = update(before)
            changes = {
                "tenants": _changes(before.tenants, after.tenants),
                "users": _changes(before.users, after.users),
                "keys": _changes(before.keys, after.keys),
            }
            if not any(changes.values()):
                return after
            if await self._scripts.call("change_people", read=version, version=uuid4().hex, **changes):
                return after

    async def left_by(self, user: str) -> Sequence[str]:
        """See :meth:`comfy_fleet.ports.people.PeopleStore.left_by`."""
        keys = self._keys
        places = {
            "jobs": [keys.jobs_of(user), keys.history(user)],
            "uploads": [keys.asset_uploads(user, folder) for folder in Folder],
            "drafts": [keys.drafts(user)],
            "files in the editor": [keys.user_files(user)],
            "messages to webhooks": [keys.webhooks_of(user)],
        }
        async with self._redis.pipeline(transaction=False) as pipe:
            for names in places.values():
                pipe.exists(*names)
            pipe.hexists(keys.webhook_secrets, user)
            *found, secret = await pipe.read()
        left = [what for what, count in zip(places, found, strict=True) if count]
        return [*left, "a webhook secret"] if secret else left

    def _records(
        self, what: str, records: Mapping[bytes, bytes], read: Callable[[Mapping[str, Any]], T]
    ) -> dict[str, T]:
        found: dict[str, T] = {}
        for name, record in records.items():
            try:
                found[name.decode()] = read(orjson.loads(record))
            except (*UNREADABLE, BadInput) as error:  # whoever it was about has no rights by it
                self._complaints.about(what, name.decode(errors="backslashreplace"), error)
        return found


def _closed(records: Mapping[bytes, bytes]) -> dict[str, Tenant]:
    """Return what counts instead of records that can't be read: nothing is shared, and no job is made.

    A newer version may have written a limit in words that are not known here. Without its record, a tenant
    would have no limits at all.
    """
    found = {}
    for raw in records:
        with contextlib.suppress(UnicodeDecodeError, BadInput):
            found[raw.decode()] = Tenant(name=raw.decode(), limits={"live": "0", "stored": "0"})
    return found


def _key(raw: Mapping[str, Any]) -> AccessKey:
    words = raw.get("roles") or ()
    known = [role for word in words if (role := _role(word)) is not None]
    if words and not known:  # only a newer version knows what it may do, and no role would mean `submit`
        raise ValueError("no role of it is known")
    return from_fields(AccessKey, {**raw, "roles": frozenset(known)})


def _role(word: Any) -> Role | None:
    try:
        return parse_role(word)
    except (ValueError, TypeError):
        return None


def _changes(before: Mapping[str, R], after: Mapping[str, R]) -> dict[str, str | bool]:
    """Return the records that are new or other ones, by name, and False for those that go."""
    changed: dict[str, str | bool] = {
        name: _dump(one) for name, one in after.items() if before.get(name) != one
    }
    return changed | {name: False for name in before if name not in after}


def _dump(one: Tenant | User | AccessKey) -> str:
    record = {name: value for name, value in vars(one).items() if value is not None}
    if isinstance(one, AccessKey):
        record["roles"] = sorted(one.roles)
    return orjson.dumps(record).decode()
