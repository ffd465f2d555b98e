"""Where agents' tokens are kept."""

from collections.abc import Sequence
from typing import Protocol

from comfy_fleet.domain.nodes.agent_token import AgentToken


class AgentTokenStore(Protocol):
    """Agents' tokens, by their hashes; a change counts at once in every process. Raises StoreDown."""

    async def add(self, token: AgentToken) -> None:
        """Keep a token.

        Raises:
            Conflict: Its host has many, or there are many hosts with tokens.
        """

    async def tokens(self) -> Sequence[AgentToken]:
        """Return all, by host and time."""

    async def revoke(self, id_: str) -> AgentToken | None:
        """Forget a token; return it, or None if there is none with this id."""

    async def find(self, shown: str) -> AgentToken | None:
        """Return the token whose text was shown."""

    async def has(self, host: str) -> bool:
        """Return whether a host has a token of its own."""
