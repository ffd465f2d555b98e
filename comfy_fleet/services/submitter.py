"""Submit a job: check everything that can be checked now, then write it in one step.

A refused job costs no GPU time; an accepted job is durable.
"""

import asyncio
import math
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import orjson
from blake3 import blake3

from comfy_fleet.domain.errors import (
    Busy,
    FleetError,
    InvalidWorkflow,
    LimitReached,
    MissingAsset,
    NoNodes,
    QueueFull,
    StoreDown,
)
from comfy_fleet.domain.graphs import binding, excerpt, file_check, folders, graph
from comfy_fleet.domain.graphs.file_check import Declared, FilePolicy
from comfy_fleet.domain.graphs.folders import Folder
from comfy_fleet.domain.graphs.graph import Graph, NamedFile, Place
from comfy_fleet.domain.graphs.missing import LackingNodes
from comfy_fleet.domain.graphs.output_count import certain_files
from comfy_fleet.domain.graphs.pixels import sampled_pixels
from comfy_fleet.domain.graphs.workflow import CacheMode, ManifestRequirements, Workflow
from comfy_fleet.domain.graphs.workflow_names import WorkflowReference
from comfy_fleet.domain.jobs.asset import Asset
from comfy_fleet.domain.jobs.extra_data import editor_key, split_secrets
from comfy_fleet.domain.jobs.input_fetch import FetchedInput, is_url
from comfy_fleet.domain.jobs.job import Metadata, NewJob, Placement, PromptFields
from comfy_fleet.domain.jobs.merge_key import MergeKey, merge_key
from comfy_fleet.domain.jobs.model_files import usable_files
from comfy_fleet.domain.jobs.workload import workload_of
from comfy_fleet.domain.limits import (
    ScopedLimits,
    check_workflow_allowed,
    running_bounds,
    script_quota,
)
from comfy_fleet.domain.nodes.eligibility import GIB, PlacementRequest
from comfy_fleet.domain.people import Tenant
from comfy_fleet.domain.principal import DEFAULT_TENANT
from comfy_fleet.domain.schedule.waiting_job import EDITOR, SINGLE, WARMING
from comfy_fleet.domain.stores.object_key import KeyFacts
from comfy_fleet.domain.stores.output_plan import OutputAsk
from comfy_fleet.domain.webhooks.webhook import Webhook
from comfy_fleet.ports.assets import AssetStore
from comfy_fleet.ports.jobs import Idempotency, JobStore, Submitted
from comfy_fleet.ports.telemetry import EndedJob, Telemetry
from comfy_fleet.ports.workflows import Catalog
from comfy_fleet.services.client_files import ClientFiles
from comfy_fleet.services.input_files import InputFiles, as_fetches
from comfy_fleet.services.input_lists import KEPT_S, NEW_S
from comfy_fleet.services.job_queries import is_id
from comfy_fleet.services.large_graphs import LARGE_BYTES, worked
from comfy_fleet.services.memory_prediction import MemoryPrediction
from comfy_fleet.services.missing_parts import MissingParts
from comfy_fleet.services.moderation import Moderation
from comfy_fleet.services.output_planner import OutputPlanner
from comfy_fleet.services.result_cache import CacheControl, Computation, ResultCache
from comfy_fleet.turns import FairTurns, NoTurn

NO_OUTPUTS = "no_outputs"
LARGE_AT_ONCE, LARGE_AT_ONCE_EACH = 2, 1
LARGE_LINE_EACH = 16
"""Large graphs of one owner that may wait."""
LARGE_WAIT_S = 10.0
WARMING_KEPT_S = 3600.0
"""How long at most what is known of a job is kept if it only warmed a node."""


class Inventories(Protocol):
    """The nodes' inventories, in memory."""

    async def any_node(self) -> bool:
        """Return whether a node is registered at all."""

    def declared(self) -> Declared:
        """Return how the nodes' classes declare their inputs."""

    def read(self, graph: Graph) -> frozenset[str]:
        """Return the nodes of a graph that some output reads; the others are ignored."""

    def output_nodes(self, graph: Graph) -> tuple[str, ...]:
        """Return a graph's nodes that are to return outputs, in its order."""

    async def with_files(self, classes: Collection[str], *, age_s: float) -> Declared:
        """Return these classes with the files that nodes list for them; nothing if that is not known."""

    async def placement(self, graph: Graph, request: PlacementRequest) -> Placement:
        """Return the graph's requirements; raises InvalidWorkflow if no node can run it."""

    def large_enough(self, placement: Placement, least: int) -> Placement:
        """Return a placement, as it was just found, for a job that needs this many bytes of a card."""

    def able_nodes(self, placement: Placement) -> tuple[str, ...]:
        """Return some nodes that can run jobs of a placement, as it was just found."""


class LoadedModels(Protocol):
    """The sizes of nodes' model files, in memory."""

    def of(self, graph: Graph) -> tuple[tuple[str, int], ...]:
        """Return the model files that a graph loads, as ``FOLDER/NAME``, with their bytes."""


class Sealer(Protocol):
    """Encrypts data that must not be readable at rest."""

    def seal(self, plain: bytes) -> bytes:
        """Encrypt."""


@dataclass(frozen=True, kw_only=True)
class JobOptions:
    """What a client may send in addition to the graph.

    Attributes:
        extra_data: What the node gets in addition to the graph: a partner's key, the editor's graph for
            pictures.
        ttl_s: Seconds from now; later it must not start.
        timeout_s: Longest time of one run in seconds; None: the operator's limit alone.
        finish_by: When it should be done, in Unix seconds; for the order only.
        tier: :data:`SINGLE`, :data:`BATCH` or, for a node's sake alone, :data:`WARMING`; an editor's run has
            its own in any case.
        where: Pools, zone and labels; these override the workflow's.
        traceparent: The trace that the job belongs to.
        prompt: What ComfyUI's own form of a request says besides.
        uploads: Asset id by place, of files that were chosen before; see :attr:`NewJob.uploads`. If one is
            gone, its name is looked for again.
        retry_of: The job that this one repeats.
        cache_control: What it says about results of earlier jobs.
        webhook: Who is told what becomes of it.
        quotas: The limits of who asks.
        output: Where its outputs are to be put; None: where its tenant's default says.
        stays_here: Whether they are put nowhere besides, whatever that default is.
        custom_id: What its batch calls it; empty: it is in none.
        job_id: The UUID that it gets; empty: it is drawn. If there is such a job already, that is the answer.
        rq_id: Its id in RQ, if one of RQ's clients has enqueued it.
    """

    priority: int = 0
    metadata: Metadata = None
    extra_data: Mapping[str, Any] = field(default_factory=dict)
    ttl_s: float | None = None
    timeout_s: float | None = None
    finish_by: float | None = None
    tier: int = SINGLE
    where: PlacementRequest = field(default_factory=PlacementRequest)
    idempotency: Idempotency | None = None
    traceparent: str | None = None
    prompt: PromptFields = field(default_factory=PromptFields)
    uploads: Mapping[str, str] = field(default_factory=dict)
    retry_of: str | None = None
    cache_control: CacheControl = field(default_factory=CacheControl)
    webhook: Webhook | None = None
    quotas: tuple[ScopedLimits, ...] = ()
    output: OutputAsk | None = None
    stays_here: bool = False
    custom_id: str = ""
    job_id: str = ""
    rq_id: str = ""


@dataclass(frozen=True, kw_only=True)
class JobOutline:
    """What a job of a stored workflow would be, without being submitted.

    Attributes:
        models: The model files that it loads, as ``FOLDER/NAME`` with their bytes.
        placement: Where it could run.
    """

    models: tuple[tuple[str, int], ...]
    placement: Placement


@dataclass(frozen=True, kw_only=True)
class SubmitLimits:
    """The operator's limits for new jobs; times in seconds.

    Attributes:
        retention_s: How long ended jobs stay, for tenants without a time of their own.
        max_retention_s: The longest that counts of a tenant's own.
        weights: Owners' shares of the GPUs' time compared with 1, that of all others of their tenant.
    """

    depth: int
    outputs: int
    retention_s: float
    max_retention_s: float
    max_attempts: int
    editor_wait_s: float
    weights: Mapping[str, float] = field(default_factory=dict)

    def kept_s(self, tenant: Tenant) -> float:
        """Return how long a tenant's ended jobs stay."""
        return min(tenant.retention_s, self.max_retention_s) or self.retention_s


class Submitter:
    """Turns graphs and stored workflows into jobs.

    Args:
        client_files: Finds files by the names that clients know.
        files: Which files an owner's graphs may name, and which classes they may use.
        tenant_of: Returns an owner's tenant, as it is now.
        clock: Unix seconds.
        new_id: Draws a job's UUID.
        draw_seed: Draws a seed for a parameter.
        retry_after: Estimates the whole seconds until a full queue has room.
        telemetry: Is told of each job.
        memory: Predicts how much memory jobs need.
        missing: Explains what nodes lack.
        results: Says which results of earlier jobs a job may get.
        inputs: Takes files that a request carries itself, or names by URL.
        moderation: Judges what jobs ask for.
        outputs: Says where outputs are put.
    """

    def __init__(
        self,
        *,
        jobs: JobStore,
        assets: AssetStore,
        client_files: ClientFiles,
        inventories: Inventories,
        models: LoadedModels,
        memory: MemoryPrediction,
        catalog: Catalog,
        sealer: Sealer,
        limits: SubmitLimits,
        files: Callable[[str], FilePolicy],
        tenant_of: Callable[[str], Tenant],
        clock: Callable[[], float],
        new_id: Callable[[], str],
        draw_seed: Callable[[], int],
        retry_after: Callable[[], Awaitable[int]],
        telemetry: Telemetry,
        missing: MissingParts,
        results: ResultCache,
        inputs: InputFiles,
        moderation: Moderation,
        outputs: OutputPlanner,
    ) -> None:
        self._jobs = jobs
        self._assets = assets
        self._client_files = client_files
        self._inventories = inventories
        self._models = models
        self._memory = memory
        self._catalog = catalog
        self._sealer = sealer
        self._limits = limits
        self._files = files
        self._tenant_of = tenant_of
        self._clock = clock
        self._new_id = new_id
        self._draw_seed = draw_seed
        self._retry_after = retry_after
        self._telemetry = telemetry
        self._missing = missing
        self._results = results
        self._inputs = inputs
        self._moderation = moderation
        self._outputs = outputs
        self._large = FairTurns(
            LARGE_AT_ONCE, each=LARGE_AT_ONCE_EACH, line=LARGE_LINE_EACH, wait_s=LARGE_WAIT_S
        )

    async def graph(
        self,
        owner: str,
        workflow: object,
        options: JobOptions,
        *,
        made_of: Workflow | None = None,
        params: Mapping[str, Any] | None = None,
    ) -> Submitted:
        """Submit a graph unchanged.

        Args:
            owner: Whose job it is.
            workflow: The graph.
            options: What comes with it.
            made_of: The stored workflow of which it was made before, if it was.
            params: The parameters that were bound into it then.

        Raises:
            InvalidWorkflow: Its structure is wrong, it names files that may belong to somebody else, or no
                node can run it. Details are given per node.
            WorkflowFormatUi: It is the editor's format.
            MissingAsset: It refers to an asset that this owner does not have.
            Busy: Several large graphs are being checked already.
            NoNodes: No node is known at all.
            InvalidOutput: Its outputs can't be put where it says.
            NotAllowed: By a limit, who asks may not submit this.
            LimitReached: A limit of theirs is used up.
            StoredTooMuch: They keep as many bytes as they may.
            NoRoom: The fleet's own disk is too full for another job's outputs.
            ContentRefused: Who judges content has said no.
            ModerationDown: They don't answer, and nothing passes without.
            QueueFull: Too many jobs wait.
            IdempotencyKeyReuse: The key has made a job.
        """
        new = await self.graph_job(owner, workflow, options, made_of=made_of, params=params)
        return await self.write(new, options.idempotency)

    async def graph_job(
        self,
        owner: str,
        workflow: object,
        options: JobOptions,
        *,
        made_of: Workflow | None = None,
        params: Mapping[str, Any] | None = None,
    ) -> NewJob:
        """Return the job that :meth:`graph` would write.

        Raises:
            FleetError: Everything that :meth:`graph` raises before it is written.
        """
        if not _is_large(workflow):
            checked, profile = self._checked(workflow, options.prompt.targets)
            profile = made_of.name if made_of else profile
            return await self._new(owner, checked, options, profile=profile, workflow=made_of, params=params)
        try:
            await self._large.take(owner)
        except NoTurn:
            raise Busy("several large graphs are being checked already: try again", retry_after_s=2) from None
        try:
            checked, profile = await asyncio.to_thread(self._checked, workflow, options.prompt.targets)
            profile = made_of.name if made_of else profile
            return await self._new(
                owner, checked, options, profile=profile, workflow=made_of, params=params, large=True
            )
        finally:
            self._large.give(owner)

    async def stored(
        self, owner: str, name: str, params: Mapping[str, Any], options: JobOptions
    ) -> Submitted:
        """Submit a stored workflow with parameters.

        Args:
            name: A workflow reference.

        Raises:
            FleetError: Everything that :meth:`comfy_fleet.ports.workflows.Catalog.get` and :meth:`workflow`
                raise.
        """
        workflow = await self.named(owner, name, options.quotas)
        return await self.workflow(owner, workflow, params, options)

    async def named(self, owner: str, name: str, quotas: Sequence[ScopedLimits]) -> Workflow:
        """Return a stored workflow that its caller may run.

        Raises:
            FleetError: Everything that :meth:`comfy_fleet.ports.workflows.Catalog.get` raises.
            NotAllowed: By a limit, they may not.
        """
        if WorkflowReference.parse(name).draft:  # it is whatever its owner has drawn
            check_workflow_allowed(quotas, None)
        found = await self._catalog.get(name, owner)
        check_workflow_allowed(quotas, found.name)
        return found

    async def workflow(
        self, owner: str, workflow: Workflow, params: Mapping[str, Any], options: JobOptions
    ) -> Submitted:
        """Submit this version of a stored workflow with parameters.

        Raises:
            InvalidParameter: A parameter is out of its limits.
            FleetError: Everything that :meth:`graph` raises.
        """
        return await self.write(
            await self.workflow_job(owner, workflow, params, options), options.idempotency
        )

    async def workflow_job(
        self, owner: str, workflow: Workflow, params: Mapping[str, Any], options: JobOptions
    ) -> NewJob:
        """Return the job that :meth:`workflow` would write.

        Raises:
            FleetError: Everything that :meth:`workflow` raises before it is written.
        """
        params = await self._inputs.stored_params(owner, workflow, params, options.quotas)
        bound = binding.bind(workflow, params, draw_seed=self._draw_seed)
        for parameter_name, value in bound.assets.items():
            await self._check_file(owner, workflow, parameter_name, value)
        checked = graph.check(bound.graph, read=self._inventories.read)
        return await self._new(
            owner,
            checked,
            options,
            profile=workflow.name,
            workflow=workflow,
            params=bound.values,
            merge=_merge_key(owner, workflow, checked, options, bound.drawn),
            drawn=bound.seeds,
        )

    async def prepared(self, owner: str, workflow: Workflow, where: PlacementRequest) -> JobOutline:
        """Return what a job of a stored workflow with its defaults would be.

        Raises:
            InvalidParameter: A parameter has no default.
            InvalidWorkflow: No node can run it.
        """
        bound = binding.bind(workflow, {}, draw_seed=self._draw_seed)
        checked = graph.check(bound.graph, read=self._inventories.read)
        loads = graph.part(checked, self._inventories.read(checked))
        models = usable_files(self._models.of(loads))
        need = await self._memory.need(workload_of(models, sampled_pixels(loads)), owner)
        placement = await self._inventories.placement(checked, placement_request(workflow.requires, where))
        return JobOutline(models=models, placement=self._inventories.large_enough(placement, need.least))

    async def _new(
        self,
        owner: str,
        checked: Graph,
        options: JobOptions,
        *,
        profile: str,
        workflow: Workflow | None = None,
        params: Mapping[str, Any] | None = None,
        merge: MergeKey | None = None,
        drawn: frozenset[str] = frozenset(),
        large: bool = False,
    ) -> NewJob:
        check_workflow_allowed(options.quotas, workflow.name if workflow else None)
        self._assets.check_room()
        declared = self._inventories.declared()
        checked = await self._inputs.stored_graph(owner, checked, declared, options.quotas)
        outputs = self._inventories.output_nodes(checked)
        targets = tuple(node_id for node_id in outputs if node_id in options.prompt.targets)
        if options.prompt.targets and not targets:
            raise InvalidWorkflow(
                "none of partial_execution_targets is an output node of the workflow: nothing would run",
                details={"field": "partial_execution_targets", "reason": NO_OUTPUTS, "node_errors": {}},
            )
        runs = await worked(large, lambda: _part(checked, targets))
        await worked(large, lambda: self._check_count(runs))
        # Also what is not to run: an earlier version that gets this job runs it nevertheless.
        read = await worked(large, lambda: graph.part(checked, self._inventories.read(checked)))
        found, others = await self._named_assets(owner, read, declared, chosen=options.uploads, large=large)
        awaited = await self._awaited(owner, read, others, found, options, workflow, params or {})
        others = [one for one in others if not is_url(one.name)]
        assets = {place: asset.id for place, asset in found.items()}
        settled = assets.keys() | {place for inputs in awaited.values() for place, _ in inputs}
        await worked(
            large, lambda: file_check.check(read, declared, policy=self._files(owner), assets=settled)
        )
        others = [one for one in others if one.node_id in runs]
        await self._check_known(owner, read, others)
        uploads = graph.place_names(assets)
        where = placement_request(workflow.requires, options.where) if workflow else options.where
        try:
            placement = await self._inventories.placement(runs, where)
        except LackingNodes as error:
            raise await self._missing.explained(
                owner, error, extra_data=options.extra_data, workflow=workflow
            ) from error
        # Only what some output reads is ever loaded.
        loads = {node_id: node for node_id, node in read.items() if node_id in runs}
        loaded = await worked(large, lambda: self._models.of(loads))
        models = usable_files(loaded)
        workload = workload_of(models, await worked(large, lambda: sampled_pixels(loads)))
        need = await self._memory.need(workload, owner)
        placement = self._inventories.large_enough(placement, need.least)
        if not await self._inventories.any_node():
            raise NoNodes("no node is known: add one with `fleet node add NAME URL`", retry_after_s=5)
        try:
            data = orjson.dumps(checked)
        except (TypeError, ValueError) as error:
            raise InvalidWorkflow(
                f"the workflow can't be written as JSON: {error}", details={"field": "workflow"}
            ) from error
        warming = options.tier == WARMING
        if not warming:
            await self._moderation.check_prompt(
                owner, runs, found, workflow=workflow.name if workflow else "", params=params or {}
            )
        now = self._clock()
        editor = editor_key(owner, options.prompt.client_id, options.extra_data)
        shown, secrets = split_secrets(options.extra_data)
        results = None
        mode = self._results.mode(workflow, options.cache_control)
        # Not what runs in part, reads files that are no owner's, is secret, or is there to run. An editor has
        # its results on its node.
        alone = targets or others or secrets or editor or options.retry_of or warming or awaited
        if mode is not CacheMode.OFF and not alone:
            computed = Computation(
                graph=checked,
                runs=loads,
                files={place: (asset.hash, asset.file_path) for place, asset in found.items()},
                models=loaded,
                extra_data=shown,
                workflow=workflow,
                params=params or {},
                drawn=drawn,
            )
            results = await worked(
                large, lambda: self._results.keys(computed, placement, mode, options.cache_control)
            )
        tenant = self._tenant_of(owner)
        job_id = options.job_id or self._new_id()
        labels = options.metadata if isinstance(options.metadata, Mapping) else None
        facts = KeyFacts(
            job_id=job_id,
            created_at=now,
            custom_id=options.custom_id,
            workflow=workflow.name if workflow else "",
            labels=labels,
            params=params,
        )
        plan = None
        if not warming and not options.stays_here:
            plan = await self._outputs.plan(options.output, facts, tenant=tenant.name)
        return NewJob(
            id=job_id,
            owner=owner,
            graph=data,
            graph_hash=f"blake3:{blake3(data).hexdigest()}",
            created_at=now,
            expires_in_s=min(self._limits.kept_s(tenant), WARMING_KEPT_S if warming else math.inf),
            priority=options.priority,
            metadata=options.metadata,
            workflow=workflow.name if workflow else None,
            workflow_version=workflow.version if workflow else None,
            params=params or {},
            profile=profile,
            placement=placement,
            assets=frozenset(uploads.values()),
            uploads=uploads,
            extra_data=shown,
            secret=self._sealer.seal(orjson.dumps(secrets)) if secrets else None,
            prompt=replace(options.prompt, targets=targets),
            output_nodes=targets or outputs,
            editor=editor,
            patience_s=self._limits.editor_wait_s,
            deadline_s=options.ttl_s,
            max_attempts=1 if warming else self._limits.max_attempts,
            traceparent=options.traceparent,
            excerpt=f"warms {options.where.node}"
            if warming
            else await worked(large, lambda: excerpt.of_job(runs, workflow, params or {})),
            retry_of=options.retry_of,
            models=models,
            memory=need.peak,
            workload=workload,
            able=self._inventories.able_nodes(placement),
            tier=EDITOR if editor else options.tier,
            finish_by=options.finish_by,
            timeout_s=options.timeout_s,
            silence_s=workflow.silence_s if workflow else None,
            weight=self._limits.weights.get(owner, 1.0),
            tenant="" if tenant.name == DEFAULT_TENANT else tenant.name,
            tenant_weight=tenant.share,
            merge=None if editor or warming or awaited else merge,
            results=results,
            moderation="" if warming else self._moderation.rule(owner),
            fetches=as_fetches({url: [takes for _, takes in inputs] for url, inputs in awaited.items()}),
            webhook=options.webhook,
            quota=script_quota(options.quotas),
            bounds=running_bounds(options.quotas),
            rq_id=options.rq_id,
            output=plan,
        )

    def _check_count(self, checked: Graph) -> None:
        """Refuse a graph that certainly makes more files than a job may have."""
        count, node_id = certain_files(checked)
        most = self._limits.outputs
        if count <= most or node_id is None:
            return
        message = f"the workflow makes at least {count} outputs, a job may have {most} (FLEET_MAX_OUTPUTS)"
        fault = {"field": "batch_size", "reason": "too_many_outputs", "message": message}
        raise InvalidWorkflow(
            f"node {node_id}: batch_size: {message}",
            details={
                "field": "workflow",
                "limit": "max_outputs",
                "value": most,
                "node_errors": {node_id: [fault]},
            },
        )

    async def _awaited(
        self,
        owner: str,
        read: Graph,
        others: Sequence[NamedFile],
        found: dict[Place, Asset],
        options: JobOptions,
        workflow: Workflow | None,
        params: Mapping[str, Any],
    ) -> dict[str, list[tuple[Place, FetchedInput]]]:
        """Return the inputs that are URLs, by URL; those whose file is here already are found."""
        awaited = {}
        for url, inputs in (await self._inputs.named(owner, read, others, workflow, params)).items():
            fresh = await self._inputs.fresh(owner, url)
            waits = []
            for place, takes in inputs:
                asset = fresh
                if earlier := options.uploads.get(graph.place_name(place)):  # of the job that this repeats
                    asset = await self._assets.get(earlier) or fresh
                if asset is None or asset.owner != owner or not takes.fits(asset):
                    waits.append((place, takes))
                else:
                    found[place] = asset
            if waits:
                awaited[url] = waits
        return awaited

    async def _check_file(self, owner: str, workflow: Workflow, name: str, value: str) -> None:
        if is_url(value):
            return
        asset = await self._assets.get(value) if is_id(value) else None
        if asset is None:
            file, folder = folders.named(value)
            asset = await self._client_files.find(owner, folder, file)
        if asset is None or asset.owner != owner:
            raise MissingAsset(
                f"{name}: there is no asset {value[:80]!r}; upload the file first: POST /api/v2/assets",
                details={"field": f"params.{name}", "parameter": name, "id": value[:80]},
            )
        parameter = workflow.parameter(name)
        if parameter is not None:
            binding.check_file(parameter, content_type=asset.content_type, size_bytes=asset.size_bytes)

    async def write(self, new: NewJob, idempotency: Idempotency | None) -> Submitted:
        """Write a job that was checked.

        Raises:
            FleetError: Everything that :meth:`comfy_fleet.ports.jobs.JobStore.submit` raises.
        """
        ids = sorted(new.assets)
        if ids:
            await self._assets.hold(owner=new.owner, asset_ids=ids, job_id=new.id)
        try:
            done = await self._jobs.submit(new, idempotency=idempotency, depth_limit=self._limits.depth)
        except StoreDown:
            raise  # it may have been written; if not, the hold expires
        except FleetError as error:
            if ids:
                await self._assets.release(asset_ids=ids, job_id=new.id)
            if isinstance(error, QueueFull) or (isinstance(error, LimitReached) and not error.estimated):
                error.retry_after_s = await self._retry_after()
            raise
        if done.job.id != new.id:  # a replay: the earlier job holds its own assets
            if ids:
                await self._assets.release(asset_ids=ids, job_id=new.id)
            return done
        if new.fetches:
            self._inputs.wake()
        self._telemetry.submitted(new)
        if done.job.cached:
            self._telemetry.ended_without_run(
                EndedJob(
                    job_id=new.id,
                    status=done.job.status,
                    workflow=new.workflow,
                    tenant=new.tenant,
                    total_s=0.0,
                )
            )
        return done

    def _checked(self, workflow: object, targets: Collection[str] = ()) -> tuple[Graph, str]:
        """Check a graph's structure; with targets, that of the part that runs."""

        def read(whole: Graph) -> Collection[str]:
            return graph.upstream(whole, targets) if targets else self._inventories.read(whole)

        checked = graph.check(workflow, read=read)
        return checked, graph.profile(_part(checked, targets))

    async def _named_assets(
        self, owner: str, checked: Graph, declared: Declared, *, chosen: Mapping[str, str], large: bool
    ) -> tuple[dict[Place, Asset], Sequence[NamedFile]]:
        """Return the asset for each place, and the named files that are none of the owner's.

        Places are those of ``core/ASSET`` objects, and inputs that name files. ``chosen`` has assets by place
        that go before others of the same name.
        """
        found: dict[Place, Asset] = {}
        for reference in await worked(large, lambda: graph.asset_references(checked)):
            asset = await self._assets.get(reference.asset_id)
            if asset is None or asset.owner != owner:
                raise MissingAsset(
                    f"node {reference.node_id}, input {reference.input}: "
                    f"there is no asset {reference.asset_id[:80]}",
                    details={
                        "field": "workflow",
                        "node_id": reference.node_id,
                        "input": reference.input,
                        "id": reference.asset_id[:80],
                    },
                )
            found[reference.place] = asset
        by_name: dict[tuple[Folder, str], Asset | None] = {}
        others = []
        for named in await worked(large, lambda: file_check.named_files(checked, declared)):
            earlier = chosen.get(graph.place_name(named.place))
            asset = await self._assets.get(earlier) if earlier else None
            if asset is not None and asset.owner == owner:
                found[named.place] = asset
                continue
            key = named.folder, named.name
            if key not in by_name:
                by_name[key] = await self._client_files.find(owner, *key)
            if (named_asset := by_name[key]) is not None:
                found[named.place] = named_asset
            else:
                others.append(named)
        return found, others

    async def _check_known(self, owner: str, checked: Graph, files: Sequence[NamedFile]) -> None:
        """Refuse names that are no upload's and that no node lists, if the nodes say so now."""
        files = file_check.listable(checked, files, self._files(owner))
        for age_s in (KEPT_S, NEW_S):
            if not files:
                return
            classes = {checked[one.node_id]["class_type"] for one in files}
            declared = await self._inventories.with_files(classes, age_s=age_s)
            files = file_check.unlisted(checked, declared, files)
        if files:
            raise file_check.unknown_files(checked, files)


def _merge_key(
    owner: str,
    workflow: Workflow,
    checked: Graph,
    options: JobOptions,
    drawn: Collection[tuple[str, str]],
) -> MergeKey | None:
    """Return the key of a stored workflow's job; None if it is never merged.

    What a client sends for its own job alone (extra data, targets) can't go with others' jobs.
    """
    if workflow.merge is None or options.extra_data or options.prompt.targets or not workflow.version:
        return None
    about = {"name": workflow.name, "timeout_s": options.timeout_s}
    rule = workflow.merge if options.finish_by is None else replace(workflow.merge, window_s=0.0)
    return merge_key(rule, checked, version=workflow.version, owner=owner, drawn=drawn, about=about)


def _part(checked: Graph, targets: Collection[str]) -> Graph:
    """Return what runs of a graph if only these of its output nodes are wanted; nothing named means all."""
    return graph.part(checked, graph.upstream(checked, targets)) if targets else checked


def _is_large(workflow: object) -> bool:
    try:
        return len(orjson.dumps(workflow)) > LARGE_BYTES
    except TypeError:  # it is refused for its own faults
        return True


def placement_request(requires: ManifestRequirements, asked: PlacementRequest) -> PlacementRequest:
    """Combine a workflow's placement with a request's, which names other pools or adds conditions."""
    pools = asked if asked.pool or asked.prefer else None
    declared = PlacementRequest(
        pool=pools.pool if pools else requires.pool,
        prefer=pools.prefer if pools else requires.prefer_pool,
        spill_to=pools.spill_to if pools else requires.spill_to,
        comfyui=requires.comfyui,
        vram_bytes=int((requires.vram_gb or 0) * GIB),
    )
    return replace(
        declared,
        node=asked.node,
        zone=asked.zone or requires.zone,
        labels={**requires.labels, **(asked.labels or {})},
    )
