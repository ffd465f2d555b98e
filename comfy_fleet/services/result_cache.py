"""Decide whether a job may get the result of an earlier one, and under which keys."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from comfy_fleet.domain.graphs.graph import Graph, Place
from comfy_fleet.domain.graphs.inventory import Inventory
from comfy_fleet.domain.graphs.workflow import CacheMode, Workflow
from comfy_fleet.domain.jobs.job import Placement
from comfy_fleet.domain.jobs.media import extension_of
from comfy_fleet.domain.jobs.result_keys import (
    ResultKeys,
    any_seed_key,
    exact_key,
    is_repeatable,
    result_keys,
    seeds_of,
)

CachedJobs = Literal["off", "workflows", "all"]
"""Which jobs may get earlier results: none, those of stored workflows, or graphs, too."""


class Nodes(Protocol):
    """The nodes, in memory."""

    @property
    def inventories(self) -> Sequence[Inventory]:
        """What they have, each different one once."""

    def versions(self, placement: Placement) -> tuple[str, ...]:
        """Return the versions of ComfyUI on the nodes that can run jobs of a placement."""


class ModelIdentities(Protocol):
    """What is known of nodes' model files, in memory."""

    def identities(self, files: Collection[tuple[str, int]]) -> Sequence[tuple[str, int, float]]:
        """Return files with their bytes, and when they were changed (Unix seconds; 0: unknown)."""


@dataclass(frozen=True, kw_only=True)
class CacheControl:
    """What a client says about earlier results.

    Attributes:
        max_age_s: How old one may be, in seconds; 0: it wants a run of its own; None: it says nothing.
        keep: Whether later jobs may get its own.
    """

    max_age_s: float | None = None
    keep: bool = True


@dataclass(frozen=True, kw_only=True)
class Computation:
    """All that a job's result follows from.

    Attributes:
        graph: As it was checked.
        runs: What runs of it.
        files: Content and name of an owner's file, by the place that names it: ``(hash, name)``.
        models: Model files with their bytes.
        extra_data: What the node gets besides, without secrets.
        workflow: The stored workflow of which the graph was made.
        params: What was bound into it.
        drawn: Those of its seeds that were drawn.
    """

    graph: Graph
    runs: Graph
    files: Mapping[Place, tuple[str, str]]
    models: Collection[tuple[str, int]]
    extra_data: Mapping[str, Any]
    workflow: Workflow | None = None
    params: Mapping[str, Any]
    drawn: frozenset[str] = frozenset()


class ResultCache:
    """Makes keys for one process.

    Args:
        nodes: Which classes come from node packs, and which versions there are.
        models: Which model files there are.
        jobs: The operator's setting.
    """

    def __init__(self, nodes: Nodes, models: ModelIdentities, *, jobs: CachedJobs) -> None:
        self._nodes = nodes
        self._models = models
        self._jobs = jobs

    def mode(self, workflow: Workflow | None, cache_control: CacheControl) -> CacheMode:
        """Return when a job may get an earlier result, by what its workflow, its client and the operator say.

        A graph has no author who could say anything: its client asks for results that are not too old.
        """
        if self._jobs == "off" or not cache_control.keep:
            return CacheMode.OFF
        if workflow is not None:
            return workflow.cache
        asked = cache_control.max_age_s is not None and cache_control.max_age_s > 0
        return CacheMode.EXACT if asked or self._jobs == "all" else CacheMode.OFF

    def keys(
        self, job: Computation, placement: Placement, mode: CacheMode, cache_control: CacheControl
    ) -> ResultKeys | None:
        """Return a job's keys; None if its result may differ from run to run, or with a model file that no
        node tells anything of."""
        vouched = job.workflow is not None and job.workflow.vouched
        if not is_repeatable(job.runs, self._nodes.inventories, vouched=vouched):
            return None
        files = {place: f"{hash_} {extension_of(name)}" for place, (hash_, name) in job.files.items()}
        models = self._models.identities(job.models)
        if not vouched and not all(changed for _, _, changed in models):
            return None  # another file may have taken this one's name: sizes of models of a kind are equal
        seeds = seeds_of(job.workflow) if job.workflow else frozenset()
        any_seed = ""
        if mode is CacheMode.ANY_SEED and seeds and job.workflow:
            any_seed = any_seed_key(job.graph, files, models, job.extra_data, job.workflow, job.params)
        return result_keys(
            exact_key(job.graph, files, models, job.extra_data),
            any_seed,
            mode=mode,
            seeds=seeds,
            drawn=job.drawn,
            versions=self._nodes.versions(placement),
            max_age_s=cache_control.max_age_s,
        )
