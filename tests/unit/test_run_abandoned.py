"""When a run gives up because its lease is gone."""

from types import SimpleNamespace
from typing import Any, cast

import pytest

from comfy_fleet.adapters.telemetry import LoggingTelemetry
from comfy_fleet.domain.jobs.job import JobStatus
from comfy_fleet.ports.runs import Claim, Held
from comfy_fleet.ports.telemetry import Telemetry
from comfy_fleet.services.collector import OutputLimits, Sharing
from comfy_fleet.services.execution import Execution
from comfy_fleet.services.run_deps import RunDeps
from comfy_fleet.services.run_metrics import Measured
from tests.factories import a_claim
from tests.fakes.runs import FakeRunStore

CLAIM = a_claim()


class Store(FakeRunStore):
    """Has a run's dispatcher told, while its end is written, that its lease is gone."""

    def __init__(self) -> None:
        super().__init__()
        self.hold(CLAIM)
        self.run: Execution | None = None
        self.abandoned: list[bool] = []

    async def finish(self, claim: Claim, status: JobStatus, **facts: Any) -> JobStatus:
        assert self.run is not None
        self.abandoned.append(self.run.abandon())
        return await super().finish(claim, status, **facts)


def execution(store: Store, telemetry: Telemetry | None = None) -> Execution:
    played: dict[str, Any] = {
        "runs": store, "nodes": None, "assets": None, "failure_policy": None, "now": lambda: 0.0,
        "output_limits": OutputLimits(), "telemetry": telemetry or LoggingTelemetry(), "sharing": Sharing(1),
        "frames": None,
        "moderation": None,
        "measure": SimpleNamespace(succeeded=lambda *_, **__: Measured()),
    }  # fmt: skip
    store.run = Execution(
        cast(RunDeps, SimpleNamespace(**played)), CLAIM, None, on_free=lambda _: None, on_rest=lambda *_: None
    )
    return store.run


async def test_a_lease_that_the_end_itself_lets_go_is_not_lost(caplog: pytest.LogCaptureFixture) -> None:
    store = Store()
    caplog.set_level("INFO")
    await execution(store).resume(Held(claim=CLAIM, phase="left", manifest=()))
    assert store.abandoned == [False]
    assert "job ended" in caplog.messages


async def test_a_node_that_a_prompt_has_left_is_not_busy_with_its_outputs() -> None:
    told: list[float] = []

    class Busy(LoggingTelemetry):
        def left(self, claim: Claim, *, busy_s: float) -> None:
            told.append(busy_s)

    await execution(Store(), Busy()).resume(Held(claim=CLAIM, phase="left", manifest=()))
    assert told == []


async def test_a_lease_that_is_lost_before_ends_the_run() -> None:
    store = Store()
    run = execution(store)
    assert run.abandon()
    await run.resume(Held(claim=CLAIM, phase="left", manifest=()))
    assert store.abandoned == []
