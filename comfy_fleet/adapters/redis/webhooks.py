"""Messages to webhooks in Redis (port :class:`comfy_fleet.ports.webhooks.Webhooks`)."""

import hashlib
import logging
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any
from uuid import uuid4

import orjson

from comfy_fleet.adapters.redis.client import FleetRedis
from comfy_fleet.adapters.redis.events import RedisEvents
from comfy_fleet.adapters.redis.job_records import Complaints
from comfy_fleet.adapters.redis.scripts import Scripts
from comfy_fleet.domain.errors import Conflict, NotFound
from comfy_fleet.domain.records import UNREADABLE
from comfy_fleet.domain.webhooks.delivery import NextStep, PostAnswer
from comfy_fleet.domain.webhooks.webhook import OPERATOR, receiver_of
from comfy_fleet.ports.webhooks import OperatorFact, WebhookMessage

logger = logging.getLogger(__name__)

MOST_ERROR = 500
"""Characters of a failed try's reason that are kept."""
TENDED_EVERY_S = 60.0
"""How often a live job with a webhook is looked at."""
_TENDED_AT_ONCE = 100
_ABOUT_JOBS = ("started", "succeeded", "failed", "canceled", "expired", "stored")
"""Ends of messages' ids."""


class RedisWebhooks:
    """The queue of messages.

    Args:
        redis: A client that returns bytes.
        events: Tells when a message is due.
    """

    def __init__(self, redis: FleetRedis, events: RedisEvents) -> None:
        self._redis: Any = redis  # redis-py can't say that this client answers in bytes
        self._keys = redis.keyspace
        self._events = events
        self._scripts = Scripts(redis)
        self._complaints = Complaints()

    @asynccontextmanager
    async def wakes(self) -> AsyncIterator[AsyncIterator[None]]:
        """Yield something whenever a message is written that is due at once."""
        async with self._events.channel(self._keys.webhook_wake, most=1) as queue:

            async def each() -> AsyncIterator[None]:
                while True:
                    await queue.get()
                    yield

            yield each()

    async def take(
        self,
        *,
        most: int,
        most_failing: int,
        each: int,
        each_owner: int,
        sending: Mapping[str, int],
        lease_s: float,
    ) -> list[WebhookMessage]:
        """Take messages that are due; see the port."""
        # An idle fleet runs no script for this.
        if not await self._redis.exists(self._keys.webhook_receivers, self._keys.webhook_failing):
            return []
        token = uuid4().hex
        rows = await self._scripts.call(
            "webhooks_take",
            most=most,
            most_failing=most_failing,
            each=each,
            each_owner=each_owner,
            sending=dict(sending),
            lease_s=lease_s,
            token=token,
        )
        found = [
            self._message(raw.decode(), dict(zip(record[::2], record[1::2], strict=True)), fails=int(fails))
            for raw, fails, record in rows
        ]
        for (raw, _, record), one in zip(rows, found, strict=True):
            if one is None:
                await self._park(raw.decode(), dict(zip(record[::2], record[1::2], strict=True)))
        return [one for one in found if one is not None]

    async def _park(self, message_id: str, record: Mapping[bytes, bytes]) -> None:
        """Try a message that can't be read no more; its record stays for whoever looks into that."""
        await self._scripts.call("webhook_park", id=message_id)
        told = {"webhook": message_id, "owner": record.get(b"owner", b"").decode(errors="replace")}
        logger.error("webhook message given up: its record in Redis can't be read", extra=told)

    async def sent(
        self, message: WebhookMessage, answer: PostAnswer, step: NextStep, *, most_age_s: float
    ) -> bool:
        """Note what came of sending a message; see the port."""
        noted = await self._scripts.call(
            "webhook_sent",
            id=message.id,
            token=message.token,
            outcome=step.outcome.value,
            status=answer.status,
            error=step.error[:MOST_ERROR],
            after_s=step.after_s,
            pause_s=step.pause_s,
            most_age_s=most_age_s,
        )
        return bool(noted)

    async def messages(self, owner: str, *, failed: bool, limit: int) -> Sequence[WebhookMessage]:
        """Return an owner's newest messages; see the port."""
        key = self._keys.webhooks_failed(owner) if failed else self._keys.webhooks_of(owner)
        ids = [raw.decode() for raw in await self._redis.zrevrange(key, 0, limit - 1)]
        found = [await self._read(one) for one in ids]
        return [one for one in found if one is not None]

    async def of_job(self, job_id: str) -> Sequence[WebhookMessage]:
        """Return the messages about a job; see the port."""
        found = [await self._read(f"msg_{job_id}_{word}") for word in _ABOUT_JOBS]
        return sorted((one for one in found if one is not None), key=lambda one: one.at)

    async def again(self, owner: str, message_id: str) -> WebhookMessage:
        """Send a message again, now; see the port."""
        outcome = await self._scripts.call("webhook_again", id=message_id, owner=owner)
        if outcome == b"taken":
            raise Conflict(f"message {message_id} is being sent at this moment")
        found = await self._read(message_id) if outcome == b"ok" else None
        if found is None:
            raise NotFound(
                f"no message {message_id[:80]}: messages are known for 30 days, an owner's newest 1,000",
                details={"id": message_id[:80]},
            )
        return found

    async def reopen(self, owner: str, url: str) -> None:
        """Let a URL be told of jobs again, although it has answered 410 Gone."""
        hashed = hashlib.sha1(url.encode(), usedforsecurity=False).hexdigest()
        await self._redis.delete(self._keys.webhook_gone(owner, hashed))

    async def tell(self, url: str, facts: Sequence[OperatorFact], *, usual: Sequence[str], kind: str) -> int:
        """Write messages for facts that are new; see the port."""
        count: int = await self._scripts.call(
            "webhook_news",
            facts=[
                [one.thing, one.state, one.type, one.steady_s, orjson.dumps(dict(one.data)).decode()]
                for one in facts
            ],
            usual=list(usual),
            kind=kind,
            url=url,
            receiver=receiver_of(OPERATOR, url),
        )
        return count

    async def tend(self) -> int:
        """Write what earlier versions beside this one have left out; see the port."""
        if not await self._redis.exists(self._keys.webhook_jobs):
            return 0
        count: int = await self._scripts.call("tend_webhooks", every_s=TENDED_EVERY_S, most=_TENDED_AT_ONCE)
        return count

    async def secrets(self, owner: str) -> bytes | None:
        """Return an owner's signing secrets, encrypted."""
        found: bytes | None = await self._redis.hget(self._keys.webhook_secrets, owner)
        return found

    async def save_secrets(self, owner: str, sealed: bytes, *, before: bytes | None) -> bool:
        """Store an owner's signing secrets; see the port."""
        saved = await self._scripts.call("swap_webhook_secrets", sealed, before or b"", owner=owner)
        return bool(saved)

    async def _read(self, message_id: str) -> WebhookMessage | None:
        record = await self._redis.hgetall(self._keys.webhook(message_id))
        if not record:
            return None
        found = self._message(message_id, record)
        if found is None or found.state != "waiting":
            return found
        queue = self._keys.webhook_queue(record.get(b"receiver", b"").decode())
        due = await self._redis.zscore(queue, message_id)
        return self._message(message_id, record, due_at=None if due is None else float(due))

    def _message(
        self, message_id: str, record: Mapping[bytes, bytes], *, fails: int = 0, due_at: float | None = None
    ) -> WebhookMessage | None:
        def text(field: str) -> str:
            return record.get(field.encode(), b"").decode()

        try:
            return WebhookMessage(
                id=message_id,
                owner=text("owner"),
                type=text("type"),
                at=float(text("at")),
                url=text("url"),
                job=text("job"),
                base=text("base"),
                data=text("data"),
                state=text("state"),
                attempts=int(text("attempts") or 0),
                tried_at=float(text("tried")) if text("tried") else None,
                status=int(text("status")) if text("status") else None,
                error=text("error"),
                due_at=due_at,
                token=text("token"),
                fails=fails,
            )
        except UNREADABLE as error:
            self._complaints.about("webhook message", message_id, error)
            return None
