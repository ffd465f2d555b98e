"""Identifies callers: by API keys from a file, or everybody on this machine."""

import hashlib
import hmac
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from comfy_fleet.api.credentials import Credentials
from comfy_fleet.api.errors import HttpError
from comfy_fleet.api.host_names import is_loopback
from comfy_fleet.api.origins import Origin
from comfy_fleet.domain.errors import ConfigError
from comfy_fleet.domain.principal import Principal, PrincipalLimits, Role
from comfy_fleet.ports.sessions import Sessions
from comfy_fleet.settings import Settings

LOCAL = "local"
HANDED_OVER = "handed over"
"""The purpose of a code that brings a sign-in from the console's origin to the editor's."""
_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_ROLES = {"admin": Role.ADMIN, "artist": Role.ARTIST}
_KEY_CHARS = 16


@dataclass(frozen=True, kw_only=True)
class _Key:
    principal: Principal
    digest: bytes


@dataclass(frozen=True, kw_only=True)
class Identity:
    """Who makes a request, and how that was shown.

    Attributes:
        principal: Who it is, with the roles that count at the request's origin.
        session: The session's token, if it is the session that counts; else empty.
        by_header: Whether a key in a header showed it, or the agents' token: what a browser adds by itself
            is none, nor what a page's address holds.
        more_elsewhere: Whether it is an operator, which does not count at this origin.
    """

    principal: Principal
    session: str = ""
    by_header: bool = False
    more_elsewhere: bool = False


class Keys:
    """The API keys; only their hashes are kept in memory.

    Args:
        limits: How much each caller may use at once.
        keys: Hashes of keys; without any, every caller is :data:`LOCAL` and may do everything.
        agent_token: The token that agents show instead.
    """

    def __init__(
        self, limits: PrincipalLimits, keys: Sequence[_Key] = (), *, agent_token: str | None = None
    ) -> None:
        self._keys = tuple(keys)
        self._agent_digest = _digest(agent_token) if agent_token else None
        roles = frozenset({Role.AGENT, Role.ADMIN} if not keys else {Role.AGENT})
        self._agent = Principal(owner="agent", limits=limits, roles=roles)
        self._local = Principal(owner=LOCAL, limits=limits, roles=frozenset({Role.ADMIN}))

    @property
    def open(self) -> bool:
        """Whether no key is needed."""
        return not self._keys

    @property
    def owners(self) -> tuple[str, ...]:
        """The names with a key, in the order of the file."""
        return tuple(key.principal.owner for key in self._keys)

    @classmethod
    def load(cls, settings: Settings) -> "Keys":
        """Read ``keys_file``: lines ``NAME KEY`` or ``NAME KEY ROLE``, ``#`` begins a comment.

        Raises:
            ConfigError: A line is wrong, or there are no keys and the fleet is not on loopback.
        """
        limits = PrincipalLimits(streams=settings.max_streams, sockets=settings.max_sockets)
        if settings.keys_file is None:
            for name, host in (("host", settings.host), ("api_host", settings.api_host)):
                if not is_loopback(host):
                    raise ConfigError(
                        f"{name} {host} can be reached from outside, so API keys are needed: "
                        "set FLEET_KEYS_FILE to a file of lines `NAME KEY`"
                    )
            return cls(limits, agent_token=settings.agent_token)
        return cls(limits, _read(settings.keys_file, limits), agent_token=settings.agent_token)

    async def identify(self, shown: Credentials, sessions: Sessions, origin: Origin) -> Identity:
        """Return who shows these credentials at an origin.

        On the editor's origin, only a key in a header makes somebody an operator.

        Raises:
            HttpError: 401 if keys are set and none of them was shown.
            StoreDown: A session can't be looked up.
        """
        found = await self._found(shown, sessions, origin)
        if origin is Origin.EDITOR and not found.by_header:
            less = found.principal.without(Role.ADMIN)
            return replace(found, principal=less, more_elsewhere=found.principal.admin)
        return found

    async def _found(self, shown: Credentials, sessions: Sessions, origin: Origin) -> Identity:
        if self._agent_digest and shown.key and hmac.compare_digest(_digest(shown.key), self._agent_digest):
            return Identity(principal=self._agent, by_header=shown.in_header)
        if self.open:  # whatever else was shown is no key
            return Identity(principal=self._local)
        if shown.key:
            if (owner := self.find(shown.key)) is not None:
                return Identity(principal=owner, by_header=shown.in_header)
        elif (owner := next(filter(None, map(self.find, shown.basic)), None)) is not None:
            return Identity(principal=owner)
        elif shown.session:
            proof = await sessions.proof(shown.session)
            if proof and (owner := self.proven(shown.session, proof, origin)) is not None:
                return Identity(principal=owner, session=shown.session)
        raise HttpError(
            401,
            "unauthorized",
            "send a valid API key: `Authorization: Bearer KEY`, `Authorization: KEY`, `X-API-Key: KEY`, "
            "HTTP Basic with the key as password, or /k/KEY in front of the path. Browsers: /login",
            headers={"WWW-Authenticate": "Bearer"},
        )

    def find(self, shown: str) -> Principal | None:
        """Return whose key this is."""
        digest = _digest(shown)
        found: Principal | None = None
        for key in self._keys:  # compare all of them, so that the time reveals nothing
            if hmac.compare_digest(digest, key.digest):
                found = key.principal
        return found

    def proven(self, token: str, proof: str, purpose: str) -> Principal | None:
        """Return whose key a proof is made of; None if that key is no more."""
        same = (key for key in self._keys if hmac.compare_digest(_proof(token, key.digest, purpose), proof))
        return next((key.principal for key in same), None)

    def session_proof(self, token: str, owner: Principal, purpose: str) -> str:
        """Return the proof that something began with an owner's key, such as a session.

        Without the token it says nothing about the key.

        Args:
            token: What the owner's browser will show.
            owner: As :meth:`find` has returned it.
            purpose: The origin of a session, or :data:`HANDED_OVER`. A proof for one is none for another.
        """
        digest = next(key.digest for key in self._keys if key.principal is owner)
        return _proof(token, digest, purpose)


def _proof(token: str, digest: bytes, purpose: str) -> str:
    # No purpose is empty: to earlier versions a proof without one was an operator's session, too.
    told = digest + purpose.encode()
    return hmac.new(token.encode("utf-8", "surrogateescape"), told, hashlib.sha256).hexdigest()


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()


def _read(path: Path, limits: PrincipalLimits) -> list[_Key]:
    try:
        lines = path.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"keys_file {path} can't be read: {error}") from error
    keys: list[_Key] = []
    for number, line in enumerate(lines, 1):
        words = line.partition("#")[0].split()
        if not words:
            continue
        where = f"keys_file {path}, line {number}"
        if len(words) not in (2, 3) or not _NAME.fullmatch(words[0]) or not _ROLES.keys() >= set(words[2:]):
            raise ConfigError(f"{where}: must be `NAME KEY`, `NAME KEY artist` or `NAME KEY admin`")
        if len(words[1]) < _KEY_CHARS:
            raise ConfigError(f"{where}: a key must have at least {_KEY_CHARS} characters")
        roles = frozenset(_ROLES[word] for word in words[2:])
        principal = Principal(owner=words[0], limits=limits, roles=roles)
        keys.append(_Key(principal=principal, digest=_digest(words[1])))
    if not keys:
        raise ConfigError(f"keys_file {path} holds no key: add a line `NAME KEY`")
    return keys
