"""How an agent learns of its nodes: it polls ``GET /api/v1/nodes``."""

import asyncio
import logging
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import httpx

from comfy_fleet.adapters.system.authorities import authorities
from comfy_fleet.domain.backoff import Backoff
from comfy_fleet.domain.errors import BadInput
from comfy_fleet.domain.jobs.job import DEFAULT_POOL
from comfy_fleet.domain.nodes.node import Node

logger = logging.getLogger(__name__)

_TIMEOUT_S = 5.0
_AGAIN_S, _MAX_PAUSE_S = 0.1, 2.0


class NodesSource(Protocol):
    """A source of an agent's nodes."""

    def watch(self) -> AsyncIterator[Sequence[Node]]:
        """Yield all nodes whenever they are confirmed, changed or not; never ends."""


class HttpNodes:
    """The nodes in the API's list."""

    def __init__(
        self,
        api_url: str,
        *,
        token: str | None = None,
        ca_file: Path | None = None,
        poll_s: float = 0.5,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        """Set up; nothing is asked before :meth:`watch`.

        Args:
            api_url: Base of the API, e.g. ``http://127.0.0.1:8190``.
            token: The agents' token.
            ca_file: Certificate authorities by which the API is known; None: the public ones.
            poll_s: Pause between two requests. An unchanged list costs a 304 without a body.
            transport: Replaces the network, for tests.
        """
        self._url = f"{api_url.rstrip('/')}/api/v1/nodes?sealed=true"
        self._headers = {"Authorization": f"Bearer {token}"} if token else {}
        self._ca_file = ca_file
        self._poll_s = poll_s
        self._backoff = Backoff(first_s=min(poll_s, _AGAIN_S), longest_s=max(poll_s, _MAX_PAUSE_S))
        self._transport = transport

    async def watch(self) -> AsyncIterator[Sequence[Node]]:
        """Yield all nodes whenever the API has confirmed them, changed or not."""
        etag: str | None = None
        nodes: Sequence[Node] = ()
        trouble = ""
        failures = 0
        async with httpx.AsyncClient(
            headers=self._headers,
            timeout=_TIMEOUT_S,
            transport=self._transport,
            verify=authorities(self._url, ca_file=self._ca_file),
        ) as client:
            while True:
                try:
                    reply = await client.get(self._url, headers={"If-None-Match": etag} if etag else {})
                    if reply.status_code != httpx.codes.NOT_MODIFIED:
                        reply.raise_for_status()
                        nodes = parse_nodes(reply.json())
                        etag = reply.headers.get("ETag")
                except (httpx.HTTPError, ValueError) as error:
                    reason = str(error) or type(error).__name__
                    if reason != trouble:
                        logger.warning("nodes can't be read", extra={"url": self._url, "reason": reason})
                    trouble = reason
                    failures += 1
                else:
                    if trouble:
                        logger.info("nodes can be read again", extra={"url": self._url})
                    trouble = ""
                    failures = 0
                    yield nodes
                await asyncio.sleep(self._backoff.pause_s(failures) if failures else self._poll_s)


class WithoutAgent:
    """The nodes of another source that have no agent of their own; for the central agent."""

    def __init__(self, source: NodesSource) -> None:
        self._source = source

    async def watch(self) -> AsyncIterator[Sequence[Node]]:
        """Yield those nodes whenever they are confirmed."""
        async for nodes in self._source.watch():
            yield [node for node in nodes if node.agent is None]


def parse_nodes(body: Any) -> list[Node]:
    """Read the API's list. A node that can't be read is logged and left out.

    Raises:
        ValueError: The body is not ``{"nodes": [...]}``.
    """
    match body:
        case {"nodes": list(rows)}:
            pass
        case _:
            raise ValueError('the answer is not {"nodes": [...]}')
    nodes = []
    for row in rows:
        try:
            nodes.append(
                Node(
                    name=row["name"],
                    url=row["url"],
                    weight=int(row.get("weight", 100)),
                    cordoned=bool(row.get("cordoned", False)),
                    cordon_reason=str(row.get("cordon_reason") or ""),
                    agent=row.get("agent"),
                    sealed=str(row.get("sealed") or ""),
                    pool=str(row.get("pool") or DEFAULT_POOL),
                    weight_by_gpu=bool(row.get("weight_by_gpu", False)),
                    speed=None if row.get("speed") is None else float(row["speed"]),
                    free_idle_s=None if row.get("free_idle_s") is None else float(row["free_idle_s"]),
                )
            )
        except (BadInput, KeyError, TypeError, ValueError, AttributeError) as error:
            logger.warning("node left out", extra={"row": repr(row)[:200], "reason": str(error)})
    return nodes
