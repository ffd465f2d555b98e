"""Keeping at what Redis does not answer."""

import logging

import pytest

from comfy_fleet.adapters.telemetry import LoggingTelemetry
from comfy_fleet.domain.backoff import Backoff
from comfy_fleet.domain.errors import NotFound, StoreDown
from comfy_fleet.services import store_retry


class Call:
    """Fails some times, then answers."""

    def __init__(self, *failures: Exception) -> None:
        self.failures = list(failures)

    async def __call__(self) -> str:
        if self.failures:
            raise self.failures.pop(0)
        return "done"


async def test_a_long_absence_is_said_now_and_then(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(store_retry, "BACKOFF", Backoff(first_s=0.0, longest_s=0.0))
    caplog.set_level(logging.WARNING)
    assert (
        await store_retry.retry_while_store_down(
            Call(*[StoreDown("away")] * 500), about={"job_id": "j"}, telemetry=LoggingTelemetry()
        )
        == "done"
    )
    (record,) = caplog.records
    assert (record.message, record.__dict__["job_id"]) == ("the store is asked again", "j")
    monkeypatch.setattr(store_retry, "REPORT_EVERY_S", 0.0)
    assert (
        await store_retry.retry_while_store_down(
            Call(*[StoreDown("away")] * 3), about={}, telemetry=LoggingTelemetry()
        )
        == "done"
    )
    assert len(caplog.records) == 4


async def test_any_other_error_passes() -> None:
    with pytest.raises(NotFound):
        await store_retry.retry_while_store_down(
            Call(StoreDown("away"), NotFound("no job")), about={}, telemetry=LoggingTelemetry()
        )
