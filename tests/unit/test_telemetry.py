"""What observers make of what happens to jobs and runs, and that none of them hurts a job."""

import inspect
import logging
from dataclasses import replace
from typing import Any, cast

import pytest
from prometheus_client import CollectorRegistry, Gauge, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from comfy_fleet.adapters.telemetry import (
    LoggingTelemetry,
    NullTelemetry,
    Observers,
    PrometheusTelemetry,
    new_registry,
)
from comfy_fleet.adapters.telemetry.prometheus import MOST_NODES, MOST_VALUES
from comfy_fleet.adapters.telemetry.text import FamilyText, RegistryText
from comfy_fleet.domain.errors import StoreDown
from comfy_fleet.domain.graphs.merging import MergeMode
from comfy_fleet.domain.jobs.job import Attempt, Job, JobError, JobStatus, Placement
from comfy_fleet.ports.runs import Claim
from comfy_fleet.ports.telemetry import EndedJob, Telemetry
from tests.factories import new_job

JOB = Job(
    id="j",
    owner="o",
    status=JobStatus.RUNNING,
    created_at=1000.0,
    started_at=1002.5,
    expires_at=9,
    graph_hash="h",
    workflow="card",
    placement=Placement(pool="wished", spill=("big",)),
    tenant="blue",
)
CLAIM = Claim(job=JOB, graph=b"{}", run="r", node="g1", pool="big", token="t", attempt=0, load_s=2.0)
OOM = JobError(code="out_of_memory", message="too large")
EXPIRED = EndedJob(job_id="k", status=JobStatus.EXPIRED, workflow=None, total_s=7.0)
TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def tell_all(telemetry: Telemetry) -> None:
    """Tell everything that there is to tell, once."""
    telemetry.submitted(new_job())
    telemetry.claimed(CLAIM)
    telemetry.posted(CLAIM)
    telemetry.left(CLAIM, busy_s=4.0)
    telemetry.ended(CLAIM, JobStatus.SUCCEEDED, error=None, duration_s=3.0, outputs=2)
    telemetry.given_back(CLAIM, JobStatus.QUEUED, error=OOM, counts=True)
    telemetry.ended_without_run(EXPIRED)
    telemetry.staged_ahead(sent=3)
    telemetry.staged_ahead(used=2)
    telemetry.lease_refused("error", detail="odd")
    telemetry.fetched("stored")
    telemetry.judged("prompt", "refused")
    telemetry.webhook_tried("again")
    telemetry.stored("stored", 7)
    telemetry.store_retried(StoreDown("away"), about={"job_id": "j"}, tell=True)


EVENTS = [name for name, _ in inspect.getmembers(Telemetry, inspect.isfunction) if not name.startswith("_")]


def test_every_observer_takes_every_event() -> None:
    assert len(EVENTS) == 14
    for one in (NullTelemetry(), LoggingTelemetry(), PrometheusTelemetry(CollectorRegistry())):
        tell_all(one)
        tell_all(Observers(one))
        assert all(callable(getattr(one, name)) for name in EVENTS)


def test_what_an_observer_raises_reaches_nobody_and_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    class Broken:
        def __getattr__(self, name: str) -> Any:
            def fails(*_: object, **__: object) -> None:
                raise RuntimeError(name)

            return fails

    registry = CollectorRegistry()
    both = Observers(cast(Telemetry, Broken()), PrometheusTelemetry(registry))
    caplog.set_level(logging.INFO)
    for _ in range(3):
        tell_all(both)
    assert caplog.messages.count("observer failed") == len(EVENTS), "once of each event"
    assert registry.get_sample_value("fleet_prompts_posted_total") == 3, "the others are told all the same"


def test_events_are_counted_and_measured() -> None:
    registry = CollectorRegistry()
    telemetry = PrometheusTelemetry(registry, clock=lambda: 1010.0)
    tell_all(telemetry)

    def value(name: str, **labels: str) -> float | None:
        return registry.get_sample_value(name, labels)

    where = {"workflow": "card", "pool": "big"}
    assert value("fleet_jobs_submitted_total", workflow="graph") == 1
    assert value("fleet_jobs_total", status="succeeded", tenant="blue", **where) == 1
    assert value("fleet_jobs_total", status="failed", tenant="blue", **where) == 0, "from the first claim on"
    assert value("fleet_jobs_total", status="expired", workflow="graph", pool="other", tenant="default") == 1
    assert value("fleet_gpu_seconds_total", tenant="blue", **where) == 4.0
    assert value("fleet_model_loads_total", node="g1") == 1
    assert value("fleet_webhooks_total", outcome="again") == 1
    assert value("fleet_job_queue_seconds_sum", **where) == 2.5
    assert value("fleet_job_run_seconds_sum", **where) == 3.0
    assert value("fleet_job_total_seconds_sum", **where) == 10.0
    assert value("fleet_job_total_seconds_sum", workflow="graph", pool="other") == 7.0
    assert value("fleet_runs_total", outcome="succeeded") == 1
    assert value("fleet_runs_total", outcome="out_of_memory") == 1
    assert value("fleet_oom_total", node="g1") == 1
    assert value("fleet_node_busy_seconds_total", node="g1") == 4.0
    assert value("fleet_leases_refused_total", reason="error") == 1
    assert value("fleet_store_retries_total") == 1
    assert value("fleet_files_staged_ahead_total") == 3
    assert value("fleet_input_fetches_total", outcome="stored") == 1
    assert value("fleet_judgements_total", stage="prompt", outcome="refused") == 1
    assert value("fleet_files_staged_ahead_used_total") == 2


def test_jobs_that_share_a_result_or_a_prompt_are_counted() -> None:
    registry = CollectorRegistry()
    telemetry = PrometheusTelemetry(registry)
    for followed in (True, True, False):
        telemetry.ended_without_run(
            EndedJob(job_id="k", status=JobStatus.SUCCEEDED, workflow="card", total_s=1.0, followed=followed)
        )
    telemetry.ended_without_run(
        EndedJob(job_id="k", status=JobStatus.FAILED, workflow="card", total_s=1.0, error=OOM, followed=True)
    )
    telemetry.claimed(CLAIM)
    for mode in (MergeMode.EXACT, MergeMode.BATCH, MergeMode.BATCH):
        telemetry.claimed(replace(CLAIM, merged=mode))

    def value(name: str, **labels: str) -> float | None:
        return registry.get_sample_value(name, {"workflow": "card", **labels})

    assert value("fleet_results_shared_total", how="run") == 2
    assert value("fleet_results_shared_total", how="earlier") == 1
    assert value("fleet_jobs_merged_total", mode="exact") == 1
    assert value("fleet_jobs_merged_total", mode="batch") == 2


def test_a_job_counts_once_however_often_it_ran() -> None:
    registry = CollectorRegistry()
    telemetry = PrometheusTelemetry(registry)
    telemetry.claimed(CLAIM)
    telemetry.given_back(CLAIM, JobStatus.QUEUED, error=OOM, counts=True)
    before = Attempt(run="r", node="g1", started_at=0, ended_at=1)
    again = replace(CLAIM, job=replace(JOB, attempts=(before,)))
    telemetry.claimed(again)
    telemetry.given_back(again, JobStatus.FAILED, error=OOM, counts=True)
    labels = {"workflow": "card", "pool": "big"}
    assert registry.get_sample_value("fleet_job_queue_seconds_count", labels) == 1
    labels["tenant"] = "blue"
    assert registry.get_sample_value("fleet_jobs_total", {"status": "failed", **labels}) == 1
    assert registry.get_sample_value("fleet_jobs_total", {"status": "queued", **labels}) is None


def test_claims_are_counted_by_the_rule_that_chose_the_job(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    registry = CollectorRegistry()
    for telemetry in (PrometheusTelemetry(registry), LoggingTelemetry()):
        for rule, load_s in (("warm", 0.0), ("unheld", 2.5), ("unheld", 4.25), ("", 0.0)):
            telemetry.claimed(replace(CLAIM, rule=rule, load_s=load_s))
    counted = {
        rule: registry.get_sample_value("fleet_claims_total", {"rule": rule})
        for rule in ("warm", "unheld", "other")
    }
    assert counted == {"warm": 1, "unheld": 2, "other": 1}
    assert registry.get_sample_value("fleet_claim_load_seconds_total") == 6.75
    told = [(getattr(line, "rule", None), getattr(line, "load_s", None)) for line in caplog.records]
    assert told == [("warm", 0.0), ("unheld", 2.5), ("unheld", 4.25), (None, None)]


def test_no_client_can_make_any_number_of_labels() -> None:
    registry = CollectorRegistry()
    telemetry = PrometheusTelemetry(registry)
    for number in range(5 * MOST_VALUES):
        job = replace(JOB, workflow=f"w{number % 20}", tenant=f"t{number % 3}")
        telemetry.claimed(replace(CLAIM, job=job, pool=f"p{number // 20}"))
        telemetry.left(replace(CLAIM, job=job, pool=f"p{number // 20}"), busy_s=1)
        telemetry.posted(replace(CLAIM, node=f"n{number * 3}"))
        telemetry.ended(
            replace(CLAIM, job=job, pool=f"p{number // 20}"),
            JobStatus.FAILED,
            error=replace(OOM, code=f"c{number}"),
            duration_s=1,
            outputs=0,
        )
        telemetry.lease_refused(f"r{number}")
    for family in registry.collect():
        series = {tuple(sorted(s.labels.items())) for s in family.samples if "le" not in s.labels}
        most = {"fleet_jobs": 4 * MOST_VALUES + 4, "fleet_model_loads": MOST_NODES + 1}
        assert len(series) <= most.get(family.name, MOST_VALUES + 1), family.name


def test_lines_of_the_log_are_those_that_people_look_for(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    telemetry = LoggingTelemetry()
    tell_all(telemetry)
    telemetry.lease_refused("busy")
    telemetry.lease_refused("nothing", node="g1")
    telemetry.lease_refused("cordoned", node="g1")
    telemetry.store_retried(StoreDown("away"), about={}, tell=False)
    assert caplog.messages == [
        "job accepted",
        "job claimed",
        "prompt accepted",
        "job ended",
        "job given back",
        "job ended",
        "no lease",
        "the store is asked again",
        "node refused",
    ]
    ended = caplog.records[3].__dict__
    assert (ended["job_id"], ended["run_id"], ended["node"], ended["tenant"]) == ("j", "r", "g1", "blue")
    assert "traceparent" not in ended


def test_a_trace_is_on_every_line_of_its_job(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    telemetry = LoggingTelemetry()
    telemetry.submitted(replace(new_job(), traceparent=TRACE))
    telemetry.claimed(replace(CLAIM, job=replace(JOB, traceparent=TRACE)))
    assert [record.__dict__["traceparent"] for record in caplog.records] == [TRACE, TRACE]


def test_no_series_says_when_another_one_was_made() -> None:
    registry = new_registry()
    tell_all(PrometheusTelemetry(registry))
    names = {sample.name for family in registry.collect() for sample in family.samples}
    assert "fleet_jobs_total" in names and not {name for name in names if name.endswith("_created")}


def test_every_process_tells_of_itself() -> None:
    assert new_registry().get_sample_value("process_cpu_seconds_total") is not None


def test_the_text_is_what_prometheus_client_would_write() -> None:
    registry = new_registry()
    telemetry = PrometheusTelemetry(registry)
    tell_all(telemetry)
    telemetry.lease_refused('a "quoted"\\ word\nand a line, {with} = signs, ü')
    Gauge("fleet_infinite", "Some number.", registry=registry).set(float("inf"))

    def read(text: bytes) -> dict[str, tuple[str, str, dict[tuple[Any, ...], float]]]:
        return {
            family.name: (
                family.type,
                family.documentation,
                {(one.name, *sorted(one.labels.items())): one.value for one in family.samples},
            )
            for family in text_string_to_metric_families(text.decode())
            if not family.name.startswith("process_")  # which differ from one moment to the next
        }

    write = RegistryText(registry)
    assert read(write()) == read(generate_latest(registry))
    tell_all(telemetry)
    assert read(write()) == read(generate_latest(registry)), "with what it has kept of the first time"


def test_what_is_kept_for_the_next_scrape_is_bounded() -> None:
    write = FamilyText("fleet_node_busy", "1 while a run has the node.", "gauge", ["node"])
    for round_ in range(10):  # nodes come and go
        names = [f'g{round_}-{number}"' for number in range(1000)]
        text = write([((name,), 1) for name in names])
        assert text.splitlines()[2:] == [f'fleet_node_busy{{node="{name[:-1]}\\""}} 1' for name in names]
        assert len(write._begins) <= 2 * 1000 + 2002  # noqa: SLF001 - what it holds is what this is about
    assert write([]) == ""
