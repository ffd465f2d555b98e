"""Who may use a fleet: tenants, their users, and the users' keys. Nothing here knows a key, only hashes."""

import hashlib
import hmac
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from functools import cached_property
from typing import TypeVar

from comfy_fleet.domain.errors import BadInput, Conflict, NotFound
from comfy_fleet.domain.limits import stored_limits
from comfy_fleet.domain.principal import DEFAULT_TENANT
from comfy_fleet.domain.roles import ROLE_WORDS, Role, parse_role
from comfy_fleet.domain.schedule.owner_weights import LEAST, MOST

KEY_PREFIX = "cfk_"
"""How keys begin that the fleet makes: people and programs that look for leaked keys know them by it."""
KEY_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"
KEY_LENGTH = 43
"""Letters behind the prefix: 256 bits."""
FILE_ID = "file-"
"""How the ids of a keys file's keys begin."""

LEAST_KEY = 16
MOST_NOTE = 200
MOST_TENANTS, MOST_USERS, MOST_KEYS = 1000, 10_000, 20_000
"""Each process has all of them in memory."""
LONGEST_S = 10 * 365 * 86400.0
"""The furthest end of a key."""

T = TypeVar("T")
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.@+-]{0,63}")
_FILE_NAME = re.compile(r"(?!\.{1,2}$)[A-Za-z0-9_.-]{1,64}")


class TenantSharing(StrEnum):
    """What a tenant's users see of each other."""

    PRIVATE = "private"
    """Nothing."""

    SHARED = "shared"
    """Jobs, with their pictures."""


@dataclass(frozen=True, kw_only=True)
class Tenant:
    """People who use the fleet together, such as a customer or a team.

    Attributes:
        sharing: What they see of each other.
        created_at: Unix seconds.
        limits: What all of them together may use, as :func:`comfy_fleet.domain.limits.parse_limits` reads it.
        deny_classes: Classes that their jobs may not use, besides what the fleet denies.
        allow_classes: Classes that their jobs may use, of those that the fleet allows; empty: all of these.
        moderation: What becomes of their jobs while nobody can judge them, see
            :class:`comfy_fleet.domain.moderation.ModerationMode`; empty: what the fleet's setting says.
        retention_s: How long ended jobs and their files stay; 0: as the fleet's setting says.
        share: Its part of the GPUs' time compared with 1, that of a tenant for which nothing is set.
    """

    name: str
    limits: Mapping[str, str] = field(default_factory=dict)
    sharing: TenantSharing = TenantSharing.PRIVATE
    created_at: float = 0.0
    deny_classes: str = ""
    allow_classes: str = ""
    moderation: str = ""
    share: float = 1.0
    retention_s: float = 0.0

    def __post_init__(self) -> None:
        check_person("tenant", self.name)
        if not 0 <= self.retention_s <= LONGEST_S:
            raise BadInput(f"a retention of {self.retention_s:g} s: it must be from 0 to {LONGEST_S:g}")
        if not LEAST <= self.share <= MOST:
            raise BadInput(f"a share of {self.share:g}: it must be from {LEAST:g} to {MOST:g}")
        stored_limits(self.limits)


@dataclass(frozen=True, kw_only=True)
class User:
    """A person or a program. Jobs, assets and workflows are theirs, whichever key they use."""

    name: str
    tenant: str = DEFAULT_TENANT
    created_at: float = 0.0

    def __post_init__(self) -> None:
        check_person("user", self.name)


@dataclass(frozen=True, kw_only=True)
class AccessKey:
    """One key of a user's.

    Attributes:
        id: What it is called; it opens nothing.
        digest: SHA-256 of the key, in hexadecimal digits.
        roles: What it may do.
        expires_at: Unix seconds; None: never.
        note: What its maker wrote about it.
        limits: What may be used with it, as of a tenant.
    """

    id: str
    user: str
    digest: str = field(repr=False)
    roles: frozenset[Role] = field(default_factory=frozenset)
    created_at: float = 0.0
    expires_at: float | None = None
    note: str = ""
    limits: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        stored_limits(self.limits)

    @property
    def from_file(self) -> bool:
        """Whether it is a line of the keys file."""
        return self.id.startswith(FILE_ID)

    def holds(self, now: float) -> bool:
        """Return whether it opens anything at a moment."""
        return self.expires_at is None or now < self.expires_at


@dataclass(frozen=True, kw_only=True)
class People:
    """All tenants, users and keys, by name and by id. Each change returns another value."""

    tenants: Mapping[str, Tenant] = field(default_factory=dict)
    users: Mapping[str, User] = field(default_factory=dict)
    keys: Mapping[str, AccessKey] = field(default_factory=dict)

    def tenant(self, name: str) -> Tenant:
        """Return a tenant; the default one need not be stored.

        Raises:
            NotFound: There is none.
        """
        if (found := self.tenants.get(name)) is not None:
            return found
        if name == DEFAULT_TENANT:
            return Tenant(name=name)
        raise NotFound(f"no tenant {name[:80]!r}", details={"tenant": name[:80]})

    def user(self, name: str) -> User:
        """Return a user.

        Raises:
            NotFound: There is none.
        """
        if (found := self.users.get(name)) is None:
            raise NotFound(f"no user {name[:80]!r}", details={"user": name[:80]})
        return found

    def key(self, id_: str) -> AccessKey:
        """Return a key by its id.

        Raises:
            NotFound: There is none.
        """
        if (found := self.keys.get(id_)) is None:
            raise NotFound(f"no key with the id {id_[:80]!r}", details={"key": id_[:80]})
        return found

    def tenant_of(self, user: str) -> Tenant:
        """Return a user's tenant: the default one for somebody who is not stored."""
        found = self.users.get(user)
        try:
            return self.tenant(found.tenant if found else DEFAULT_TENANT)
        except NotFound:  # a broken record: nobody sees anything of anybody's
            return Tenant(name=found.tenant if found else DEFAULT_TENANT)

    def members(self, tenant: str) -> Sequence[str]:
        """Return the names of a tenant's users, sorted."""
        return self._members.get(tenant, ())

    def keys_of(self, user: str) -> Sequence[AccessKey]:
        """Return a user's keys, the newest first."""
        return self._keys_by_user.get(user, ())

    # Lists ask for each tenant and each user: to look through all of them each time would take minutes.

    @cached_property
    def _members(self) -> Mapping[str, Sequence[str]]:
        found: dict[str, list[str]] = {}
        for user in self.users.values():
            found.setdefault(user.tenant, []).append(user.name)
        return {tenant: tuple(sorted(names)) for tenant, names in found.items()}

    @cached_property
    def _keys_by_user(self) -> Mapping[str, Sequence[AccessKey]]:
        found: dict[str, list[AccessKey]] = {}
        for key in self.keys.values():
            found.setdefault(key.user, []).append(key)
        newest = {
            user: sorted(keys, key=lambda key: (-key.created_at, key.id)) for user, keys in found.items()
        }
        return {user: tuple(keys) for user, keys in newest.items()}

    # -- changes -------------------------------------------------------------

    def add_tenant(self, tenant: Tenant) -> "People":
        """Add a tenant.

        Raises:
            Conflict: There is one of this name, or there are too many.
        """
        if tenant.name in self.tenants:
            raise Conflict(f"there is a tenant {tenant.name!r} already", details={"field": "name"})
        return replace(self, tenants=_more(self.tenants, tenant.name, tenant, MOST_TENANTS, "tenants"))

    def change_tenant(self, tenant: Tenant) -> "People":
        """Replace a tenant's settings.

        Raises:
            NotFound: There is none of this name.
        """
        self.tenant(tenant.name)
        return replace(self, tenants={**self.tenants, tenant.name: tenant})

    def drop_tenant(self, name: str) -> "People":
        """Remove a tenant.

        Raises:
            NotFound: There is none of this name.
            Conflict: It has users.
        """
        self.tenant(name)
        if members := self.members(name):
            raise Conflict(
                f"tenant {name!r} has users: remove them first ({', '.join(members[:5])})",
                details={"users": members[:20]},
            )
        return replace(self, tenants={key: one for key, one in self.tenants.items() if key != name})

    def add_user(self, user: User) -> "People":
        """Add a user.

        Raises:
            Conflict: There is one of this name, or there are too many.
            NotFound: There is no such tenant.
        """
        if user.name in self.users:
            raise Conflict(f"there is a user {user.name!r} already", details={"field": "name"})
        self.tenant(user.tenant)
        return replace(self, users=_more(self.users, user.name, user, MOST_USERS, "users"))

    def drop_user(self, name: str) -> "People":
        """Remove a user and all of their keys.

        Raises:
            NotFound: There is none of this name.
        """
        self.user(name)
        return replace(
            self,
            users={key: one for key, one in self.users.items() if key != name},
            keys={id_: key for id_, key in self.keys.items() if key.user != name},
        )

    def add_key(self, key: AccessKey) -> "People":
        """Add a key.

        Raises:
            NotFound: There is no such user.
            Conflict: There are too many keys.
        """
        self.user(key.user)
        return replace(self, keys=_more(self.keys, key.id, key, MOST_KEYS, "keys"))

    def drop_key(self, id_: str) -> "People":
        """Revoke a key.

        Raises:
            NotFound: There is none.
        """
        self.key(id_)
        return replace(self, keys={other: key for other, key in self.keys.items() if other != id_})

    def rotate_key(self, id_: str, new: AccessKey, *, now: float, grace_s: float) -> "People":
        """Put another key in a key's place, with its user, roles, note and end.

        Args:
            id_: The key that goes.
            new: The one that comes: its id, digest and time count.
            now: The time.
            grace_s: How long the one that goes is good for yet.

        Raises:
            NotFound: There is no such key.
            Conflict: It has expired, or there are too many.
        """
        old = self.key(id_)
        if not old.holds(now):
            raise Conflict(f"key {id_} has expired: make another one for {old.user}", details={"key": id_})
        came = replace(old, id=new.id, digest=new.digest, created_at=new.created_at)
        if grace_s <= 0:
            return self.drop_key(id_).add_key(came)
        ends = min(now + grace_s, math.inf if old.expires_at is None else old.expires_at)
        return replace(self, keys={**self.keys, id_: replace(old, expires_at=ends)}).add_key(came)


def _more(known: Mapping[str, T], name: str, one: T, most: int, what: str) -> Mapping[str, T]:
    if len(known) >= most:
        raise Conflict(f"there are {most} {what} already: remove some that are not needed")
    return {**known, name: one}


def check_person(what: str, name: str) -> str:
    """Return the name of a tenant or user.

    Raises:
        BadInput: It can be none.
    """
    if not _NAME.fullmatch(name) and not _FILE_NAME.fullmatch(name):
        raise BadInput(
            f"{what} {name[:80]!r} must be 1 to 64 of A-Z a-z 0-9 _ . @ + -, not . or .., "
            "and with @ or + begin with a letter, a digit or _",
            details={"field": "name", "value": name[:80]},
        )
    return name


def digest_of(key: str) -> str:
    """Return what is stored of a key.

    A fast hash is right here: what it hashes is random and long, so that no list of likely keys exists.
    """
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest()


def _file_id(digest: str, secret: bytes) -> str:
    return FILE_ID + hmac.new(secret, digest.encode(), hashlib.sha256).hexdigest()[:12]


def parse_keys(text: str, where: str, *, secret: bytes = b"") -> Sequence[AccessKey]:
    """Return the keys of a keys file: lines ``NAME KEY`` or ``NAME KEY ROLE``, ``#`` begins a comment.

    Args:
        text: The file's content.
        where: What errors call it.
        secret: Keys' ids follow from it, too: they say nothing about the keys, and are the same everywhere.

    Raises:
        BadInput: A line is wrong, or there is no key. No error repeats a key.
    """
    keys: dict[str, AccessKey] = {}
    for number, line in enumerate(text.splitlines(), 1):
        words = line.partition("#")[0].split()
        if not words:
            continue
        try:
            roles = frozenset(parse_role(word) for word in words[2:])
        except ValueError:
            roles = None
        if len(words) not in (2, 3) or not _FILE_NAME.fullmatch(words[0]) or roles is None:
            raise BadInput(
                f"{where}, line {number}: must be `NAME KEY` or `NAME KEY ROLE`; a ROLE is "
                f"{', '.join(ROLE_WORDS[:-1])} or {ROLE_WORDS[-1]}"
            )
        if len(words[1]) < LEAST_KEY:
            raise BadInput(f"{where}, line {number}: a key must have at least {LEAST_KEY} characters")
        digest = digest_of(words[1])
        made = AccessKey(id=_file_id(digest, secret), user=words[0], digest=digest, roles=roles)
        if keys.setdefault(digest, made).user != words[0]:
            raise BadInput(f"{where}, line {number}: {keys[digest].user} has this key already")
        keys[digest] = made
    if not keys:
        raise BadInput(f"{where} holds no key: add a line `NAME KEY`")
    return tuple(keys.values())
