"""Identifies callers: by API keys from a file, or everybody on this machine."""

import hashlib
import hmac
import ipaddress
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from starlette.datastructures import Headers

from comfy_fleet.api.errors import HttpError
from comfy_fleet.domain.errors import ConfigError
from comfy_fleet.domain.principal import Principal, PrincipalLimits, Role
from comfy_fleet.settings import Settings

LOCAL = "local"
_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})


@dataclass(frozen=True, kw_only=True)
class _Key:
    principal: Principal
    digest: bytes


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
        """Read ``keys_file``: lines ``NAME KEY`` or ``NAME KEY admin``, ``#`` begins a comment.

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

    def principal(self, shown: str) -> Principal:
        """Return the principal of a key; see :func:`shown_key` for headers.

        Args:
            shown: The key or the agents' token; empty if there was none.

        Raises:
            HttpError: 401 if keys are set and this is not one of them.
        """
        digest = _digest(shown) if shown else b""
        if shown and self._agent_digest is not None and hmac.compare_digest(digest, self._agent_digest):
            return self._agent
        if self.open:
            return self._local
        found: Principal | None = None
        if shown:
            for key in self._keys:  # compare all of them, so that the time reveals nothing
                if hmac.compare_digest(digest, key.digest):
                    found = key.principal
        if found is None:
            raise HttpError(
                401,
                "unauthorized",
                "send a valid API key: `Authorization: Bearer KEY`, `Authorization: KEY` or `X-API-Key: KEY`",
                headers={"WWW-Authenticate": "Bearer"},
            )
        return found

    def guard(self, method: str, headers: Headers, *, public_host: str | None) -> None:
        """Refuse malformed hosts, and web pages' requests to a fleet that needs no key.

        A page that somebody opens on this machine can make the browser send requests here, across sites or
        through the page's own host name that resolves to loopback. Such a page can't forge ``Host``, but it
        can send ``X-Forwarded-Host`` to the API's own port: both must be right.

        Raises:
            HttpError: 400 or 403.
        """
        named = [headers[key] for key in ("x-forwarded-host", "host") if headers.get(key)]
        names = [host_name(host) for host in named]
        if not named or None in names:  # it would appear in URLs
            raise HttpError(400, "invalid_request", "the Host header is not a host name")
        if not self.open:
            return
        host = named[0]
        if not all(name == public_host or is_loopback(name or "") for name in names):
            raise HttpError(
                403,
                "forbidden",
                "without API keys only loopback names are answered: set FLEET_KEYS_FILE, "
                "or FLEET_PUBLIC_URL to the name that the fleet is reached by",
            )
        origin = headers.get("origin")
        if method not in _SAFE_METHODS and origin and origin.partition("://")[2].lower() != host.lower():
            raise HttpError(403, "forbidden", "without API keys requests from other sites are refused")


@lru_cache(256)
def is_loopback(host: str) -> bool:
    """Return whether a host name or address is this machine's own."""
    name = host.lower().strip("[]").rstrip(".")
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


_HOST = re.compile(r"(?P<name>\[[0-9A-Fa-f:.]{2,45}\]|[A-Za-z0-9._-]{1,253})(?::\d{1,5})?")


def host_name(host: str) -> str | None:
    """Return the name in a ``Host`` header without its port; None if it is not a host."""
    match = _HOST.fullmatch(host)
    return match["name"].lower() if match else None


def shown_key(headers: Mapping[str, str]) -> str:
    """Return the key in headers (with names in lower case); empty if there is none.

    It comes as ``Bearer KEY``, as ``X-API-Key``, or bare in ``Authorization``; the first of these counts.
    """
    authorization = headers.get("authorization", "").strip()
    scheme, _, token = authorization.partition(" ")
    if scheme.lower() == "bearer" and token.strip():
        return token.strip()
    if key := headers.get("x-api-key", "").strip():
        return key
    return "" if token else authorization  # another scheme: not one of our keys


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
        role = words[2:] or [""]
        if len(words) not in (2, 3) or not _NAME.fullmatch(words[0]) or role not in ([""], ["admin"]):
            raise ConfigError(f"keys_file {path}, line {number}: must be `NAME KEY` or `NAME KEY admin`")
        if len(words[1]) < 16:
            raise ConfigError(f"keys_file {path}, line {number}: a key must have at least 16 characters")
        roles = frozenset({Role.ADMIN} if role == ["admin"] else ())
        principal = Principal(owner=words[0], limits=limits, roles=roles)
        keys.append(_Key(principal=principal, digest=_digest(words[1])))
    if not keys:
        raise ConfigError(f"keys_file {path} holds no key: add a line `NAME KEY`")
    return keys
