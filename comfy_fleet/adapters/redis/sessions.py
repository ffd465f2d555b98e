"""Sessions in Redis."""

import re
from collections.abc import Sequence

from comfy_fleet.adapters.redis.client import FleetRedis
from comfy_fleet.adapters.redis.job_records import hashed
from comfy_fleet.ports.sessions import HandOver

_HASH = re.compile("[0-9a-f]{64}")


class RedisSessions:
    """:class:`comfy_fleet.ports.sessions.Sessions`."""

    def __init__(self, redis: FleetRedis) -> None:
        self._redis = redis
        self._keys = redis.keyspace

    async def begin(self, token: str, proof: str, *, ttl_s: float) -> None:
        """See :meth:`comfy_fleet.ports.sessions.Sessions.begin`."""
        await self._redis.set(self._keys.session(hashed(token)), proof, px=int(ttl_s * 1000))

    async def proof(self, token: str) -> str | None:
        """See :meth:`comfy_fleet.ports.sessions.Sessions.proof`."""
        kept = await self._redis.mget(self._names(token))
        return None if kept[0] is None or None in kept else _text(kept[0])

    async def over(self, tokens: Sequence[str]) -> Sequence[str]:
        """See :meth:`comfy_fleet.ports.sessions.Sessions.over`."""
        names = {token: self._names(token) for token in tokens}
        every = list(dict.fromkeys(name for some in names.values() for name in some))
        kept = dict(zip(every, await self._redis.mget(every), strict=True)) if every else {}
        return [token for token, some in names.items() if any(kept[name] is None for name in some)]

    async def end(self, token: str) -> None:
        """See :meth:`comfy_fleet.ports.sessions.Sessions.end`."""
        await self._redis.delete(*self._names(token))

    def known_by(self, token: str) -> str:
        """See :meth:`comfy_fleet.ports.sessions.Sessions.known_by`."""
        return hashed(token)

    async def offer(self, code: str, hand_over: HandOver, *, ttl_s: float) -> None:
        """See :meth:`comfy_fleet.ports.sessions.Sessions.offer`."""
        told = f"{hand_over.proof} {hand_over.browser} {hand_over.session}"
        await self._redis.set(self._keys.hand_over(hashed(code)), told, px=int(ttl_s * 1000))

    async def take(self, code: str) -> HandOver | None:
        """See :meth:`comfy_fleet.ports.sessions.Sessions.take`."""
        kept = await self._redis.getdel(self._keys.hand_over(hashed(code)))
        if kept is None:
            return None
        proof, browser, session = _text(kept).split(" ")
        return HandOver(proof=proof, browser=browser, session=session)

    def _names(self, token: str) -> list[str]:
        """Return the keys that have to be there for a session: its own, and that of the one it belongs to."""
        own, other = hashed(token), token.partition(".")[2]
        names = [own, other] if _HASH.fullmatch(other) else [own]
        return [self._keys.session(name) for name in names]


def _text(kept: bytes | str) -> str:
    return kept.decode() if isinstance(kept, bytes) else kept
