"""Sends messages to webhooks: any number of processes do, and none of them leads."""

import asyncio
import contextlib
import logging
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import orjson
from standardwebhooks.webhooks import Webhook as Signer

from comfy_fleet.domain.errors import ConfigError, FleetError, StoreDown
from comfy_fleet.domain.webhooks.delivery import SCHEDULE_S, DeliveryOutcome, PostAnswer, longest_s, next_step
from comfy_fleet.domain.webhooks.webhook import OPERATOR
from comfy_fleet.ports.telemetry import Telemetry
from comfy_fleet.ports.webhooks import WebhookMessage, WebhookPoster, Webhooks
from comfy_fleet.services.job_tracing import JobTracing
from comfy_fleet.services.webhook_secrets import WebhookSecrets
from comfy_fleet.tasks import start
from comfy_fleet.timeouts import Timeout

logger = logging.getLogger(__name__)

TEST = "webhook.test"
"""The type of the message with which an owner tries a URL."""

Data = Callable[[WebhookMessage], Awaitable[Mapping[str, Any]]]
"""Makes the data of a message's body, as things are when it is sent."""
Wakes = Callable[[], AbstractAsyncContextManager[AsyncIterator[None]]]
"""Yields something whenever a message is due at once."""


@dataclass(frozen=True, kw_only=True)
class DeliveryLimits:
    """How much one process sends at once; times in seconds.

    Attributes:
        at_once: Messages that are being sent.
        failing_at_once: How many of them may go to receivers that fail: these hold nobody else up.
        each: Messages that one receiver gets at once, from all processes together.
        each_owner: How many of ``at_once`` may be one owner's, whose receivers may be any number.
        lease_s: After this long others may send a message that was taken: more than sending ever takes.
        look_s: How often it looks for what is due, besides being told.
        tend_s: How often it looks for what earlier versions beside it left out.
        schedule: Pauses before the tries after the first one.
    """

    at_once: int = 32
    failing_at_once: int = 16
    each: int = 4
    each_owner: int = 8
    lease_s: float = 30.0
    look_s: float = 1.0
    tend_s: float = 60.0
    schedule: Sequence[float] = SCHEDULE_S


class WebhookDeliverer:
    """Takes messages that are due, posts them, and notes what came of it.

    Args:
        webhooks: The messages.
        poster: Posts them.
        secrets: What they are signed with.
        data: Makes bodies' data.
        wakes: Tells when something is due.
        clock: Unix seconds.
        draw: Draws a number from 0 to 1.
        telemetry: Told what came of each try.
        limits: How much at once.
        tracing: Makes spans of what is sent about jobs.
    """

    def __init__(
        self,
        *,
        webhooks: Webhooks,
        poster: WebhookPoster,
        secrets: WebhookSecrets,
        data: Data,
        wakes: Wakes,
        clock: Callable[[], float],
        draw: Callable[[], float],
        telemetry: Telemetry,
        limits: DeliveryLimits,
        tracing: JobTracing | None = None,
    ) -> None:
        self._webhooks = webhooks
        self._poster = poster
        self._secrets = secrets
        self._data = data
        self._wakes = wakes
        self._clock = clock
        self._draw = draw
        self._telemetry = telemetry
        self._limits = limits
        self._tracing = tracing
        self._sending: dict[asyncio.Task[None], WebhookMessage] = {}
        self._look = asyncio.Event()

    async def run(self) -> None:
        """Send what is due, until canceled."""
        others = [
            start(self._listen(), name="webhooks are due"),
            start(self._tend(), name="webhooks of earlier versions"),
        ]
        try:
            while True:
                self._look.clear()
                try:
                    await self._take()
                except StoreDown as error:
                    logger.warning("webhooks wait for Redis", extra={"error": str(error)})
                with contextlib.suppress(TimeoutError):
                    async with Timeout(self._limits.look_s):
                        await self._look.wait()
        finally:
            for task in (*others, *self._sending):
                task.cancel()
            await asyncio.gather(*others, *self._sending, return_exceptions=True)

    async def _take(self) -> None:
        free = self._limits.at_once - len(self._sending)
        if free <= 0:
            return
        failing = self._limits.failing_at_once - sum(one.fails > 0 for one in self._sending.values())
        taken = await self._webhooks.take(
            most=free,
            most_failing=max(0, failing),
            each=self._limits.each,
            each_owner=self._limits.each_owner,
            sending=Counter(one.owner for one in self._sending.values()),
            lease_s=self._limits.lease_s,
        )
        for message in taken:
            task = start(self._send(message), name="webhook")
            self._sending[task] = message
            task.add_done_callback(self._sent)

    def _sent(self, task: asyncio.Task[None]) -> None:
        del self._sending[task]
        self._look.set()

    async def _send(self, message: WebhookMessage) -> None:
        try:
            answer = await self.post(message)
        except (FleetError, OSError) as error:
            # The fleet's own trouble is not the receiver's: others, or the same process, take it again later.
            logger.warning("webhook not sent", extra={"webhook": message.id, "error": str(error)})
            return
        except Exception:  # one message that nobody can make must not be tried for ever
            logger.exception("webhook can't be made", extra={"webhook": message.id})
            answer = PostAnswer(error="the fleet could not make this message: see its log", ours=True)
        step = next_step(
            answer,
            attempts=message.attempts,
            fails=message.fails,
            chance=self._draw(),
            schedule=self._limits.schedule,
        )
        about = {"webhook": message.id, "owner": message.owner, "attempt": message.attempts + 1}
        if step.outcome is DeliveryOutcome.DELIVERED:
            logger.info("webhook delivered", extra=about)
        else:
            logger.warning(
                "webhook not delivered",
                extra={**about, "outcome": step.outcome.value, "reason": step.error, "again_s": step.after_s},
            )
        try:
            await self._webhooks.sent(message, answer, step, most_age_s=longest_s(self._limits.schedule))
        except StoreDown as error:  # it is sent once more
            logger.warning("webhook's outcome not noted", extra={**about, "error": str(error)})
        else:
            self._telemetry.webhook_tried(step.outcome.value)

    async def post(self, message: WebhookMessage) -> PostAnswer:
        """Sign and post a message.

        Raises:
            FleetError: Its body could not be made.
        """
        try:
            secrets = (await self._secrets.of(message.owner)).valid(self._clock())
        except ConfigError:
            logger.error("webhooks can't be signed: all processes need the same secret_file")
            raise
        data = await self._data(message)
        at = datetime.fromtimestamp(message.at, UTC).isoformat(timespec="milliseconds")
        body = orjson.dumps(
            {
                "type": message.type,
                "timestamp": at.replace("+00:00", "Z"),
                "data": data,
            }
        )
        now = datetime.fromtimestamp(int(self._clock()), UTC)
        signatures = [Signer(one).sign(message.id, now, body.decode()) for one in secrets]
        headers = {
            "content-type": "application/json",
            "webhook-id": message.id,
            "webhook-timestamp": str(int(now.timestamp())),
            "webhook-signature": " ".join(signatures),
        }
        caller = data.get("traceparent") if message.job else None
        sending = self._tracing.delivering(message, caller) if self._tracing and message.job else None
        if sending is not None:
            headers["traceparent"] = sending.header
        elif caller:
            headers["traceparent"] = caller
        answer = await self._poster.post(message.url, headers, body, operators=message.owner == OPERATOR)
        if sending is not None:
            sending.done(answer)
        return answer

    async def _listen(self) -> None:
        while True:
            with contextlib.suppress(StoreDown):
                async with self._wakes() as wakes:
                    async for _ in wakes:
                        self._look.set()
            await asyncio.sleep(1.0)

    async def _tend(self) -> None:
        while True:
            try:
                if told := await self._webhooks.tend():
                    logger.info("webhooks written for an earlier version", extra={"count": told})
            except FleetError as error:
                logger.warning("webhooks of earlier versions not looked for", extra={"error": str(error)})
            await asyncio.sleep(self._limits.tend_s)
