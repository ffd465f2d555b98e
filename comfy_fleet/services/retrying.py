"""Submit a job's graph again as a new job: with the same seeds, or with new ones."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol

import orjson

from comfy_fleet.domain.errors import BadInput, Conflict, FleetError, StoreDown
from comfy_fleet.domain.graphs.graph import Graph
from comfy_fleet.domain.graphs.reseed import Reseeded, editor_graph_with, is_seed, reseeded
from comfy_fleet.domain.graphs.workflow import ManifestRequirements, ParameterType, Workflow
from comfy_fleet.domain.jobs.job import (
    ANY_POOL,
    DEFAULT_POOL,
    MAX_PRIORITY,
    Job,
    NewJob,
    Placement,
    PromptFields,
)
from comfy_fleet.domain.limits import ScopedLimits
from comfy_fleet.domain.nodes.eligibility import GIB, PlacementRequest, Requirements
from comfy_fleet.domain.schedule.waiting_job import BATCH, SINGLE
from comfy_fleet.domain.webhooks.webhook import Webhook
from comfy_fleet.ports.jobs import Idempotency, JobStore, Submitted
from comfy_fleet.ports.prompts import PromptLists
from comfy_fleet.ports.workflows import Catalog
from comfy_fleet.services.submitter import JobOptions, Submitter


class SecretsGone(Conflict):
    """What was sent in secret with a job was erased at its end."""

    code = "secrets_gone"


class NoSeed(BadInput):
    """A job has no seed, so another run with new seeds would be the same one."""

    code = "no_seed"


class NeedsOf(Protocol):
    """Requirements by the placements of jobs."""

    async def requirements(self, placement: Placement) -> Requirements:
        """Return what a job of this placement needs of a node; nothing if that is no longer known."""


@dataclass(frozen=True, kw_only=True)
class Retry:
    """How a job is submitted again.

    Attributes:
        new_seed: Whether its seeds are drawn anew.
        extra_data: Replaces what was sent as ``extra_data``; None: the same again.
        traceparent: The trace that the new job belongs to.
        webhook: Who is told what becomes of the new job; None: nobody.
        quotas: The limits of who asks.
        most_priority: The highest priority that the new job may have; that of the first may be higher.
    """

    new_seed: bool = False
    extra_data: Mapping[str, Any] | None = None
    idempotency: Idempotency | None = None
    traceparent: str | None = None
    most_priority: int = MAX_PRIORITY
    webhook: Webhook | None = None
    quotas: tuple[ScopedLimits, ...] = ()


class Retrying:
    """Submits jobs again.

    The new job has the graph, the parameters, the workflow's version, the files, the placement, the priority
    and the labels of the first, and as much time. It is no client's: nobody's websocket is told of it.

    Args:
        submitter: Checks graphs, and writes jobs.
        jobs: Reads graphs.
        prompts: Reads ``extra_data``.
        catalog: Stored workflows.
        needs: Tells where the first job could run.
        draw_seed: Draws a seed.
        clock: Unix seconds.
    """

    def __init__(
        self,
        *,
        submitter: Submitter,
        jobs: JobStore,
        prompts: PromptLists,
        catalog: Catalog,
        needs: NeedsOf,
        draw_seed: Callable[[], int],
        clock: Callable[[], float],
    ) -> None:
        self._submitter = submitter
        self._jobs = jobs
        self._prompts = prompts
        self._catalog = catalog
        self._needs = needs
        self._draw_seed = draw_seed
        self._clock = clock

    async def retry(self, job: Job, how: Retry) -> Submitted:
        """Submit a job again.

        Raises:
            SecretsGone: It came with secrets in ``extra_data``, and ``how`` has none.
            NoSeed: New seeds are wanted, and it has no seed.
            NotFound: It is past its retention.
            FleetError: Everything that :meth:`Submitter.graph` raises.
        """
        return await self._submitter.write(await self.new_job(job, how), how.idempotency)

    async def new_job(self, job: Job, how: Retry) -> NewJob:
        """Return the job that :meth:`retry` would write.

        Raises:
            FleetError: Everything that :meth:`retry` raises before it is written.
        """
        if job.has_secret and how.extra_data is None:
            raise SecretsGone(
                "the keys in its extra_data were erased when it ended: send extra_data again, "
                "or an empty one to go without them",
                details={"field": "extra_data"},
            )
        graph: Graph = orjson.loads(await self._jobs.graph(job))
        extra = how.extra_data
        if extra is None:
            extra = (await self._prompts.contents([job], 0))[0].extra_data if job.has_extra_data else {}
        options = JobOptions(
            priority=min(job.priority, how.most_priority),
            metadata=job.metadata,
            extra_data=extra,
            ttl_s=None if job.deadline_at is None else max(1.0, job.deadline_at - job.created_at),
            timeout_s=job.timeout_s,
            finish_by=self._wish(job),
            tier=BATCH if job.tier == BATCH else SINGLE,
            where=await self._where(job.placement),
            idempotency=how.idempotency,
            traceparent=how.traceparent,
            prompt=PromptFields(targets=job.targets),
            uploads=job.uploads,
            retry_of=job.id,
            webhook=how.webhook,
            quotas=how.quotas,
            output=job.output.asked() if job.output else None,
            custom_id=job.output.custom_id if job.output else "",
        )
        workflow = await self._version(job)
        if workflow is not None:
            return await self._submitter.workflow_job(
                job.owner, workflow, _params(job, workflow, how), options
            )
        made_of, params = None, dict(job.params)
        if job.workflow is not None:  # its version is gone, its graph is not
            made_of = _stand_in(job, options.where)
        if how.new_seed:
            if (new := reseeded(graph, self._draw_seed)) is None:
                raise NoSeed("the job's graph has no seed: it would make the same again")
            graph, params = new.graph, _with_seeds(params, new)
            options = _with_editor_graph(options, new)
        return await self._submitter.graph_job(job.owner, graph, options, made_of=made_of, params=params)

    def _wish(self, job: Job) -> float | None:
        """Return when the new job should be done: as long after its submit as the first should have been."""
        if job.finish_by is None:
            return None
        return self._clock() + max(1.0, job.finish_by - job.created_at)

    async def _version(self, job: Job) -> Workflow | None:
        """Return the stored workflow in the job's version, if it is still there."""
        if job.workflow is None:
            return None
        try:
            found = await self._catalog.get(f"{job.workflow}@{job.workflow_version}", job.owner)
        except StoreDown:
            raise
        except FleetError:
            return None
        return found if found.version == job.workflow_version else None

    async def _where(self, placement: Placement) -> PlacementRequest:
        needs = await self._needs.requirements(placement)
        if placement.spill == (ANY_POOL,):
            pools = PlacementRequest(prefer=placement.pool)
        elif placement.pool != DEFAULT_POOL or placement.spill:
            pools = PlacementRequest(pool=placement.pool, spill_to=placement.spill)
        else:
            pools = PlacementRequest()
        return PlacementRequest(
            pool=pools.pool,
            prefer=pools.prefer,
            spill_to=pools.spill_to,
            zone=needs.zone,
            labels=dict(needs.labels),
            comfyui=needs.comfyui,
            vram_bytes=needs.vram_bytes,
        )


def _stand_in(job: Job, where: PlacementRequest) -> Workflow:
    """Return what is known of a version that is gone."""
    vram_gb = where.vram_bytes / GIB or None
    requires = ManifestRequirements(comfyui=where.comfyui, vram_gb=vram_gb)
    return Workflow(
        name=job.workflow or "",
        graph={},
        version=job.workflow_version or "",
        requires=requires,
        silence_s=job.silence_s,
    )


def _params(job: Job, workflow: Workflow, how: Retry) -> dict[str, Any]:
    """Return the parameters to bind: without its seeds, if they are to be drawn."""
    seeds = {one.name for one in workflow.parameters if one.type is ParameterType.SEED}
    if how.new_seed and not seeds:
        raise NoSeed(f"no parameter of workflow {workflow.name} is a seed: it would make the same again")
    return {name: value for name, value in job.params.items() if not (how.new_seed and name in seeds)}


def _with_seeds(params: Mapping[str, Any], new: Reseeded) -> dict[str, Any]:
    """Return parameters with the new seeds, as far as a parameter is a seed by its name."""
    drawn = dict(new.seeds.values())
    return {
        name: drawn.get(value, value) if is_seed(name, value) else value for name, value in params.items()
    }


def _with_editor_graph(options: JobOptions, new: Reseeded) -> JobOptions:
    """Return options whose editor's graph shows the new seeds."""
    info = options.extra_data.get("extra_pnginfo")
    if not isinstance(info, Mapping) or "workflow" not in info:
        return options
    shown = {**info, "workflow": editor_graph_with(info["workflow"], new.seeds)}
    return replace(options, extra_data={**options.extra_data, "extra_pnginfo": shown})
