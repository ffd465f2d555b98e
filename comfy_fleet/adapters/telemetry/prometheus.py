"""An observer that counts metrics for Prometheus.

The process that commits an event counts it, so a sum over all processes counts each job once.
"""

import time
from collections.abc import Callable, Mapping
from functools import cache
from typing import Generic, TypeVar

from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector, disable_created_metrics

from comfy_fleet.domain.jobs.job import JobError, JobStatus, NewJob
from comfy_fleet.domain.principal import DEFAULT_TENANT
from comfy_fleet.ports.runs import Claim
from comfy_fleet.ports.telemetry import EndedJob

MOST_VALUES = 200
"""Values of one label, and combinations of workflow, pool and tenant; all others become :data:`OTHER`."""
MOST_TIMED = 100
"""Pairs of workflow and pool whose times are measured. While a scrape is written, which takes some tenths of
a millisecond for each pair, the process does nothing else."""
MOST_NODES = 2000
OTHER = "other"
GRAPH = "graph"
"""The workflow's label for a job that was submitted as a graph."""

BUCKETS_S = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1800, 3600)
_ENDS = tuple(str(status) for status in JobStatus if status.terminal)


def new_registry() -> CollectorRegistry:
    """Return a registry with the metrics that every process has: CPU, memory, descriptors, start."""
    disable_created_metrics()  # type: ignore[no-untyped-call]  # else a second series per counter
    registry = CollectorRegistry()
    ProcessCollector(registry=registry)
    return registry


V = TypeVar("V")


class _Bounded(dict[V, V], Generic[V]):
    """A label's values: ``bounded[value]`` is the value, or ``other`` once there are ``most`` of them."""

    def __init__(self, other: V, most: int = MOST_VALUES) -> None:
        super().__init__()
        self._other = other
        self._most = most

    def __missing__(self, value: V) -> V:
        if len(self) >= self._most:
            return self._other
        self[value] = value
        return value


class PrometheusTelemetry:
    """Counts events and measures times; the port describes the events.

    Args:
        registry: Where the metrics are registered.
        clock: Unix seconds.
    """

    def __init__(self, registry: CollectorRegistry, *, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._workflow, self._code = _Bounded(OTHER), _Bounded(OTHER)
        self._whose = _Bounded((OTHER, OTHER, OTHER))
        self._timed = _Bounded((OTHER, OTHER), MOST_TIMED)
        self._node = _Bounded(OTHER, MOST_NODES)

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(name, text, labels, registry=registry)

        def histogram(name: str, text: str) -> Histogram:
            return Histogram(name, text, ["workflow", "pool"], buckets=BUCKETS_S, registry=registry)

        # Finding a metric by its labels takes longer than counting.
        self._submitted = cache(counter("fleet_jobs_submitted_total", "Jobs accepted.", "workflow").labels)
        self._jobs = cache(
            counter("fleet_jobs_total", "Jobs that ended.", "status", "workflow", "pool", "tenant").labels
        )
        self._gpu_s = cache(
            counter(
                "fleet_gpu_seconds_total",
                "Time for which runs held a node, by whose they were.",
                "tenant",
                "workflow",
                "pool",
            ).labels
        )
        self._runs = cache(
            counter("fleet_runs_total", "Runs that ended: how, or the error's code.", "outcome").labels
        )
        self._queue_s = cache(
            histogram("fleet_job_queue_seconds", "Seconds from a job's submit to its first run.").labels
        )
        self._run_s = cache(
            histogram("fleet_job_run_seconds", "Seconds of the run that ended the job.").labels
        )
        self._total_s = cache(
            histogram("fleet_job_total_seconds", "Seconds from a job's submit to its end.").labels
        )
        self._shared = cache(
            counter(
                "fleet_results_shared_total",
                "Jobs that got the result of an equal one: an earlier one, or that of a run they followed.",
                "workflow",
                "how",
            ).labels
        )
        self._merged = cache(
            counter(
                "fleet_jobs_merged_total", "Jobs claimed to share a prompt with others.", "workflow", "mode"
            ).labels
        )
        self._staged = counter("fleet_files_staged_ahead_total", "Files put onto busy nodes for later runs.")
        self._staged_used = counter(
            "fleet_files_staged_ahead_used_total", "Those of them that a run there has read."
        )
        self._refused = cache(
            counter("fleet_leases_refused_total", "Nodes that were not granted.", "reason").labels
        )
        self._oom = cache(counter("fleet_oom_total", "Runs out of GPU memory.", "node").labels)
        self._busy_s = cache(
            counter("fleet_node_busy_seconds_total", "Time for which runs held the node.", "node").labels
        )
        self._loads = cache(
            counter(
                "fleet_model_loads_total", "Prompts for which the node had to load models.", "node"
            ).labels
        )
        self._claims = cache(
            counter("fleet_claims_total", "Jobs claimed, by the rule that chose them.", "rule").labels
        )
        self._loads_s = counter(
            "fleet_claim_load_seconds_total", "Expected time of loading the models of claimed jobs."
        )
        self._posted = counter("fleet_prompts_posted_total", "Prompts that a node accepted.")
        self._fetched = cache(
            counter("fleet_input_fetches_total", "URLs of inputs that were asked for.", "outcome").labels
        )
        self._stored = cache(
            counter("fleet_outputs_stored_total", "Outputs that were to go to stores.", "outcome").labels
        )
        self._stored_bytes = counter("fleet_outputs_stored_bytes_total", "Bytes of those that stores have.")
        self._judged = cache(
            counter("fleet_judgements_total", "Questions to who judges content.", "stage", "outcome").labels
        )
        self._webhooks = cache(
            counter("fleet_webhooks_total", "Tries to deliver a message to a webhook.", "outcome").labels
        )
        self._retried = counter("fleet_store_retries_total", "Calls that Redis did not answer, repeated.")

    def submitted(self, new: NewJob) -> None:
        """Count a job."""
        self._submitted(self._workflow[new.workflow or GRAPH]).inc()

    def claimed(self, claim: Claim) -> None:
        """Count why a job was chosen, and measure how long it waited for its first run."""
        job = claim.job
        self._claims(self._code[claim.rule or OTHER]).inc()
        self._loads_s.inc(max(0.0, claim.load_s))
        if claim.merged is not None:
            self._merged(self._workflow[job.workflow or GRAPH], str(claim.merged)).inc()
        if not job.attempts and job.started_at is not None:
            self._queue_s(*self._timing(claim)).observe(max(0.0, job.started_at - job.created_at))
        whose = self._labels(claim)
        for status in _ENDS:  # at 0 before the first: Prometheus' increase() sees no step from nothing
            self._jobs(status, *whose)

    def posted(self, claim: Claim) -> None:
        """Count a prompt."""
        self._posted.inc()
        if claim.load_s > 0:
            self._loads(self._node[claim.node]).inc()

    def left(self, claim: Claim, *, busy_s: float) -> None:
        """Count the time for which a node was busy."""
        busy_s = max(0.0, busy_s)
        self._busy_s(self._node[claim.node]).inc(busy_s)
        workflow, pool, tenant = self._labels(claim)
        self._gpu_s(tenant, workflow, pool).inc(busy_s)

    def ended(
        self, claim: Claim, status: JobStatus, *, error: JobError | None, duration_s: float, outputs: int
    ) -> None:
        """Count a job and its run, and measure their times."""
        self._run(claim, str(status) if error is None else error.code)
        self._run_s(*self._job(claim, status)).observe(max(0.0, duration_s))

    def given_back(self, claim: Claim, status: JobStatus, *, error: JobError, counts: bool) -> None:
        """Count a run, and its job if its attempts are used up."""
        self._run(claim, error.code)
        if status.terminal:
            self._job(claim, status)

    def ended_without_run(self, job: EndedJob) -> None:
        """Count a job, and measure its time."""
        workflow = self._workflow[job.workflow or GRAPH]
        if job.status is JobStatus.SUCCEEDED:
            self._shared(workflow, "run" if job.followed else "earlier").inc()
        # No node, so no pool.
        self._jobs(str(job.status), *self._whose[workflow, OTHER, job.tenant or DEFAULT_TENANT]).inc()
        self._total_s(*self._timed[workflow, OTHER]).observe(max(0.0, job.total_s))

    def lease_refused(self, reason: str, *, node: str | None = None, detail: str = "") -> None:
        """Count a node that was not granted."""
        self._refused(self._code[reason]).inc()

    def staged_ahead(self, *, sent: int = 0, used: int = 0) -> None:
        """Count files; those that are sent and never used were sent in vain."""
        self._staged.inc(sent)
        self._staged_used.inc(used)

    def fetched(self, outcome: str) -> None:
        """Count a URL that was asked for."""
        self._fetched(outcome).inc()

    def judged(self, stage: str, outcome: str) -> None:
        """Count a question about content."""
        self._judged(stage, outcome).inc()

    def webhook_tried(self, outcome: str) -> None:
        """Count a try."""
        self._webhooks(outcome).inc()

    def stored(self, outcome: str, size_bytes: int) -> None:
        """Count an output that was to be put into a store."""
        self._stored(outcome).inc()
        self._stored_bytes.inc(size_bytes)

    def store_retried(self, error: Exception, *, about: Mapping[str, str], tell: bool) -> None:
        """Count a call that is repeated."""
        self._retried.inc()

    def _labels(self, claim: Claim) -> tuple[str, str, str]:
        # The node's pool: clients may name any pool, with others to spill to.
        job = claim.job
        return self._whose[
            self._workflow[job.workflow or GRAPH], claim.pool or OTHER, job.tenant or DEFAULT_TENANT
        ]

    def _timing(self, claim: Claim) -> tuple[str, str]:
        return self._timed[self._workflow[claim.job.workflow or GRAPH], claim.pool or OTHER]

    def _job(self, claim: Claim, status: JobStatus) -> tuple[str, str]:
        labels = self._timing(claim)
        self._jobs(str(status), *self._labels(claim)).inc()
        self._total_s(*labels).observe(max(0.0, self._clock() - claim.job.created_at))
        return labels

    def _run(self, claim: Claim, outcome: str) -> None:
        self._runs(self._code[outcome]).inc()
        if outcome == "out_of_memory":
            self._oom(self._node[claim.node]).inc()
