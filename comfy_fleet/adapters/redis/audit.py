"""The audit trail, as a stream in Redis (port ``AuditTrail``)."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import orjson

from comfy_fleet.adapters.redis.client import FleetRedis
from comfy_fleet.domain.errors import BadInput
from comfy_fleet.ports.audit import AuditEntry

MOST = 100_000
"""Entries that are kept, or a few more."""
_AT_ONCE = 500
_LOOKED_AT = 10_000
_ID = re.compile(r"[0-9]{1,15}-[0-9]{1,15}")


class RedisAudit:
    """:class:`comfy_fleet.ports.audit.AuditTrail`.

    Args:
        redis: A client that returns bytes.
    """

    def __init__(self, redis: FleetRedis) -> None:
        self._redis: Any = redis  # redis-py can't say that this client answers in bytes
        self._key = redis.keyspace.audit

    async def note(self, entry: AuditEntry) -> None:
        """See :meth:`comfy_fleet.ports.audit.AuditTrail.note`."""
        fields = {"event": entry.event, "by": entry.by, "key": entry.key, "address": entry.address}
        fields["about"] = orjson.dumps(dict(entry.about), default=str).decode()[:8192]
        await self._redis.xadd(self._key, fields, maxlen=MOST, approximate=True)

    async def read(
        self, *, since: float, user: str | None, limit: int, before: str | None = None
    ) -> tuple[Sequence[AuditEntry], str | None]:
        """See :meth:`comfy_fleet.ports.audit.AuditTrail.read`; raises BadInput for an id that is none."""
        if before is not None and not _ID.fullmatch(before):
            raise BadInput("cursor is not one of the fleet's", details={"field": "cursor"})
        found: list[AuditEntry] = []
        newest, looked_at = f"({before}" if before else "+", 0
        while True:
            rows = await self._redis.xrevrange(
                self._key, max=newest, min=str(max(0, int(since * 1000))), count=_AT_ONCE
            )
            for raw, fields in rows:
                id_ = raw.decode()
                if user is None or fields.get(b"by", b"").decode(errors="replace") == user:
                    found.append(_entry(id_, fields))
                    if len(found) == limit:
                        return found, id_
                newest = f"({id_}"
            looked_at += len(rows)
            if len(rows) < _AT_ONCE:
                return found, None
            if looked_at >= _LOOKED_AT:
                return found, newest[1:]


def _entry(id_: str, fields: Mapping[bytes, bytes]) -> AuditEntry:
    said = {name.decode(errors="replace"): value.decode(errors="replace") for name, value in fields.items()}
    try:
        about = orjson.loads(said.get("about", "{}"))
    except orjson.JSONDecodeError:
        about = {"text": said.get("about", "")}
    return AuditEntry(
        id=id_,
        at=int(id_.partition("-")[0]) / 1000,
        event=said.get("event", ""),
        by=said.get("by", ""),
        key=said.get("key", ""),
        address=said.get("address", ""),
        about=about if isinstance(about, dict) else {},
    )
