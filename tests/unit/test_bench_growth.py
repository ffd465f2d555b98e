"""What long runs call growth."""

import random
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from benchmarks.growth import Point, Tolerance, growth, theil_sen
from benchmarks.stage import Fleet
from benchmarks.vitals import KeyKinds, Vitals
from comfy_fleet.adapters.redis.keys import Keyspace
from comfy_fleet.settings import Settings

SOME = Tolerance(share=0.05, least=8)


def series(slope: float, *, noise: float = 0, start: float = 100) -> list[Point]:
    drawn = random.Random(1)
    return [(float(at), start + slope * at + drawn.uniform(-noise, noise)) for at in range(1000)]


def test_the_slope_is_not_moved_by_what_sticks_out() -> None:
    points = series(0.5)
    points[10] = (10.0, 1e9)
    points[700] = (700.0, -1e9)
    assert theil_sen(points[::10]) == pytest.approx(0.5)


@pytest.mark.parametrize("noise", [0, 20])
def test_what_grows_is_found_in_noise_and_what_only_shakes_is_not(noise: float) -> None:
    assert not growth(series(0.05, noise=noise), SOME, warm_up_s=100).level
    assert growth(series(0, noise=noise), SOME, warm_up_s=100).level
    assert growth(series(-0.05, noise=noise), SOME, warm_up_s=100).level


def test_a_warm_up_does_not_count() -> None:
    points = [(at, min(at, 300.0)) for at, _ in series(0)]
    assert not growth(points, SOME, warm_up_s=0).level
    assert growth(points, SOME, warm_up_s=300).level


def test_one_step_is_no_growth_without_end_but_many_are() -> None:
    once = [(at, 100.0 + (20 if at > 950 else 0)) for at, _ in series(0)]
    assert growth(once, SOME, warm_up_s=0).level
    stairs = [(at, 100.0 + 10 * (at // 200)) for at, _ in series(0)]
    assert not growth(stairs, SOME, warm_up_s=0).level


def test_too_short_a_series_is_not_called_level() -> None:
    assert not growth(series(0)[:105], SOME, warm_up_s=100).level


def test_keys_are_counted_by_the_names_of_their_table() -> None:
    kinds = KeyKinds(Keyspace("fleet"))
    keyspace = Keyspace("fleet")
    for name, key in {
        "job": keyspace.job("1b1ed575-26e6-44ad-bb86-28d9a390a866"),
        "job_outputs": keyspace.job_outputs("1b1ed575-26e6-44ad-bb86-28d9a390a866"),
        "jobs_of": keyspace.jobs_of("ann"),
        "jobs": keyspace.jobs,
        "sched_jobs": keyspace.sched_jobs("default::g1 g2", "ann"),
        "idempotency": keyspace.idempotency("v2:ann", "46bfbf51"),
        "webhook": keyspace.webhook("msg_1_succeeded"),
        "rq_results": keyspace.rq_results("1b1ed575-26e6-44ad-bb86-28d9a390a866"),
        "somebody:elses": "somebody:elses",
    }.items():
        assert kinds.of(key) == name


def test_fewer_kept_jobs_are_no_more_for_each_of_them(tmp_path: Path) -> None:
    vitals = Vitals(cast("Fleet", SimpleNamespace(settings=Settings(data=tmp_path))))
    what = "Redis for a kept job"
    vitals.note_each(what, "each", 5_000_000, 0)  # a fleet at rest
    for kept in (2000, 1500, 150, 20, 120):
        vitals.note_each(what, "each", 5_000_000 + kept * 8192, kept)
    assert [value for _, value in vitals.series[f"each {what}"]] == [8192] * 4
    vitals.note_each(what, "each", 5_000_000 + 1000 * 16_384, 1000)  # grows, and is seen to
    assert vitals.series[f"each {what}"][-1][1] == 16_384
