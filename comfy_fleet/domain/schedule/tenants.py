"""Tenants among those who share GPU time: first tenants get their shares, then the users of each.

Both have the same accounts and tags (:mod:`comfy_fleet.domain.schedule.shares`), in groups: all tenants of a
queue are one group, the users of a tenant in a queue another one.
"""

from comfy_fleet.domain.schedule.ordered_index import OrderedIndex

ROOT = "\t"
"""The level of tenants."""


def level_of(tenant: str) -> str:
    """Return the level of a tenant's users: what its groups' names end with; of the default one, empty."""
    return f"\t{tenant}" if tenant else ""


def holder_of(tenant: str) -> str:
    """Return the name of a tenant's account, which no user has."""
    return f"/{tenant}"


class SharedIndex:
    """Owners by tag, each tenant's apart, and tenants by theirs. A tag may be an earlier, lower one.

    Attributes:
        tenants: Tenants that have owners here.
    """

    __slots__ = ("_owners", "tenants")

    def __init__(self) -> None:
        self.tenants = OrderedIndex()
        self._owners: dict[str, OrderedIndex] = {}

    def of(self, tenant: str) -> OrderedIndex:
        """Return a tenant's owners; what is empty is not kept."""
        return self._owners.get(tenant) or OrderedIndex()

    def put(self, tenant: str, tenant_tag: float, owner: str, tag: float) -> None:
        """List an owner, and its tenant if it is not here yet."""
        owners = self._owners.get(tenant)
        if owners is None:
            owners = self._owners[tenant] = OrderedIndex()
            self.tenants.put(tenant, tenant_tag)
        owners.put(owner, tag)

    def discard(self, tenant: str, owner: str) -> None:
        """Take an owner out, and its tenant with the last one."""
        owners = self._owners.get(tenant)
        if owners is None:
            return
        owners.discard(owner)
        if not len(owners):
            del self._owners[tenant]
            self.tenants.discard(tenant)
