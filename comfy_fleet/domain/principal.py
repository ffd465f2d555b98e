"""Who a request, a socket or a session acts for, and what it may do."""

from dataclasses import dataclass, field, replace

from comfy_fleet.domain.limits import ScopedLimits
from comfy_fleet.domain.roles import Role

DEFAULT_TENANT = "default"
"""The tenant of users that nobody put into another one, such as the names of a keys file."""


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
        quotas: Further limits: of the role, of the key, of the tenant.
    """

    owner: str
    limits: PrincipalLimits
    roles: frozenset[Role] = field(default_factory=frozenset)
    tenant: str = DEFAULT_TENANT
    key: str = ""
    quotas: tuple[ScopedLimits, ...] = ()

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
