"""A host's model files: watches their folders, has new ones fetched, and tells the API of both."""

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import httpx
from aiohttp import web

from comfy_fleet.adapters.system.authorities import authorities
from comfy_fleet.agent.model_fetcher import ModelFetcher
from comfy_fleet.agent.model_folders import stamp
from comfy_fleet.agent.model_place import sweep
from comfy_fleet.domain.backoff import Backoff
from comfy_fleet.domain.nodes.model_fetch import ENDS, HostFetch
from comfy_fleet.tasks import forever
from comfy_fleet.timeouts import Timeout

logger = logging.getLogger(__name__)

WATCH_S = 2.0
_SWEEP_S = 3600.0
_TELL_S = 1.0
_AGAIN_S = 10.0
"""How often the API is told the same again while it repeats an order: it may have lost it."""
_TIMEOUT_S = 5.0
_BACKOFF = Backoff(first_s=0.5, longest_s=15.0)


class HostModels:
    """Looks after a host's model files.

    Args:
        api_url: Base of the API or of the edge.
        host: The host's name.
        instance: Which start of the agent speaks.
        roots: Returns the nodes' folders ``models``.
        fetcher: Fetches files.
        address: Where files are given to other agents.
        port: The port there; 0: any that is free.
        changed: Set when there is something to tell.
        token: The agents' token.
        ca_file: Certificate authorities by which the API is known; None: the public ones.
        watch_s: How often folders are looked at.
        clock: Seconds, monotonic.
    """

    def __init__(
        self,
        api_url: str,
        host: str,
        *,
        instance: str,
        roots: Callable[[], Mapping[str, Path]],
        fetcher: ModelFetcher,
        address: str,
        port: int,
        changed: asyncio.Event,
        token: str | None = None,
        ca_file: Path | None = None,
        watch_s: float = WATCH_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._url = f"{api_url.rstrip('/')}/api/v1/agents/{host}/models"
        self._headers = {"Authorization": f"Bearer {token}"} if token else {}
        self._ca_file = ca_file
        self._instance = instance
        self._roots = roots
        self._fetcher = fetcher
        self._address = address
        self._port = port
        self._something = changed
        self._watch_s = watch_s
        self._clock = clock
        self._stamps: dict[str, int] = {}
        self._changed: set[str] = set()
        self._known: dict[str, tuple[HostFetch, float]] = {}
        self._listens = asyncio.Event()

    async def run(self) -> None:
        """Watch, give and tell until canceled."""
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(forever(self._watch, name="models", pause_s=lambda: self._watch_s))
                group.create_task(forever(self._sweep, name="leftovers", pause_s=lambda: _SWEEP_S))
                group.create_task(forever(self._give, name="giving models", pause_s=lambda: _SWEEP_S))
                group.create_task(forever(self._tell, name="telling of models"))
        finally:
            await self._fetcher.stop()

    async def _watch(self) -> None:
        stamps: dict[Path, int] = {}
        for node, root in self._roots().items():
            if root not in stamps:
                stamps[root] = await asyncio.to_thread(stamp, root)
            if self._stamps.get(node) != stamps[root]:
                self._stamps[node] = stamps[root]
                self._changed.add(node)
                self._something.set()

    async def _sweep(self) -> None:
        for root in set(self._roots().values()):
            if swept := await asyncio.to_thread(sweep, root):
                logger.info("leftovers of fetches removed", extra={"folder": str(root), "files": swept})

    async def _give(self) -> None:
        """Give files to other agents, from the first order on."""
        await self._fetcher.ordered.wait()
        app = web.Application()
        app.add_routes([web.get("/models/{id}", self._fetcher.give)])
        runner = web.AppRunner(app, access_log=None, handle_signals=False, shutdown_timeout=0)
        try:
            await runner.setup()
            await web.TCPSite(runner, self._address, self._port).start()
            shown = f"[{self._address}]" if ":" in self._address else self._address
            self._fetcher.serves = f"{shown}:{runner.addresses[0][1]}"
            self._known.clear()  # the API hears where
            self._listens.set()
            await asyncio.Event().wait()
        except OSError as error:
            logger.warning(
                "models not given to other agents",
                extra={"host": self._address, "port": self._port, "reason": error.strerror or str(error)},
            )
        finally:
            self._fetcher.serves = ""
            self._listens.set()
            await runner.cleanup()

    async def _tell(self) -> None:
        failures = 0
        async with httpx.AsyncClient(
            headers=self._headers,
            timeout=_TIMEOUT_S,
            verify=authorities(self._url, ca_file=self._ca_file),
        ) as client:
            while True:
                with contextlib.suppress(TimeoutError):
                    async with Timeout(_TELL_S):
                        await self._something.wait()
                self._something.clear()
                if self._fetcher.reports():  # a host that is told to have a file must be known to give it
                    with contextlib.suppress(TimeoutError):
                        async with Timeout(_TELL_S):
                            await self._listens.wait()
                changed, news = set(self._changed), self._news()
                if not changed and not news:
                    continue
                try:
                    await self._send(client, changed, news)
                except (httpx.HTTPError, ValueError) as error:
                    failures += 1
                    if failures == 1:
                        logger.warning("the API does not hear of models", extra={"reason": str(error)})
                    await asyncio.sleep(_BACKOFF.pause_s(failures))
                else:
                    failures = 0
                    self._changed -= changed
                    at = self._clock()
                    self._known |= {id_: (told, at) for id_, told in news.items()}

    def _news(self) -> dict[str, HostFetch]:
        """Return what the API has not heard, or not for a while."""
        reports = self._fetcher.reports()
        self._known = {id_: known for id_, known in self._known.items() if id_ in reports}
        return {
            id_: told
            for id_, told in reports.items()
            if (known := self._known.get(id_)) is None
            or known[0] != told
            or self._clock() - known[1] >= (_AGAIN_S if told.state in ENDS else _AGAIN_S / 2)
        }

    async def _send(
        self, client: httpx.AsyncClient, changed: set[str], news: Mapping[str, HostFetch]
    ) -> None:
        fetches: list[dict[str, Any]] = []
        for id_, told in news.items():
            fields = asdict(told)
            del fields["at"]
            fetches.append({"id": id_, **fields})
        body = {
            "instance": self._instance,
            "changed": sorted(changed)[:256],
            "fetches": fetches,
            "serves": self._fetcher.serves,
        }
        answer = await client.post(self._url, json=body)
        if answer.is_error:
            raise ValueError(f"{answer.status_code}: {answer.text[:200]}")
