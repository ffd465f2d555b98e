"""The agent's connection to the API: a heartbeat every second, orders in the answer."""

import asyncio
import logging
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import httpx

from comfy_fleet.adapters.system.authorities import authorities
from comfy_fleet.agent.node_source import parse_nodes
from comfy_fleet.domain.backoff import Backoff
from comfy_fleet.domain.errors import BadInput
from comfy_fleet.domain.nodes.host import METRICS_HEADER, Cleanup, GpuAllocation, Heartbeat, Joining, written
from comfy_fleet.domain.nodes.model_fetch import ModelOrder
from comfy_fleet.domain.nodes.node import Node
from comfy_fleet.domain.records import from_fields
from comfy_fleet.timeouts import Timeout

logger = logging.getLogger(__name__)

BEAT_S = 1.0
_TIMEOUT_S = 5.0
AGAIN_S = 0.25  # a single lost answer must not delay a change
_LONGEST_PAUSE_S = 15.0


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What the API answered to a heartbeat.

    Attributes:
        asked: The heartbeat that was sent.
        asked_at: When it was sent, on the agent's monotonic clock.
        nodes: The host's nodes as they are registered.
        joined: Nodes that are registered now.
        refused: Nodes that could not be registered, and why.
        explained: Those of the reported prompts that are runs of the fleet.
        clear: Those of the leaving nodes that no run needs.
        delete: Files to delete.
        restart: Nodes that an operator wants restarted.
        neighbours: Nodes of other agents on this host's GPUs, by name.
        store: Identifies the fleet's store; another value means that it was emptied. Empty if the API does
            not say.
        fetches: Model files to fetch, or to give to others.
    """

    asked: Heartbeat
    asked_at: float
    nodes: Sequence[Node] = ()
    joined: frozenset[str] = frozenset()
    refused: Mapping[str, str] = field(default_factory=dict)
    explained: frozenset[str] = frozenset()
    clear: frozenset[str] = frozenset()
    delete: Sequence[Cleanup] = ()
    restart: frozenset[str] = frozenset()
    neighbours: Mapping[str, GpuAllocation] = field(default_factory=dict)
    store: str = ""
    fetches: Sequence[ModelOrder] = ()


class ApiClient:
    """Sends heartbeats, and passes on the API's answers."""

    def __init__(
        self,
        api_url: str,
        host: str,
        *,
        compose: Callable[[], tuple[Heartbeat, Sequence[Joining]]],
        take: Callable[[Answer], None],
        changed: asyncio.Event | None = None,
        token: str | None = None,
        ca_file: Path | None = None,
        every_s: float = BEAT_S,
        again_s: float = AGAIN_S,
        transport: httpx.AsyncBaseTransport | None = None,
        clock: Callable[[], float] = time.monotonic,
        jitter: Callable[[], float] = random.random,
        metrics: Callable[[], str] = str,
    ) -> None:
        """Set up; nothing is sent before :meth:`run`.

        Args:
            api_url: Base of the API or of the edge.
            host: This host's name.
            compose: Says what to send: the heartbeat, and nodes to register.
            take: Gets every answer.
            changed: Set when the next heartbeat should be sent at once; then cleared.
            token: The agents' token.
            ca_file: Certificate authorities by which the API is known; None: the public ones.
            every_s: Pause between two heartbeats.
            again_s: Pause after a failure; doubles up to 15 s while the API is away.
            transport: Replaces the network, for tests.
            clock: Seconds, monotonic.
            jitter: Returns 0 to 1, drawn for each pause, so that a thousand agents don't come back at once.
            metrics: Returns ``HOST:PORT`` where this agent serves its metrics; empty: nowhere.
        """
        self._url = f"{api_url.rstrip('/')}/api/v1/agents/{host}/heartbeat"
        self._headers = {"Authorization": f"Bearer {token}"} if token else {}
        self._ca_file = ca_file
        self._compose = compose
        self._take = take
        self._every_s = every_s
        self._backoff = Backoff(first_s=again_s, longest_s=_LONGEST_PAUSE_S)
        self._transport = transport
        self._clock = clock
        self._jitter = jitter
        self._metrics = metrics
        self._changed = changed or asyncio.Event()
        self.trouble = ""

    async def run(self) -> None:
        """Send heartbeats until canceled."""
        failures = 0
        async with httpx.AsyncClient(
            headers=self._headers,
            timeout=_TIMEOUT_S,
            transport=self._transport,
            verify=authorities(self._url, ca_file=self._ca_file),
        ) as client:
            while True:
                try:
                    answer = await self._beat(client)
                except (httpx.HTTPError, httpx.InvalidURL, ValueError, BadInput) as error:
                    failures += 1
                    self._failed(str(error) or type(error).__name__)
                else:
                    failures = 0
                    self._well()
                    self._take(answer)
                pause = self._every_s
                if failures:
                    pause = self._backoff.pause_s(failures)
                    pause *= 0.5 + self._jitter() / 2
                try:
                    async with Timeout(pause):
                        await self._changed.wait()
                except TimeoutError:
                    pass
                self._changed.clear()

    async def _beat(self, client: httpx.AsyncClient) -> Answer:
        beat, join = self._compose()
        asked_at = self._clock()
        body = {
            **{name: value for name, value in asdict(beat).items() if name != "host"},
            "nodes": [written(asdict(report)) for report in beat.nodes],
            "deleted": [str(cleanup) for cleanup in beat.deleted],
            "join": [_registration(one) for one in join],
        }
        # As a header: APIs of earlier versions refuse fields that they don't know.
        at = self._metrics()
        reply = await client.post(self._url, json=body, headers={METRICS_HEADER: at} if at else None)
        if reply.is_error:
            raise ValueError(self._refusal(reply))
        reply_body: Any = reply.json()
        if not isinstance(reply_body, dict):
            raise ValueError("the answer is not an object")  # noqa: TRY004 - one error for all unusable answers
        return Answer(
            asked=beat,
            asked_at=asked_at,
            nodes=parse_nodes(reply_body),
            joined=frozenset(map(str, reply_body.get("joined", ()))),
            refused={str(name): str(why) for name, why in dict(reply_body.get("refused", {})).items()},
            explained=frozenset(map(str, reply_body.get("explained", ()))),
            clear=frozenset(map(str, reply_body.get("clear", ()))),
            delete=[Cleanup.parse(str(line)) for line in reply_body.get("delete", ())],
            restart=frozenset(map(str, reply_body.get("restart", ()))),
            neighbours={
                str(name): _allocation(one) for name, one in dict(reply_body.get("neighbours", {})).items()
            },
            store=str(reply_body.get("store", "")),
            fetches=[_order(one) for one in reply_body.get("fetches", ())],
        )

    def _refusal(self, reply: httpx.Response) -> str:
        if reply.status_code != httpx.codes.UNAUTHORIZED:
            return f"{reply.status_code}: {_message(reply)}"
        which = "does not know this token" if self._headers else "wants the agents' token"
        return f"401: the API {which}: --token, or FLEET_AGENT_TOKEN as the API has it"

    def _failed(self, reason: str) -> None:
        if reason != self.trouble:
            logger.warning("heartbeat failed", extra={"url": self._url, "reason": reason})
        self.trouble = reason

    def _well(self) -> None:
        if self.trouble:
            logger.info("heartbeats arrive again", extra={"url": self._url})
        self.trouble = ""


def _registration(joining: Joining) -> dict[str, Any]:
    """Return a registration as it is sent."""
    fields = asdict(joining)
    del fields["sealed"]  # what is sealed, the API seals itself
    if joining.editor is None:  # APIs of earlier versions refuse fields that they don't know
        del fields["editor"]
    return written(fields)


def _order(fields: Mapping[str, Any]) -> ModelOrder:
    try:
        return from_fields(ModelOrder, fields)
    except TypeError as error:
        raise ValueError(f"an order to fetch a model can't be read: {error}") from error


def _allocation(fields: Mapping[str, Any]) -> GpuAllocation:
    try:
        return from_fields(GpuAllocation, fields)
    except TypeError as error:
        raise ValueError(f"a neighbour's GPU allocation can't be read: {error}") from error


def _message(reply: httpx.Response) -> str:
    try:
        match reply.json():
            case {"error": {"message": str(message)}}:
                return message
    except ValueError:
        pass
    return reply.text[:200]
