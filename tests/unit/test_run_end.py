"""What becomes of a job when its run ends, with what is known of failures, and that it is written."""

from typing import Any

import pytest

from comfy_fleet.adapters.telemetry import NullTelemetry
from comfy_fleet.domain.backoff import Backoff
from comfy_fleet.domain.errors import LeaseLost, NodeError, OutputGone, OutputLimit, OutputRefused, StoreDown
from comfy_fleet.domain.jobs.job import Job, JobError, JobStatus, Placement, Progress
from comfy_fleet.domain.jobs.run_messages import RunResult
from comfy_fleet.domain.jobs.run_results import withdrawn
from comfy_fleet.domain.nodes.eligibility import GIB
from comfy_fleet.domain.nodes.node import Reading
from comfy_fleet.domain.schedule.waiting_job import SINGLE, WARMING
from comfy_fleet.ports.runs import Claim
from comfy_fleet.services import store_retry
from comfy_fleet.services.failure_policy import FailureLimits, FailurePolicy
from comfy_fleet.services.memory_prediction import MemoryPrediction
from comfy_fleet.services.node_directory import NodeDirectory
from comfy_fleet.services.run_end import Ending, GivenBack, Over
from comfy_fleet.services.run_metrics import Measured
from tests.factories import a_claim, running_job
from tests.fakes.comfyui import FakeNodeApi
from tests.fakes.memory import FakeMemoryStore
from tests.fakes.nodes import FakeInventoryStore, FakeNodeRegistry, FakePoolStore
from tests.fakes.runs import FakeRunStore, Finished, Requeued

BOOM = JobError(code="node_execution_error", message="boom")
TOO_LARGE = JobError(code="out_of_memory", message="too large")
BIGGER = Placement(above=12 * GIB, without=frozenset({"g1"}))
UI = '{"9":{"text":["a"]}}'
HALF = Progress(value=0.5, nodes_done=1, nodes_total=2)


class World:
    """A run on node ``g1``, among nodes with cards of some GiB."""

    def __init__(self, job: Job | None = None, **cards: int) -> None:
        self.registry = FakeNodeRegistry()
        for name, size in (cards or {"g1": 24}).items():
            self.registry.put(name, reading=Reading(vram_bytes=size * GIB))
        self.inventories = FakeInventoryStore(self.registry)
        self.directory = NodeDirectory(self.registry, self.inventories)
        self.runs = FakeRunStore()
        self.claim = a_claim(job)
        self.runs.hold(self.claim)
        self.policy = FailurePolicy(
            self.registry,
            self.inventories,
            FakeNodeApi(),
            self.directory,
            FakePoolStore(),
            MemoryPrediction(FakeMemoryStore(), keep_s=60),
            FailureLimits(),
        )
        self.ending = self.ending_of(self.claim)

    def ending_of(self, *claims: Claim) -> Ending:
        return Ending(claims, runs=self.runs, failure_policy=self.policy, telemetry=NullTelemetry())


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_retry, "BACKOFF", Backoff(first_s=0.001, longest_s=0.004))


async def decided(
    verdict: RunResult, *, lost: Exception | None = None, ordered: str = "", world: World | None = None
) -> Over | GivenBack:
    world = world or World()
    await world.directory.look()  # as a dispatcher does before its first job
    return await world.ending.decide(
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
    for rerun_nodes, kind in (({"9"}, Over), ({"7"}, GivenBack), (set[str](), GivenBack)):
        world = World(running_job(rerun_nodes=frozenset(rerun_nodes)))
        found = await decided(RunResult(kind="succeeded"), lost=gone, world=world)
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


@pytest.mark.parametrize("ordered", ["", "release"])
@pytest.mark.parametrize("retryable", [True, False])
async def test_a_job_that_ran_out_of_memory_goes_to_a_larger_card(ordered: str, retryable: bool) -> None:
    verdict = RunResult(kind="failed", error=TOO_LARGE, counts=True, retryable=retryable)
    moved = GivenBack(error=TOO_LARGE, counts=False, placement=BIGGER)
    assert await decided(verdict, world=World(g1=12, g2=24), ordered=ordered) == moved
    over = await decided(verdict, world=World(g1=24, g2=12), ordered=ordered)
    assert isinstance(over, Over) and over.status is JobStatus.FAILED and over.error is not None
    assert "out of memory on g1 (24 GiB), the largest node that can run it" in over.error.message


async def test_a_node_that_refuses_a_job_does_not_get_it_again() -> None:
    refused = JobError(code="invalid_workflow", message="no class X")
    verdict = RunResult(kind="rejected", error=refused, counts=False, retryable=True, exclude_node=True)
    world = World(g1=12, g2=12)
    elsewhere = Placement(without=frozenset({"g1"}))
    assert await decided(verdict, world=world) == GivenBack(error=refused, counts=False, placement=elsewhere)
    assert world.registry.held["g1"].reading.wanted
    assert await decided(verdict) == Over(status=JobStatus.FAILED, error=refused)  # there is no other node


async def test_a_job_whose_node_broke_goes_elsewhere_and_the_node_is_counted() -> None:
    broke = JobError(code="gpu_fault", message="CUDA error")
    verdict = RunResult(kind="failed", error=broke, counts=True, retryable=True, exclude_node=True)
    world = World(g1=12, g2=12)
    elsewhere = Placement(without=frozenset({"g1"}))
    assert await decided(verdict, world=world) == GivenBack(error=broke, counts=True, placement=elsewhere)
    assert world.registry.strikes == [("g1", "gpu", 2)]
    assert await decided(verdict) == GivenBack(error=broke, counts=True, placement=Placement())


@pytest.mark.parametrize(
    ("status", "duration_s"),
    [(JobStatus.SUCCEEDED, 2.5), (JobStatus.FAILED, None), (JobStatus.CANCELED, None)],
)
async def test_only_a_success_says_how_long_a_job_takes(status: JobStatus, duration_s: float | None) -> None:
    world = World()
    measured = Measured(speed=0.1, models=["vae/a"], ran_s=2.0, warm=True, reused=True)
    end = Over(status=status, error=BOOM)
    assert await world.ending.finish(end, measured=measured, duration_s=2.5, progress=HALF, ui=UI) is status
    assert world.runs.finished == [
        Finished(
            status=status,
            error=BOOM,
            duration_s=duration_s,
            speed=0.1,
            models=["vae/a"],
            ran_s=2.0,
            warm=True,
            reused=True,
            progress=HALF,
            ui=UI,
        )
    ]


async def test_an_end_is_written_as_soon_as_redis_is_back() -> None:
    world = World(g1=12, g2=24)
    away: list[Exception] = [StoreDown("Redis is away")] * 5
    world.inventories.troubles = away.copy()
    back = await decided(RunResult(kind="failed", error=TOO_LARGE, counts=True), world=world)
    assert isinstance(back, GivenBack) and not world.runs.requeued
    world.runs.troubles = away.copy()
    assert (
        await world.ending.give_back(back, rerun_nodes=frozenset({"7"}), progress=HALF, ui=UI)
        is JobStatus.QUEUED
    )
    assert world.runs.requeued == [
        Requeued(
            counts=False,
            reason=TOO_LARGE,
            rerun_nodes=frozenset({"7"}),
            placement=BIGGER,
            progress=HALF,
            ui=UI,
        )
    ]
    world = World()
    world.runs.troubles = away.copy()
    end = Over(status=JobStatus.SUCCEEDED)
    written = world.ending.finish(end, measured=Measured(), duration_s=1, progress=None, ui="")
    assert await written is JobStatus.SUCCEEDED
    assert len(world.runs.finished) == 1


@pytest.mark.parametrize("over", [True, False])
@pytest.mark.parametrize("lost", [None, "second", "third"])
async def test_every_job_that_a_run_serves_ends_with_it(over: bool, lost: str | None) -> None:
    world = World()
    others = [a_claim(running_job(id=name), run=name, token=f"of {name}") for name in ("second", "third")]
    for claim in others:
        world.runs.hold(claim)
    if lost:
        world.runs.lose(lost)  # another dispatcher has taken this one over
    ending = world.ending_of(world.claim, *others)
    world.runs.troubles = [StoreDown("Redis is away")] * 3
    if over:
        end = Over(status=JobStatus.SUCCEEDED)
        measured = Measured(speed=0.5, models=["m"])
        written = ending.finish(end, measured=measured, duration_s=2, progress=HALF, ui=UI)
        assert await written is JobStatus.SUCCEEDED
        assert {one.status for one in world.runs.finished} == {JobStatus.SUCCEEDED}
        assert len(world.runs.finished) == (2 if lost else 3)
        measures = [(one.duration_s, one.speed) for one in world.runs.finished]
        assert measures == [(None, None)] * (len(measures) - 1) + [(2, 0.5)]  # one run is measured once
    else:
        back = GivenBack(error=BOOM, counts=True)
        written = ending.give_back(back, rerun_nodes=frozenset(), progress=HALF, ui=UI)
        assert await written is JobStatus.QUEUED
        assert len(world.runs.requeued) == (2 if lost else 3)
    assert set(world.runs.runs) == ({lost} if lost else set())


async def test_a_run_that_is_lost_ends_no_job_of_its_own_and_says_so() -> None:
    world = World()
    other = a_claim(running_job(id="second"), run="second", token="of second")
    world.runs.hold(other)
    world.runs.lose("r")
    ending = world.ending_of(world.claim, other)
    with pytest.raises(LeaseLost):
        await ending.finish(
            Over(status=JobStatus.SUCCEEDED), measured=Measured(), duration_s=1, progress=None, ui=""
        )
    assert "r" in world.runs.runs and "second" not in world.runs.runs


async def test_whoever_lost_the_run_writes_nothing() -> None:
    world = World()
    world.runs.lose("r")
    with pytest.raises(LeaseLost):
        await world.ending.give_back(
            GivenBack(error=BOOM, counts=True), rerun_nodes=frozenset(), progress=None, ui=""
        )
    assert not world.runs.requeued


@pytest.mark.parametrize("ordered", ["", "release"])
async def test_a_run_that_only_warms_is_not_repeated(ordered: str) -> None:
    world = World(running_job(tier=WARMING))
    lost = RunResult(kind="lost", error=JobError(code="node_lost", message="gone"), counts=True)
    assert await decided(lost, ordered=ordered, world=world) == Over(
        status=JobStatus.FAILED, error=JobError(code="node_lost", message="gone")
    )
    assert isinstance(await decided(lost, ordered=ordered), GivenBack)


async def test_how_long_a_run_that_only_warms_took_teaches_nothing() -> None:
    for tier, taught in ((SINGLE, 3.0), (WARMING, None)):
        world = World(running_job(tier=tier))
        over = Over(status=JobStatus.SUCCEEDED)
        await world.ending.finish(over, measured=Measured(), duration_s=3.0, progress=None, ui="")
        assert world.runs.finished[-1].duration_s == taught
