"""Checks a draft: its parameters, the nodes that could run it, and a test run."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from comfy_fleet.domain.errors import BadInput, Busy, FleetError, StoreDown
from comfy_fleet.domain.graphs.file_check import FilePolicy
from comfy_fleet.domain.graphs.publish_check import (
    CheckName,
    CheckState,
    CheckStep,
    DraftChanged,
    trial_values,
)
from comfy_fleet.domain.graphs.workflow import Workflow
from comfy_fleet.domain.graphs.workflow_names import DRAFT
from comfy_fleet.domain.jobs.job import ANY_POOL, DEFAULT_POOL, Job, JobStatus
from comfy_fleet.domain.limits import ScopedLimits
from comfy_fleet.domain.nodes.eligibility import Candidate
from comfy_fleet.ports.jobs import JobStore
from comfy_fleet.ports.publish_tests import PublishTests
from comfy_fleet.services.inventories import NodeInventories
from comfy_fleet.services.result_cache import CacheControl
from comfy_fleet.services.submitter import JobOptions, Submitter
from comfy_fleet.services.workflow_check import check_workflow

MARK = {"fleet": "test run before publishing"}
"""The metadata of a test run's job."""
MOST_PROBLEMS = 20
MOST_TEXT = 300


@dataclass(frozen=True, kw_only=True)
class TrialRun:
    """How a draft is to be tested.

    Attributes:
        quotas: The limits of who asks.
        again: Whether a new run is made although there is one.
        params: Values by parameter name, of required parameters only: all others have their defaults.
    """

    quotas: tuple[ScopedLimits, ...]
    again: bool = False
    params: Mapping[str, Any] = field(default_factory=dict)


class DraftChecks:
    """Checks drafts.

    Args:
        submitter: Makes the test runs: ordinary jobs of the person's.
        jobs: Says how they went.
        tests: Remembers which they were.
        inventories: What the nodes have.
        policy: Which files graphs may name.
    """

    def __init__(
        self,
        *,
        submitter: Submitter,
        jobs: JobStore,
        tests: PublishTests,
        inventories: NodeInventories,
        policy: FilePolicy,
    ) -> None:
        self._submitter = submitter
        self._jobs = jobs
        self._tests = tests
        self._inventories = inventories
        self._policy = policy

    def parameters(self, workflow: Workflow) -> CheckStep:
        """Say which parameters there are; all of them have found their places, or it were no workflow."""
        names = ", ".join(parameter.name for parameter in workflow.parameters)
        message = names or "none: title a node $NAME to declare one"
        return CheckStep(name=CheckName.PARAMETERS, state=CheckState.PASSED, message=message)

    async def nodes(self, workflow: Workflow) -> CheckStep:
        """Say which of the nodes that may run the workflow have all that it needs."""
        pools = _pools(workflow)
        candidates = [
            one
            for one in (await self._inventories.by_node()).values()
            if pools is None or one.node.pool in pools
        ]
        if not candidates:
            where = f" in pool {' or '.join(sorted(pools))}" if pools else ""
            return _nodes(CheckState.FAILED, f"there is no node{where}: add one with `fleet node add`")
        found = await asyncio.to_thread(_lacks, workflow, candidates, self._policy)
        able = [name for name, lacks in found.items() if not lacks]
        problems = [f"{name}: {lack}" for name, lacks in found.items() for lack in lacks]
        unknown = [one.node.name for one in candidates if one.inventory is None]
        problems += [f"{name}: what it has is not known yet; the test run will tell" for name in unknown]
        message = f"{len(able)} of {len(found)} nodes can run it"
        state = CheckState.PASSED if able else CheckState.FAILED
        return _nodes(state, message, _cut(problems))

    async def test_run(
        self, owner: str, workflow: Workflow, run: TrialRun | None
    ) -> tuple[CheckStep, Job | None]:
        """Say how the test run went, and make one if there is none.

        Args:
            owner: Whose draft it is.
            workflow: The draft.
            run: None: make none.

        Raises:
            BadInput: A value is given for what has a default.
            DraftChanged: The draft was replaced a moment ago.
        """
        if run is not None:
            _check_values(workflow, run.params)
        job = await self._last(owner, workflow)
        if run is not None and (job is None or run.again):
            try:
                job = await self._made(owner, workflow, run)
            except (StoreDown, DraftChanged):
                raise
            except Busy as error:
                return _test(CheckState.WAITING, f"not begun: {error.message}"), None
            except FleetError as error:
                return _test(CheckState.FAILED, f"not begun: {error.message}", _details(error)), None
        if job is None:
            return _test(CheckState.WAITING, "not begun"), None
        return _outcome(job), job

    async def _last(self, owner: str, workflow: Workflow) -> Job | None:
        job_id = await self._tests.job(owner, workflow.name, workflow.version)
        job = await self._jobs.get(job_id) if job_id else None
        return job if job is not None and job.owner == owner else None

    async def _made(self, owner: str, workflow: Workflow, run: TrialRun) -> Job:
        params = {**trial_values(workflow), **run.params}
        done = await self._submitter.stored(
            owner,
            f"{workflow.name}@{DRAFT}",
            params,
            JobOptions(
                stays_here=True,
                metadata=MARK,
                cache_control=CacheControl(max_age_s=0),  # it is to be tried
                quotas=run.quotas,
            ),
        )
        if done.job.workflow_version != workflow.version:
            await self._jobs.request_cancel(done.job.id)
            raise DraftChanged(
                f"the draft of {workflow.name} was replaced while it was checked: check it again",
                details={"field": "draft", "workflow": workflow.name},
            )
        await self._tests.note(owner, workflow.name, workflow.version, done.job.id)
        return done.job


# ----------------------------------------------------------------------------------------------------------


def _check_values(workflow: Workflow, values: Mapping[str, Any]) -> None:
    """Refuse values for what has a default: the test is about what callers get who name nothing."""
    fixed = {one.name for one in workflow.parameters if not one.required}
    if name := next((name for name in values if name in fixed), ""):
        raise BadInput(
            f"params: {name} has a default, and the test run is made with that; to try other values, run "
            f"{workflow.name}@{DRAFT} as a job",
            details={"field": f"params.{name}"},
        )


def _pools(workflow: Workflow) -> frozenset[str] | None:
    """Return the pools that a job of the workflow may use; None means all."""
    needs = workflow.requires
    if needs.pool is not None:
        pools = {needs.pool, *needs.spill_to}
        return None if ANY_POOL in pools else frozenset(pools)
    return None if needs.prefer_pool is not None else frozenset({DEFAULT_POOL})


def _lacks(workflow: Workflow, candidates: Sequence[Candidate], policy: FilePolicy) -> dict[str, list[str]]:
    """Return by node what it lacks; nodes with the same inventory are looked at once."""
    known: dict[tuple[int, str], list[str]] = {}
    found: dict[str, list[str]] = {}
    for one in candidates:
        if one.inventory is None:  # it may be able: it gets jobs, too
            found[one.node.name] = []
            continue
        key = id(one.inventory), one.comfyui
        if key not in known:
            problems = check_workflow(workflow, one.inventory, one.comfyui, policy=policy)
            known[key] = [problem.message for problem in problems if not problem.only_with]
        found[one.node.name] = known[key]
    return found


_ENDS: Mapping[JobStatus, Callable[[Job], CheckStep]] = {
    JobStatus.SUCCEEDED: lambda job: (
        _test(CheckState.PASSED, _made_what(job))
        if job.outputs
        else _test(CheckState.FAILED, "it ended without an output: add a node that saves one")
    ),
    JobStatus.CANCELED: lambda _: _test(CheckState.FAILED, "it was canceled"),
}


def _outcome(job: Job) -> CheckStep:
    if not job.status.terminal:
        return _test(CheckState.WAITING, _under_way(job))
    if job.status in _ENDS:
        return _ENDS[job.status](job)
    error = job.error
    message = error.message if error is not None else f"it ended {job.status.value}"
    where = f"node {error.node_id} ({error.class_type}): " if error is not None and error.node_id else ""
    return _test(CheckState.FAILED, f"{where}{message}"[:MOST_TEXT])


def _under_way(job: Job) -> str:
    if job.status is JobStatus.QUEUED:
        return f"queued{f': {job.waiting_for}' if job.waiting_for else ''}"
    return f"running on {job.node}" if job.node else "running"


def _made_what(job: Job) -> str:
    count = len(job.outputs)
    took = (job.completed_at or 0.0) - (job.started_at or 0.0)
    return f"made {count} output{'' if count == 1 else 's'} in {max(took, 0.0):.1f} s on {job.node}"


def _details(error: FleetError) -> tuple[str, ...]:
    """Return what an error says about single nodes of the graph, or about single parameters."""
    by_node = error.details.get("node_errors")
    found = []
    if isinstance(by_node, Mapping):
        for node_id, defects in by_node.items():
            found += [
                f"node {node_id}: {one.get('message', '')}" for one in defects if isinstance(one, Mapping)
            ]
    return _cut(found)


def _cut(problems: Sequence[str]) -> tuple[str, ...]:
    more = len(problems) - MOST_PROBLEMS
    shown = [problem[:MOST_TEXT] for problem in problems[:MOST_PROBLEMS]]
    return tuple(shown + ([f"and {more} more"] if more > 0 else []))


def _nodes(state: CheckState, message: str, problems: tuple[str, ...] = ()) -> CheckStep:
    return CheckStep(name=CheckName.NODES, state=state, message=message, problems=problems)


def _test(state: CheckState, message: str, problems: tuple[str, ...] = ()) -> CheckStep:
    return CheckStep(name=CheckName.TEST_RUN, state=state, message=message[:MOST_TEXT], problems=problems)
