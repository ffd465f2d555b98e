"""Agents' tokens in Redis (port ``AgentTokenStore``)."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import orjson

from comfy_fleet.adapters.redis.client import FleetRedis
from comfy_fleet.adapters.redis.job_records import Complaints
from comfy_fleet.adapters.redis.scripts import Scripts
from comfy_fleet.domain.errors import Conflict
from comfy_fleet.domain.nodes.agent_token import AgentToken, read_shown
from comfy_fleet.domain.records import UNREADABLE, from_fields

MOST_TOKENS = 16  # of one host: the old one and the new one while it is replaced, and some more
MOST_HOSTS = 1000


class RedisAgentTokens:
    """Agents' tokens, by their hashes.

    Args:
        redis: A client that returns bytes.
    """

    def __init__(self, redis: FleetRedis) -> None:
        self._redis: Any = redis
        self._keys = redis.keyspace
        self._scripts = Scripts(redis)
        self._complaints = Complaints()

    async def add(self, token: AgentToken) -> None:
        """Keep a token."""
        added = await self._scripts.call(
            "agent_token_add",
            orjson.dumps(asdict(token)),
            host=token.host,
            id=token.id,
            most=MOST_TOKENS,
            most_hosts=MOST_HOSTS,
        )
        if not added:
            raise Conflict(
                f"host {token.host} has {MOST_TOKENS} tokens, or {MOST_HOSTS} hosts have some: revoke one",
                details={"field": "host"},
            )

    async def tokens(self) -> Sequence[AgentToken]:
        """Return all, by host and time."""
        hosts = sorted(raw.decode() for raw in await self._redis.smembers(self._keys.agent_token_hosts))
        found = [token for host in hosts for token in await self._of(host)]
        return sorted(found, key=lambda token: (token.host, token.created_at))

    async def revoke(self, id_: str) -> AgentToken | None:
        """Forget a token."""
        known = next((token for token in await self.tokens() if token.id == id_), None)
        if known is None:
            return None
        gone = await self._scripts.call("agent_token_drop", host=known.host, id=id_)
        return known if gone else None

    async def find(self, shown: str) -> AgentToken | None:
        """Return the token whose text was shown."""
        read = read_shown(shown)
        if read is None:
            return None
        raw = await self._redis.hget(self._keys.agent_tokens(read.host), read.id)
        token = self._read(read.host, raw) if raw else None
        return token if token is not None and token.host == read.host and token.is_of(read) else None

    async def has(self, host: str) -> bool:
        """Return whether a host has a token of its own."""
        return bool(await self._redis.exists(self._keys.agent_tokens(host)))

    async def _of(self, host: str) -> list[AgentToken]:
        rows = await self._redis.hvals(self._keys.agent_tokens(host))
        return [token for raw in rows if (token := self._read(host, raw)) is not None]

    def _read(self, host: str, raw: bytes) -> AgentToken | None:
        try:
            return from_fields(AgentToken, orjson.loads(raw))
        except UNREADABLE as error:
            self._complaints.about("agent token of host", host, error)
            return None
