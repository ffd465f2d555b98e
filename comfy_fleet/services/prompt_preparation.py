"""Make the prompt of a run: what of the graph is to run, in the node's spelling, with its files there."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import Any

import orjson

from comfy_fleet.domain.errors import BadInput
from comfy_fleet.domain.graphs import file_check
from comfy_fleet.domain.graphs import graph as graphs
from comfy_fleet.domain.graphs.file_check import Declared
from comfy_fleet.domain.jobs.job import Placement
from comfy_fleet.ports.runs import Claim
from comfy_fleet.services.large_graphs import LARGE_BYTES, worked
from comfy_fleet.services.run_deps import RunDeps
from comfy_fleet.services.staging import stage
from comfy_fleet.services.store_retry import retry_while_store_down


@dataclass(frozen=True, kw_only=True)
class PreparedPrompt:
    """What a node is to run.

    Attributes:
        graph: What the job's targets read, in the node's spelling.
        posted: The same with the names of its files on the node, and the run's own prefixes.
        extra_data: What is posted beside it, with its secrets.
    """

    graph: graphs.Graph
    posted: graphs.Graph
    extra_data: Mapping[str, Any]


class PromptPreparation:
    """Makes the prompt of one run."""

    def __init__(self, tools: RunDeps, claim: Claim) -> None:
        self._tools = tools
        self._claim = claim
        self._large = len(claim.graph) > LARGE_BYTES

    async def prepare(self) -> PreparedPrompt | Placement:
        """Put the job's files on the node and return what to post, or where the job belongs instead.

        Raises:
            LeaseLost: Another dispatcher has the run.
            StoreDown: Redis is away.
            ConfigError: ``extra_data`` was sealed under another key.
            BadInput: The graph names files that it may not name.
        """
        graph = self._targeted()
        if (elsewhere := await self._tools.failure_policy.misfit(self._claim, graph)) is not None:
            return elsewhere
        graph = await worked(self._large, partial(self._tools.failure_policy.fitted, self._claim, graph))
        if (unseen := self._tools.failure_policy.unseen(self._claim)) is not None:
            assets = graphs.asset_places(graph, self._claim.job.uploads)
            check = partial(
                file_check.check, graph, Declared(unseen), policy=self._tools.files, assets=assets
            )
            await worked(self._large, check)
        posted = await self._staged(graph)
        secrets = await self._secrets()
        extra_data = {**self._claim.extra_data, **secrets} if secrets else self._claim.extra_data
        return PreparedPrompt(graph=graph, posted=posted, extra_data=extra_data)

    async def graph_of_running(self) -> graphs.Graph:
        """Return the graph of a run that was posted by another dispatcher."""
        graph = self._targeted()
        try:
            return await worked(self._large, partial(self._tools.failure_policy.fitted, self._claim, graph))
        except BadInput:  # it runs anyway
            return graph

    def _targeted(self) -> graphs.Graph:
        """Return what the job's targets read; the rest may be unsound, and never gets to a node."""
        graph: graphs.Graph = orjson.loads(self._claim.graph)
        targets = self._claim.job.targets
        return graphs.part(graph, graphs.upstream(graph, targets)) if targets else graph

    async def _staged(self, graph: graphs.Graph) -> graphs.Graph:
        """Stage the job's files on the node and return the graph to post."""
        job = self._claim.job
        await self._tools.ahead.arrived(self._claim)
        replacements = await stage(
            graph, self._claim, runs=self._tools.runs, nodes=self._tools.nodes, assets=self._tools.assets
        )
        inventory = self._tools.failure_policy.inventory(self._claim.node)
        return await worked(
            self._large,
            lambda: graphs.for_run(
                graph,
                job_id=job.id,
                run_id=self._claim.run,
                replacements=replacements,
                rerun_nodes=job.rerun_nodes | file_check.reruns(graph, inventory),
                saves=file_check.saves(graph, inventory, self._tools.files),
                at=datetime.fromtimestamp(job.created_at).astimezone(),  # the same for every attempt
            ),
        )

    async def _secrets(self) -> Mapping[str, Any] | None:
        """Return the sealed part of ``extra_data``."""
        if not self._claim.job.has_secret:
            return None
        about = self._claim.log_fields
        secret = await retry_while_store_down(
            lambda: self._tools.runs.secret(self._claim), about=about, telemetry=self._tools.telemetry
        )
        return self._tools.open_secret(secret) if secret else None
