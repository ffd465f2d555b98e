"""What an owner's graphs may do: what the fleet allows, and of that what their tenant allows."""

from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache

from comfy_fleet.domain.errors import BadInput
from comfy_fleet.domain.graphs.class_rules import ClassRules
from comfy_fleet.domain.graphs.file_check import FilePolicy
from comfy_fleet.domain.people import Tenant


class TenantPolicies:
    """Finds the policy of an owner.

    Args:
        base: What holds for everybody.
        tenant_of: Returns an owner's tenant, as it is now.
    """

    def __init__(self, base: FilePolicy, tenant_of: Callable[[str], Tenant]) -> None:
        self._base = base
        self._tenant_of = tenant_of

    def of(self, owner: str) -> FilePolicy:
        """Return the policy for an owner's graphs."""
        tenant = self._tenant_of(owner)
        if not tenant.deny_classes and not tenant.allow_classes:
            return self._base
        rules = _rules(tenant.name, tenant.deny_classes, tenant.allow_classes)
        return replace(self._base, rules=(*self._base.rules, rules))


@lru_cache(maxsize=256)
def _rules(name: str, deny: str, allow: str) -> ClassRules:
    setting = f"fleet tenant set {name}"
    try:
        return ClassRules.parse(
            deny,
            allow,
            shipped={},
            deny_setting=f"{setting} --deny-classes",
            allow_setting=f"{setting} --allow-classes",
        )
    except BadInput:  # a group that only a newer version knows: nothing passes
        return ClassRules(denied={}, allowed=frozenset({"@"}), allow_setting=setting)
