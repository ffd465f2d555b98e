"""Messages to webhooks: a durable queue of them, and what sends them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from comfy_fleet.domain.webhooks.delivery import NextStep, PostAnswer


@dataclass(frozen=True, kw_only=True)
class WebhookMessage:
    """A message, as it is stored. Times are Unix seconds.

    Attributes:
        id: Its ``webhook-id``, the same whenever it is sent.
        owner: Whose it is; :data:`comfy_fleet.domain.webhooks.webhook.OPERATOR`: the operator's.
        type: E.g. ``job.succeeded``.
        at: When that happened.
        url: Where it goes.
        job: The job that it is about; empty for the operator's.
        base: Base of URLs in its body.
        data: The operator's: its body's data, as JSON.
        state: ``waiting``, ``delivered`` or ``failed``.
        attempts: Tries so far, since it was last asked for.
        tried_at: When the last one was.
        status: The status of its answer, if there was one.
        error: Why the last one has failed; empty if it has not.
        due_at: When it is sent next, if it waits.
        token: Proves who has it to send.
        fails: How many tries of its receiver have failed in a row, as it was taken.
    """

    id: str
    owner: str
    type: str
    at: float
    url: str
    job: str = ""
    base: str = ""
    data: str = ""
    state: str = "waiting"
    attempts: int = 0
    tried_at: float | None = None
    status: int | None = None
    error: str = ""
    due_at: float | None = None
    token: str = ""
    fails: int = 0


@dataclass(frozen=True, kw_only=True)
class OperatorFact:
    """How something is that operators are told of.

    Attributes:
        thing: What; its first word is its kind, e.g. ``node g1``.
        state: How it is, in one word.
        type: The type of the message for this state; empty: there is none.
        steady_s: For how long it must have been so.
        data: The message's data.
    """

    thing: str
    state: str
    type: str
    steady_s: float
    data: Mapping[str, object]


class Webhooks(Protocol):
    """The messages, in Redis. Those about jobs are written by the scripts that change the jobs."""

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
        """Take messages that are due, for a while in which nobody else gets them.

        Args:
            most: How many.
            most_failing: How many of them to receivers that fail; each such receiver gets one at a time.
            each: How many one receiver gets at a time.
            each_owner: How many of one owner's the caller sends at a time, to all receivers together.
            sending: How many these are now, by owner.
            lease_s: Seconds until others may take them.
        """

    async def sent(
        self, message: WebhookMessage, answer: PostAnswer, step: NextStep, *, most_age_s: float
    ) -> bool:
        """Note what came of sending a message that was taken; False: somebody else has it by now."""

    async def messages(self, owner: str, *, failed: bool, limit: int) -> Sequence[WebhookMessage]:
        """Return an owner's messages, newest first; with ``failed``, only those that were given up."""

    async def of_job(self, job_id: str) -> Sequence[WebhookMessage]:
        """Return the messages about a job that are known, oldest first."""

    async def again(self, owner: str, message_id: str) -> WebhookMessage:
        """Send a message again, now.

        Raises:
            NotFound: It is none of this owner's, or older than 30 days.
            Conflict: It is being sent.
        """

    async def reopen(self, owner: str, url: str) -> None:
        """Let a URL be told of jobs again, although it has answered 410 Gone."""

    async def tell(self, url: str, facts: Sequence[OperatorFact], *, usual: Sequence[str], kind: str) -> int:
        """Write a message to the operator's URL for each fact that is new; return how many.

        Args:
            url: The operator's.
            facts: How things are; all of the kind ``kind``, and some others.
            usual: States of which a thing that was not known before needs no message.
            kind: Things of this kind that are in no fact are forgotten.
        """

    async def tend(self) -> int:
        """Write what earlier versions beside this one have left out; return how many."""

    async def secrets(self, owner: str) -> bytes | None:
        """Return an owner's signing secrets, encrypted; None: there are none yet."""

    async def save_secrets(self, owner: str, sealed: bytes, *, before: bytes | None) -> bool:
        """Store them in place of ``before``; False: there are others by now."""


class WebhookPoster(Protocol):
    """Posts messages."""

    async def post(
        self, url: str, headers: Mapping[str, str], body: bytes, *, operators: bool = False
    ) -> PostAnswer:
        """Post a body; everything that goes wrong is in the answer. It takes half a minute at most.

        Args:
            url: Where to.
            headers: More headers.
            body: The message.
            operators: Whether it is the operator's message, whose URL may be at any address.
        """
