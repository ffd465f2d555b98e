"""Has agents fetch model files, and knows how far they are.

Orders are kept in the store and go to agents with the answers to their heartbeats, until each host has said
how it ended. So nothing is lost when an API or an agent ends: whoever comes next goes on.
"""

import secrets
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any
from uuid import uuid4

from comfy_fleet.domain.errors import Conflict, NotFound
from comfy_fleet.domain.nodes.host import HOST_LABEL, HostState
from comfy_fleet.domain.nodes.model_fetch import (
    ENDS,
    MODELS_FACT,
    FetchState,
    HostFetch,
    ModelFetch,
    ModelOrder,
    check_file_name,
    check_folder,
    check_id,
    check_sha256,
    name_in,
)
from comfy_fleet.domain.outbound import parse_target
from comfy_fleet.ports.model_fetches import ModelFetches
from comfy_fleet.ports.nodes import Hosts, NodeRegistry

LONGEST_S = 86400.0
"""After so long an order is given up for hosts that are not through."""
_LOOK_S = 0.5
_SILENT_S = 15.0


class ModelFetching:
    """Orders to fetch model files.

    Args:
        store: Keeps them.
        nodes: Which nodes there are.
        hosts: What their agents say.
        now: The fleet's time.
        clock: Seconds, monotonic.
    """

    def __init__(
        self,
        store: ModelFetches,
        nodes: NodeRegistry,
        hosts: Hosts,
        *,
        now: Callable[[], Awaitable[float]],
        clock: Callable[[], float],
    ) -> None:
        self._store = store
        self._nodes = nodes
        self._hosts = hosts
        self._now = now
        self._clock = clock
        self._open: tuple[float, Sequence[ModelFetch]] = (float("-inf"), ())

    async def begin(
        self,
        url: str,
        *,
        folder: str,
        sha256: str,
        name: str | None,
        pool: str | None,
        pickles: bool,
        by: str,
    ) -> ModelFetch:
        """Order a file.

        Args:
            url: Where it is.
            folder: Below ``models``.
            sha256: Its hash.
            name: Its name there; None: as the URL ends.
            pool: Only nodes of this pool; None: all.
            pickles: Whether it may be of a kind that can run code.
            by: Who wants it.

        Raises:
            BadInput: Something in it can't be, or is not allowed.
            NotFound: No node is in the pool.
            Conflict: No agent can fetch it, or too many orders are not over.
        """
        target = parse_target(url)
        name = check_file_name(name or name_in(target.url), pickles=pickles)
        states = [one.node for one in await self._nodes.states() if pool in (None, one.node.pool)]
        if not states:
            raise NotFound(f"no node is in pool {pool[:80]!r}" if pool else "the fleet has no node")
        nodes: dict[str, list[str]] = {}
        for node in states:
            if node.agent and (host := node.labels.get(HOST_LABEL)):
                nodes.setdefault(host, []).append(node.name)
        if not nodes:
            raise Conflict(
                "none of these nodes has an agent on its host, which could fetch a file: `fleet agent` there",
                details={"field": "pool"},
            )
        now = await self._now()
        unable = _unable({state.host: state for state in await self._hosts.hosts()}, nodes)
        if len(unable) == len(nodes):
            host, why = next(iter(sorted(unable.items())))
            raise Conflict(f"no agent can fetch it: host {host}: {why}", details={"field": "pool"})
        fetch = ModelFetch(
            id=str(uuid4()),
            url=target.url,
            folder=check_folder(folder),
            name=name,
            sha256=check_sha256(sha256),
            pickles=pickles,
            hosts={host: tuple(sorted(names)) for host, names in sorted(nodes.items())},
            pool=pool or "",
            by=by,
            created_at=now,
            ticket=secrets.token_urlsafe(32),
        )
        await self._store.add(fetch)
        for host, why in unable.items():
            await self._store.tell(fetch, host, HostFetch(state=FetchState.FAILED, words=why, at=now))
        self._forget()
        return await self.get(fetch.id)

    async def get(self, fetch_id: str) -> ModelFetch:
        """Return an order. Raises NotFound, BadInput."""
        found = await self._store.get(check_id(fetch_id))
        if found is None:
            raise NotFound(f"no fetch {fetch_id}")
        return found

    async def recent(self) -> Sequence[ModelFetch]:
        """Return the orders of the last days, the newest first."""
        return await self._store.recent()

    async def cancel(self, fetch_id: str) -> ModelFetch:
        """Have agents stop. Where the file is by now, it stays. Raises NotFound, BadInput."""
        fetch = await self.get(fetch_id)
        if fetch.open:
            await self._store.cancel(fetch.id)
            self._forget()
            now = await self._now()
            alive = {state.host for state in await self._hosts.hosts() if state.alive}
            for host in fetch.hosts:
                # Nobody has begun there, or will ever say that he has stopped.
                if fetch.of(host).state is FetchState.WAITING and host not in alive:
                    await self._end(fetch, host, FetchState.CANCELED, "", now)
            await self._close_if_over(fetch.id)
        return await self.get(fetch.id)

    async def orders(self, host: str, *, local: bool) -> list[ModelOrder]:
        """Return what a host's agent is to do. Asks the store twice a second at most.

        Args:
            host: The host.
            local: Whether its agent is on the fleet's machine.
        """
        if self._clock() - self._open[0] > _LOOK_S:
            self._open = self._clock(), await self._store.open()
        if not self._open[1]:
            return []
        now, found = await self._now(), list[ModelOrder]()
        for fetch in self._open[1]:
            if now - fetch.created_at > LONGEST_S:
                for late in fetch.hosts:
                    if fetch.of(late).state not in ENDS:
                        why = "its agent did not end within a day"
                        await self._end(fetch, late, FetchState.FAILED, why, now)
                await self._close_if_over(fetch.id)
            elif (order := fetch.order(host, now=now, fresh_s=_SILENT_S, local=local)) is not None:
                found.append(order)
        return found

    async def told(self, host: str, fetch_id: str, told: HostFetch, *, serves: str) -> Sequence[str]:
        """Note what a host's agent says; return the nodes that have the file now, if they got it just now.

        Args:
            host: The host.
            fetch_id: The order's id. One that is not known, or not the host's, is left out.
            told: What it says.
            serves: ``HOST:PORT`` where it gives the file to others; empty: nowhere.
        """
        fetch = await self._store.get(check_id(fetch_id))
        if fetch is None or host not in fetch.hosts or not fetch.open:
            return ()
        told = replace(told, at=await self._now())
        ended = await self._store.tell(fetch, host, told, serves=serves)
        self._forget()
        if not ended:
            return ()
        await self._close_if_over(fetch.id)
        return fetch.hosts[host] if told.state is FetchState.DONE else ()

    async def _end(self, fetch: ModelFetch, host: str, state: FetchState, words: str, now: float) -> None:
        await self._store.tell(fetch, host, HostFetch(state=state, words=words, at=now))

    async def _close_if_over(self, fetch_id: str) -> None:
        fetch = await self._store.get(fetch_id)
        if fetch is not None and not fetch.open:
            await self._store.close(fetch)
            self._forget()

    def _forget(self) -> None:
        self._open = float("-inf"), ()


def _unable(hosts: Mapping[str, HostState], wanted: Mapping[str, Sequence[str]]) -> dict[str, str]:
    """Return why hosts can't fetch a file, of those whose agents are heard."""
    found = {}
    for host, names in wanted.items():
        state = hosts.get(host)
        if state is None or not state.alive:
            continue  # it gets the order once it is back
        reports: Sequence[Mapping[str, Any]] = state.record.get("nodes", ())
        facts = {report["name"]: report.get("facts") or {} for report in reports}
        if not any(facts.get(name, {}).get(MODELS_FACT) for name in names):
            found[host] = (
                "its agent sees no folder of models: start it with --comfyui, or --models-dir NAME=DIR"
                if any(MODELS_FACT in facts.get(name, {}) for name in names)
                else "its agent is of a version that can't fetch models"
            )
    return found
