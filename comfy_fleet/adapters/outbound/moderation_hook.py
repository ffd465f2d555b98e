"""The moderation hook: an operator's HTTP service judges."""

import asyncio
import logging
from base64 import b64encode
from dataclasses import asdict
from ipaddress import ip_network
from typing import Any

import orjson

from comfy_fleet.adapters.outbound.guarded_calls import OutboundHttp
from comfy_fleet.domain.errors import OutboundFailed, OutboundRefused
from comfy_fleet.domain.moderation import (
    JudgedFile,
    Judgement,
    ModerationDown,
    ModerationQuestion,
    read_judgement,
)
from comfy_fleet.domain.outbound import AllowedHosts, parse_target

logger = logging.getLogger(__name__)

_MOST_ANSWER = 64 * 1024
_OFF_LOOP = 256 * 1024
_OK = 200


class HttpModerator:
    """:class:`comfy_fleet.ports.moderation.Moderator` behind a URL.

    Args:
        url: Where questions are posted; any host, as it is the operator's.
        token: Sent as ``Authorization: Bearer``; None: nothing is.
        within_s: Longest time for an answer.
    """

    def __init__(self, url: str, *, token: str | None, within_s: float) -> None:
        target = parse_target(url)
        self._url = url
        self._within_s = within_s
        self._headers = {
            "Content-Type": "application/json",
            **({"Authorization": f"Bearer {token}"} if token else {}),
        }
        # A host that is named is allowed wherever it is; an address is a network of one.
        hosts = () if target.address is not None else ((target.host, target.port),)
        networks = () if target.address is None else ((ip_network(target.host), target.port),)
        self._calls = OutboundHttp(allowed=AllowedHosts(hosts, networks), purpose="moderation")

    async def judge(self, question: ModerationQuestion) -> Judgement:
        """See the port."""
        size = sum(len(one.data or b"") for one in question.files)
        body = await asyncio.to_thread(_dump, question) if size > _OFF_LOOP else _dump(question)
        try:
            async with self._calls.post(
                self._url, body, headers=self._headers, most_bytes=_MOST_ANSWER, within_s=self._within_s
            ) as answer:
                status, told = answer.status, await answer.read()
            judgement = read_judgement(orjson.loads(told)) if status == _OK else None
        except (OutboundFailed, OutboundRefused, ValueError) as error:
            raise _down(question, str(error)) from error
        if judgement is None:
            raise _down(question, f"it answers {status}")
        return judgement


def _down(question: ModerationQuestion, why: str) -> ModerationDown:
    logger.warning("moderation hook failed", extra={"stage": question.stage, "error": why})
    return ModerationDown("nobody answers who judges content: try again", retry_after_s=5)


def _dump(question: ModerationQuestion) -> bytes:
    return orjson.dumps(
        {
            "stage": question.stage,
            "owner": question.owner,
            "tenant": question.tenant,
            "job": question.job or None,
            "workflow": question.workflow or None,
            "params": dict(question.params),
            "texts": [asdict(one) for one in question.texts],
            "files": [_file(one) for one in question.files],
        }
    )


def _file(one: JudgedFile) -> dict[str, Any]:
    return {
        "node_id": one.node_id,
        "input": one.input,
        "name": one.name,
        "content_type": one.content_type,
        "size_bytes": one.size_bytes,
        "hash": one.hash,
        "data": None if one.data is None else b64encode(one.data).decode(),
    }
