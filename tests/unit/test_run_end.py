"""What becomes of a job when its run ends, and that it is written; store and care are played."""

from dataclasses import replace
from typing import Any, cast

import pytest

from comfy_fleet.adapters.telemetry import NullTelemetry
from comfy_fleet.domain.backoff import Backoff
from comfy_fleet.domain.errors import LeaseLost, NodeError, OutputGone, OutputLimit, OutputRefused, StoreDown
from comfy_fleet.domain.jobs.job import Job, JobError, JobStatus, Placement, Progress
from comfy_fleet.domain.jobs.run_messages import RunResult
from comfy_fleet.domain.jobs.run_results import withdrawn
from comfy_fleet.ports.runs import Claim, RunStore
from comfy_fleet.services import store_retry
from comfy_fleet.services.failure_policy import Disposition, FailurePolicy
from comfy_fleet.services.run_end import Ending, GivenBack, Over
from comfy_fleet.services.run_metrics import Measured

JOB = Job(id="j", owner="o", status=JobStatus.RUNNING, created_at=0, expires_at=9, graph_hash="h")
CLAIM = Claim(job=JOB, graph=b"{}", run="r", node="g1", token="t", attempt=0)
BOOM = JobError(code="node_execution_error", message="boom")
BIGGER = Placement(above=1)
UI = '{"9":{"images":[]}}'
HALF = Progress(value=0.5, nodes_done=1, nodes_total=2)


class World:
    """What care advises, what was written, and how often Redis is away before."""

    def __init__(self, advice: Disposition | None = None) -> None:
        self.advice = advice
        self.away = 0
        self.written: list[dict[str, Any]] = []
        self.ending = Ending(
            CLAIM,
            runs=cast(RunStore, self),
            failure_policy=cast(FailurePolicy, self),
            telemetry=NullTelemetry(),
        )

    async def after(self, claim: Claim, verdict: RunResult) -> Disposition | None:
        assert claim is CLAIM
        self._answer()
        return self.advice

    async def finish(self, claim: Claim, status: JobStatus, **fields: Any) -> JobStatus:
        self._answer()
        self.written.append({"status": status, **fields})
        return status

    async def requeue(self, claim: Claim, **fields: Any) -> JobStatus:
        self._answer()
        self.written.append(fields)
        return JobStatus.QUEUED

    def _answer(self) -> None:
        self.away -= 1
        if self.away >= 0:
            raise StoreDown("Redis is away")


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_retry, "BACKOFF", Backoff(first_s=0.001, longest_s=0.004))


async def decided(
    verdict: RunResult, *, lost: Exception | None = None, ordered: str = "", advice: Disposition | None = None
) -> Over | GivenBack:
    return await World(advice).ending.decide(
        verdict,
        broken=[lost] if lost else [],
        released="release" in ordered,
        canceled="cancel" in ordered,
    )


@pytest.mark.parametrize("ordered", ["", "release", "cancel", "release and cancel"])
async def test_a_success_is_one_whatever_was_ordered(ordered: str) -> None:
    assert await decided(RunResult(kind="succeeded"), ordered=ordered) == Over(status=JobStatus.SUCCEEDED)


@pytest.mark.parametrize("released", [False, True])
async def test_a_success_without_its_outputs_is_run_again(released: bool) -> None:
    found = await decided(
        RunResult(kind="succeeded"),
        lost=NodeError("404", details={"node_id": "9"}),
        ordered="release" if released else "",
    )
    assert isinstance(found, GivenBack)
    assert (found.error.code, found.error.message) == ("output_lost", "an output can't be read: 404")
    assert found.error.node_id == "9"
    assert (found.counts, found.placement) == (not released, None)


async def test_what_its_node_never_gives_away_is_not_computed_again() -> None:
    refused = OutputRefused("node g1 answers 400 for output file 'a..b.png'", details={"node_id": "9"})
    found = await World().ending.decide(
        RunResult(kind="succeeded"), broken=[OutputGone("404"), refused], released=False, canceled=False
    )
    assert isinstance(found, Over) and found.status is JobStatus.FAILED and found.error is not None
    assert (found.error.code, found.error.node_id) == ("output_lost", "9")
    assert "'a..b.png'" in found.error.message and "would not help" in found.error.message


async def test_what_is_lost_again_though_its_node_ran_anew_is_not_computed_a_third_time() -> None:
    gone = OutputGone("404", details={"node_id": "9"})
    for bust, kind in (({"9"}, Over), ({"7"}, GivenBack), (set[str](), GivenBack)):
        claim = replace(CLAIM, job=replace(JOB, bust=frozenset(bust)))
        ending = Ending(
            claim,
            runs=cast(RunStore, World()),
            failure_policy=cast(FailurePolicy, World()),
            telemetry=NullTelemetry(),
        )
        found = await ending.decide(
            RunResult(kind="succeeded"), broken=[gone], released=False, canceled=False
        )
        assert isinstance(found, kind) and found.error is not None and found.error.code == "output_lost"


@pytest.mark.parametrize("kind", ["succeeded", "canceled", "failed", "lost"])
async def test_a_limit_ends_a_job_under_its_name(kind: Any) -> None:
    limit = OutputLimit("too many", details={"limit": "max_outputs", "value": 3, "node_id": "9"})
    verdict = RunResult(kind=kind, error=BOOM, counts=True, retryable=True)
    found = await World().ending.decide(verdict, broken=[limit], released=False, canceled=False)
    error = JobError(code="output_limit", message="too many", node_id="9", details=limit.details)
    assert found == Over(status=JobStatus.FAILED, error=error)
    found = await World().ending.decide(
        RunResult(kind="canceled"), broken=[limit], released=False, canceled=True
    )
    assert found == Over(status=JobStatus.CANCELED)


async def test_a_job_that_is_canceled_while_its_outputs_are_collected_is_not_run_again() -> None:
    found = await decided(RunResult(kind="succeeded"), lost=NodeError("404"), ordered="cancel")
    assert found == Over(status=JobStatus.CANCELED)


@pytest.mark.parametrize("ordered", ["cancel", "release and cancel", ""])
async def test_a_canceled_job_is_over(ordered: str) -> None:
    found = await decided(RunResult(kind="canceled"), lost=NodeError("404"), ordered=ordered)
    assert found == Over(status=JobStatus.CANCELED)


async def test_a_run_that_was_only_taken_off_its_node_costs_nothing() -> None:
    found = await decided(RunResult(kind="canceled"), ordered="release")
    assert isinstance(found, GivenBack) and not found.counts
    assert found.error == JobError(code="released", message="given back from node g1")


@pytest.mark.parametrize(
    ("verdict", "expected"),
    [
        (RunResult(kind="failed", error=BOOM, counts=True), Over(status=JobStatus.FAILED, error=BOOM)),
        (RunResult(kind="timeout", error=BOOM, counts=True), Over(status=JobStatus.FAILED, error=BOOM)),
        (
            RunResult(kind="failed", error=BOOM, counts=True, retryable=True),
            GivenBack(error=BOOM, counts=True),
        ),
        (RunResult(kind="lost", error=BOOM, counts=True), GivenBack(error=BOOM, counts=True)),
    ],
)
async def test_a_failure_is_repeated_where_that_can_help(
    verdict: RunResult, expected: Over | GivenBack
) -> None:
    assert await decided(verdict) == expected


async def test_a_run_that_was_lost_while_it_was_taken_off_its_node_costs_nothing() -> None:
    lost = RunResult(kind="lost", error=BOOM, counts=True)
    assert await decided(lost, ordered="release") == GivenBack(error=BOOM, counts=False)
    failed = RunResult(kind="failed", error=BOOM, counts=True, retryable=True)
    assert await decided(failed, ordered="release") == GivenBack(error=BOOM, counts=True)


async def test_a_node_that_works_for_others_rests_until_that_is_known() -> None:
    found = await decided(withdrawn(3))
    assert isinstance(found, GivenBack)
    assert (found.counts, found.placement) == (False, None)
    assert found.rest_s >= 2


async def test_a_failure_without_a_reason_has_one() -> None:
    found = await decided(RunResult(kind="lost"))
    assert found.error is not None and found.error.code == "node_lost"


async def test_what_care_knows_comes_first() -> None:
    worse = JobError(code="out_of_memory", message="too large")
    verdict = RunResult(kind="failed", error=BOOM, counts=True, retryable=True)
    moved = Disposition(placement=BIGGER, counts=False, error=worse, rest_s=3)
    back = GivenBack(error=worse, counts=False, placement=BIGGER, rest_s=3)
    for ordered in ("", "release"):
        assert await decided(verdict, advice=moved, ordered=ordered) == back
    last = Disposition(placement=None, counts=True, error=worse)
    assert await decided(verdict, advice=last) == Over(status=JobStatus.FAILED, error=worse)


@pytest.mark.parametrize(
    ("status", "duration_s"),
    [(JobStatus.SUCCEEDED, 2.5), (JobStatus.FAILED, None), (JobStatus.CANCELED, None)],
)
async def test_only_a_success_says_how_long_a_job_takes(status: JobStatus, duration_s: float | None) -> None:
    world = World()
    measured = Measured(speed=0.1, models=["vae/a"])
    end = Over(status=status, error=BOOM)
    assert await world.ending.finish(end, measured=measured, duration_s=2.5, progress=HALF, ui=UI) is status
    facts = {"duration_s": duration_s, "speed": 0.1, "models": ["vae/a"], "progress": HALF, "ui": UI}
    assert world.written == [{"status": status, "error": BOOM, **facts}]


async def test_an_end_is_written_as_soon_as_redis_is_back() -> None:
    world = World(Disposition(placement=BIGGER, counts=True, error=BOOM, rest_s=1))
    world.away = 5
    verdict = RunResult(kind="failed", error=BOOM)
    back = await world.ending.decide(verdict, broken=[], released=False, canceled=False)
    assert isinstance(back, GivenBack) and not world.written
    world.away = 5
    assert await world.ending.give_back(back, bust=frozenset({"7"}), progress=HALF, ui=UI) is JobStatus.QUEUED
    facts = {"counts": True, "reason": BOOM, "placement": BIGGER, "bust": frozenset({"7"})}
    facts |= {"progress": HALF, "ui": UI}
    assert world.written == [facts]
    world.away = 5
    end = Over(status=JobStatus.SUCCEEDED)
    written = world.ending.finish(end, measured=Measured(), duration_s=1, progress=None, ui="")
    assert await written is JobStatus.SUCCEEDED
    assert len(world.written) == 2


async def test_whoever_lost_the_run_writes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World()

    async def stale(claim: Claim, **fields: Any) -> JobStatus:
        raise LeaseLost("another dispatcher has it")

    monkeypatch.setattr(world, "requeue", stale)
    with pytest.raises(LeaseLost):
        await world.ending.give_back(
            GivenBack(error=BOOM, counts=True), bust=frozenset(), progress=None, ui=""
        )
