"""REST: messages to webhooks, and what they are signed with."""

import time
from typing import Annotated, Any
from uuid import uuid4

from pydantic import BaseModel, ConfigDict, Field
from starlette.requests import Request
from starlette.responses import Response
from typing_extensions import TypedDict

from comfy_fleet.api import serialize
from comfy_fleet.api.answers import Time
from comfy_fleet.api.deps import deps, operator, owner
from comfy_fleet.api.json import json_response
from comfy_fleet.api.typed_bodies import read, read_query
from comfy_fleet.domain.errors import BadInput
from comfy_fleet.domain.webhooks.webhook import MOST_URL, OPERATOR, checked_url
from comfy_fleet.ports.webhooks import WebhookMessage
from comfy_fleet.services.webhook_deliverer import TEST
from comfy_fleet.services.webhook_secrets import SigningSecrets

_OPERATOR = Field(False, description="Those to `FLEET_OPERATOR_WEBHOOK_URL` instead; for operators.")


class WhoseWebhooks(BaseModel):
    """Whose messages."""

    operator: bool = _OPERATOR


class WebhooksQuery(WhoseWebhooks):
    """Which messages."""

    failed: bool = Field(False, description="Only those that were given up.")
    limit: int = Field(50, ge=1, le=1000, description="Most messages.")


class WebhookMessageAnswer(TypedDict):
    """A message to a webhook."""

    id: Annotated[str, Field(description="Its `webhook-id`, the same whenever it is sent.")]
    type: Annotated[str, Field(description="E.g. `job.succeeded`.")]
    timestamp: Annotated[Time, Field(description="When that happened.")]
    job: Annotated[str | None, Field(description="The job that it is about.")]
    url: str
    state: Annotated[str, Field(description="`waiting`, `delivered` or `failed`.")]
    attempts: Annotated[int, Field(description="Tries since it was written, or last asked for.")]
    last_attempt_at: Time | None
    last_status: Annotated[int | None, Field(description="The status of the last try's answer.")]
    error: Annotated[str | None, Field(description="Why the last try has failed.")]
    next_attempt_at: Annotated[Time | None, Field(description="When it is due, if it waits.")]


class WebhookListAnswer(TypedDict):
    """Messages, newest first."""

    webhooks: list[WebhookMessageAnswer]


class WebhookTestAnswer(TypedDict):
    """What came of a try."""

    id: str
    delivered: bool
    status: Annotated[int | None, Field(description="Of the answer, if there was one.")]
    error: Annotated[str | None, Field(description="Why it was not delivered.")]


class WebhookSecretAnswer(TypedDict):
    """What messages are signed with."""

    secret: Annotated[str, Field(description="`whsec_` and base64, as the libraries want it.")]
    previous_until: Annotated[
        Time | None, Field(description="Until then, messages carry the signature of the one before, too.")
    ]


class TryWebhookBody(BaseModel):
    """Where to send a message for a try."""

    model_config = ConfigDict(
        extra="forbid", strict=True, json_schema_extra={"example": {"url": "https://shop.example.org/hooks"}}
    )

    url: str = Field(max_length=2 * MOST_URL, description="An http(s) URL.")


async def list_webhooks(request: Request) -> Response:
    """Your newest messages; at most 1,000 are known, and as many that were given up, for 30 days."""
    query = read_query(request, WebhooksQuery)
    found = await deps(request).webhooks.messages(
        _whose(request, query.operator), failed=query.failed, limit=query.limit
    )
    return json_response({"webhooks": [_row(one) for one in found]})


async def redeliver_webhook(request: Request) -> Response:
    """Send a message again, under the same id; it is tried as often as a new one."""
    who = _whose(request, read_query(request, WhoseWebhooks).operator)
    return json_response(
        _row(await deps(request).webhooks.again(who, request.path_params["message_id"])), 202
    )


async def try_webhook(request: Request) -> Response:
    """Send a message of the type `webhook.test` at once.

    If it is taken, a URL that has answered 410 before is told of jobs again.
    """
    d, who = deps(request), owner(request)
    url = checked_url((await read(request, TryWebhookBody)).url, d.settings.webhook_allowed, field="url")
    message = WebhookMessage(
        id=f"msg_test_{uuid4()}",
        owner=who,
        type=TEST,
        at=time.time(),
        url=url,
        data='{"message":"It works."}',
    )
    answer = await d.deliverer.post(message)
    delivered = answer.status is not None and 200 <= answer.status < 300
    if delivered:
        await d.webhooks.reopen(who, url)
    error = answer.error or (None if delivered else f"the receiver answered {answer.status}")
    return json_response({"id": message.id, "delivered": delivered, "status": answer.status, "error": error})


async def get_webhook_secret(request: Request) -> Response:
    """Receivers check signatures with it."""
    who = _whose(request, read_query(request, WhoseWebhooks).operator)
    return json_response(_secret(await deps(request).webhook_secrets.of(who)))


async def rotate_webhook_secret(request: Request) -> Response:
    """A new secret. For a day, messages carry both signatures, so that receivers can be changed meanwhile."""
    who = _whose(request, read_query(request, WhoseWebhooks).operator)
    return json_response(_secret(await deps(request).webhook_secrets.rotate(who)))


def _whose(request: Request, operators: bool) -> str:
    if not operators:
        return owner(request)
    operator(request)
    if deps(request).settings.operator_webhook_url is None:
        raise BadInput(
            "there is no operator's webhook: set FLEET_OPERATOR_WEBHOOK_URL", details={"field": "operator"}
        )
    return OPERATOR


def _row(one: WebhookMessage) -> dict[str, Any]:
    return {
        "id": one.id,
        "type": one.type,
        "timestamp": serialize.time(one.at),
        "job": one.job or None,
        "url": one.url,
        "state": one.state,
        "attempts": one.attempts,
        "last_attempt_at": None if one.tried_at is None else serialize.time(one.tried_at),
        "last_status": one.status,
        "error": one.error or None,
        "next_attempt_at": None if one.due_at is None else serialize.time(one.due_at),
    }


def _secret(found: SigningSecrets) -> dict[str, Any]:
    return {
        "secret": found.current,
        "previous_until": serialize.time(found.before_until) if len(found.valid(time.time())) > 1 else None,
    }
