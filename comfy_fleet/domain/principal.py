"""Who a request, a socket or a session acts for, and what it may do."""

from dataclasses import dataclass, field, replace
from enum import StrEnum


class Role(StrEnum):
    """What a principal may do beyond using its own jobs and assets."""

    ADMIN = "admin"
    """Change the fleet: nodes, drains, restarts."""

    ARTIST = "artist"
    """Make pictures by hand, in programs that speak to one ComfyUI. It may do what every key allows."""

    AGENT = "agent"
    """Send heartbeats and read the nodes. A principal with this role alone owns no jobs."""


@dataclass(frozen=True, kw_only=True)
class PrincipalLimits:
    """How much one principal may use at once.

    Attributes:
        streams: Event streams that may be open at each API process.
        sockets: The same of websockets.
    """

    streams: int
    sockets: int


@dataclass(frozen=True, kw_only=True)
class Principal:
    """Who acts. Every kind of authentication makes this value.

    Attributes:
        owner: Whose jobs and assets these are.
    """

    owner: str
    limits: PrincipalLimits
    roles: frozenset[Role] = field(default_factory=frozenset)

    @property
    def admin(self) -> bool:
        """Whether it may change the fleet."""
        return Role.ADMIN in self.roles

    @property
    def agent(self) -> bool:
        """Whether it showed the agents' token."""
        return Role.AGENT in self.roles

    def without(self, role: Role) -> "Principal":
        """Return the same principal without a role."""
        return replace(self, roles=self.roles - {role}) if role in self.roles else self
