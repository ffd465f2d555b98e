"""How much memory the fleet's store may use, and what it does when that is used up."""

from dataclasses import dataclass

NEARLY_FULL = 0.8
"""The share of its limit from which an operator should look at it."""


@dataclass(frozen=True, kw_only=True)
class StoreMemory:
    """What Redis says of its memory.

    Attributes:
        used_bytes: What it uses.
        most_bytes: What it may use; 0: any amount.
        policy: What it does at the limit: ``noeviction``, or another word of Redis' for throwing data away.
    """

    used_bytes: int
    most_bytes: int
    policy: str = "noeviction"

    @property
    def trouble(self) -> str:
        """What an operator should know, in words; empty if all is well."""
        if self.policy != "noeviction":
            return f"maxmemory-policy is {self.policy}: Redis may throw jobs away"
        if self.most_bytes and self.used_bytes > NEARLY_FULL * self.most_bytes:
            share = self.used_bytes / self.most_bytes
            return f"{share:.0%} of Redis' maxmemory is used: a full Redis takes no new jobs"
        return ""
