"""Who a request, a socket or a session acts for, and what it may do."""

from dataclasses import dataclass, field, replace
from enum import StrEnum

DEFAULT_TENANT = "default"
"""The tenant of users that nobody put into another one, such as the names of a keys file."""


class Role(StrEnum):
    """What a principal may do. None at all means the same as :attr:`SUBMIT`."""

    SUBMIT = "submit"
    """Submit jobs and use one's own jobs and assets. Artists and operators may do that, too."""

    ARTIST = "artist"
    """Make pictures by hand, in programs that speak to one ComfyUI; publish stored workflows."""

    OPERATOR = "operator"
    """Change the fleet: nodes, drains, restarts, users and their keys. See and cancel everybody's jobs."""

    METRICS = "metrics"
    """Read figures. A principal with this role alone may do nothing else."""

    AGENT = "agent"
    """Send heartbeats and read the nodes. A principal with this role alone owns no jobs."""


_ALIASES = {"admin": Role.OPERATOR}
_GIVEN = (Role.SUBMIT, Role.ARTIST, Role.OPERATOR, Role.METRICS)
ROLE_WORDS = tuple(role.value for role in _GIVEN)
"""The roles that a key can be given."""


def parse_role(word: str) -> Role:
    """Return the role that a key is given by a word; ``admin`` is an earlier name of ``operator``.

    Raises:
        ValueError: A key can't have it.
    """
    role = _ALIASES.get(word) or Role(word)
    if role not in _GIVEN:
        raise ValueError(word)
    return role


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
        owner: The user: whose jobs and assets these are.
        tenant: The user's tenant.
        key: The id of the key that was shown, or with which the session began; empty if it was none.
    """

    owner: str
    limits: PrincipalLimits
    roles: frozenset[Role] = field(default_factory=frozenset)
    tenant: str = DEFAULT_TENANT
    key: str = ""

    @property
    def operator(self) -> bool:
        """Whether it may change the fleet."""
        return Role.OPERATOR in self.roles

    @property
    def agent(self) -> bool:
        """Whether it showed the agents' token."""
        return Role.AGENT in self.roles

    @property
    def reads_figures(self) -> bool:
        """Whether it may read the figures of the whole fleet."""
        return self.operator or Role.METRICS in self.roles

    @property
    def only_figures(self) -> bool:
        """Whether it may do nothing but that."""
        return self.roles == {Role.METRICS}

    def without(self, role: Role) -> "Principal":
        """Return the same principal without a role."""
        if role not in self.roles:
            return self
        return replace(self, roles=(self.roles - {role}) | {Role.SUBMIT})
