"""Identifies callers: by their keys, or everybody on this machine."""

import hashlib
import hmac
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

from starlette.datastructures import Headers

from comfy_fleet.api.credentials import Credentials
from comfy_fleet.api.errors import HttpError
from comfy_fleet.api.host_names import is_loopback
from comfy_fleet.api.origins import Origin
from comfy_fleet.api.trusted_headers import TrustedHeaders
from comfy_fleet.domain.edge_word import edge_word
from comfy_fleet.domain.errors import BadInput, ConfigError
from comfy_fleet.domain.machine_token import is_machine_token
from comfy_fleet.domain.people import check_person
from comfy_fleet.domain.principal import Principal, PrincipalLimits
from comfy_fleet.domain.roles import Role, parse_group_roles, roles_of_groups
from comfy_fleet.ports.people import KeysFile, PeopleStore
from comfy_fleet.ports.sessions import Sessions
from comfy_fleet.services.key_ring import KeyRing
from comfy_fleet.settings import Settings

LOCAL = "local"
"""The user without a key: whoever is on the fleet's machine."""
HANDED_OVER = "handed over"
"""The purpose of a code that brings a sign-in from the console's origin to the editor's."""
_BY = "~"
"""In a session's token, between the id of its key and what was drawn."""


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
    """Who shows what.

    Args:
        limits: How much each caller may use at once.
        ring: The keys that count; None: no key is needed, and every caller is :data:`LOCAL`, an operator.
        agent_token: The token that agents show instead.
        machine: The secret of tokens that show that somebody may read this machine's secrets.
        trusted: The headers of trusted proxies; None: there are none.
        clock: Unix seconds.
    """

    def __init__(
        self,
        limits: PrincipalLimits,
        ring: KeyRing | None = None,
        *,
        agent_token: str | None = None,
        machine: bytes = b"",
        trusted: TrustedHeaders | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.ring = ring or KeyRing(limits)
        self.open = ring is None
        """Whether no key is needed."""
        self._agent_digest = _digest(agent_token) if agent_token else None
        self._machine = machine
        self._trusted = trusted
        self._clock = clock
        roles = frozenset({Role.AGENT, Role.OPERATOR} if self.open else {Role.AGENT})
        self._agent = Principal(owner="agent", limits=limits, roles=roles)
        self._local = Principal(owner=LOCAL, limits=limits, roles=frozenset({Role.OPERATOR}))

    @property
    def owners(self) -> tuple[str, ...]:
        """The keys file's names, in its order."""
        return self.ring.file_owners

    @classmethod
    def load(
        cls,
        settings: Settings,
        file: KeysFile | None = None,
        store: PeopleStore | None = None,
        *,
        machine: bytes = b"",
        ticket_key: bytes = b"",
    ) -> "Keys":
        """Return what the settings ask for.

        Args:
            settings: The settings.
            file: Their ``keys_file``; it is read at once.
            store: Where the other keys are.
            machine: As for the class.
            ticket_key: The key of editor tickets, by which the edge is known.

        Raises:
            ConfigError: The file can't be used, or no key is needed and the fleet is not on loopback.
        """
        limits = PrincipalLimits(streams=settings.max_streams, sockets=settings.max_sockets)
        if settings.keys_file is None and not settings.require_keys and not settings.trusted_user_header:
            for name, host in (("host", settings.host), ("api_host", settings.api_host)):
                if not is_loopback(host):
                    raise ConfigError(
                        f"{name} {host} can be reached from outside, so API keys are needed: set "
                        "FLEET_REQUIRE_KEYS=1 and make keys with `fleet key create`, or set FLEET_KEYS_FILE "
                        "to a file of lines `NAME KEY`"
                    )
            return cls(limits, agent_token=settings.agent_token)
        ring = KeyRing(limits, by_role=settings.role_limits, store=store, file=file)
        ring.read_file()
        trusted = None
        if settings.trusted_user_header and ticket_key:
            trusted = TrustedHeaders(
                user=settings.trusted_user_header.lower(),
                groups=settings.trusted_groups_header.lower(),
                word=edge_word(ticket_key),
                roles=parse_group_roles(settings.group_roles),
            )
        return cls(limits, ring, agent_token=settings.agent_token, machine=machine, trusted=trusted)

    def shown(self, headers: Headers, origin: Origin, path_key: str = "") -> Credentials:
        """Return the credentials of a request to an origin."""
        found = Credentials.of(headers, origin, path_key)
        if self._trusted is None:
            return found
        person, groups = self._trusted.said(headers)
        return replace(found, person=person, groups=groups)

    async def identify(self, shown: Credentials, sessions: Sessions, origin: Origin) -> Identity:
        """Return who shows these credentials at an origin.

        On the editor's origin, only a key in a header makes somebody an operator.

        Raises:
            HttpError: 401 if keys are set and none of them was shown.
            StoreDown: A session can't be looked up, or the keys were not read yet.
        """
        found = await self._found(shown, sessions, origin)
        if origin is Origin.EDITOR and not found.by_header:
            less = found.principal.without(Role.OPERATOR)
            return replace(found, principal=less, more_elsewhere=found.principal.operator)
        return found

    def an_agent(self, *, by_header: bool) -> Identity:
        """Return who shows an agent's token that counts: no operator, even where no keys are set."""
        return Identity(principal=self._agent.without(Role.OPERATOR), by_header=by_header)

    async def _found(self, shown: Credentials, sessions: Sessions, origin: Origin) -> Identity:
        if self._agent_digest and shown.key and hmac.compare_digest(_digest(shown.key), self._agent_digest):
            return Identity(principal=self._agent, by_header=shown.in_header)
        if self.open:  # whatever else was shown is no key
            return Identity(principal=self._local)
        await self.ring.ready()
        if shown.key:
            if (owner := self.find(shown.key)) is not None:
                return Identity(principal=owner, by_header=shown.in_header)
            if shown.in_header and is_machine_token(shown.key, self._machine, self._clock()):
                return Identity(principal=self._local, by_header=True)
        elif shown.person and self._trusted is not None:
            return Identity(principal=self._named(shown, self._trusted))
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

    def _named(self, shown: Credentials, trusted: TrustedHeaders) -> Principal:
        try:
            name = check_person("user", shown.person)
        except BadInput as error:
            raise HttpError(
                403, "forbidden", f"the proxy's name for you can't be a user's: {error}"
            ) from None
        roles = roles_of_groups(trusted.roles, shown.groups)
        if not roles:
            raise HttpError(
                403,
                "forbidden",
                f"{name} is in none of the groups that may use this fleet (FLEET_GROUP_ROLES)",
            )
        return self.ring.principal(name, roles)

    def find(self, shown: str) -> Principal | None:
        """Return whose key this is."""
        return self.ring.find(shown)

    def token(self, who: Principal, drawn: str) -> str:
        """Return the token of something that begins with somebody's key: it says which key, for a quick look.

        Args:
            who: As :meth:`find` has returned it.
            drawn: What was drawn for it.
        """
        return f"{who.key}{_BY}{drawn}"

    def proven(self, token: str, proof: str, purpose: str) -> Principal | None:
        """Return whose key a proof is made of; None if that key is no more."""
        id_, named, _ = token.partition(_BY)
        # Tokens of earlier versions name no key, and can only be of the file's.
        for one in [id_] if named else self.ring.file_ids():
            digest = self.ring.digest(one)
            if digest is not None and hmac.compare_digest(_proof(token, digest, purpose), proof):
                return self.ring.by_id(one)
        return None

    def session_proof(self, token: str, owner: Principal, purpose: str) -> str:
        """Return the proof that something began with an owner's key, such as a session.

        Without the token it says nothing about the key.

        Args:
            token: What the owner's browser will show.
            owner: As :meth:`find` has returned it.
            purpose: The origin of a session, or :data:`HANDED_OVER`. A proof for one is none for another.

        Raises:
            HttpError: 401: the key was revoked a moment ago.
        """
        if (digest := self.ring.digest(owner.key)) is None:
            raise HttpError(401, "unauthorized", "this key was revoked")
        return _proof(token, digest, purpose)


def _proof(token: str, digest: bytes, purpose: str) -> str:
    # No purpose is empty: to earlier versions a proof without one was an operator's session, too.
    told = digest + purpose.encode()
    return hmac.new(token.encode("utf-8", "surrogateescape"), told, hashlib.sha256).hexdigest()


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()
