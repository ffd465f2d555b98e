"""Made-up traces are what they are said to be."""

import math
from collections import Counter
from dataclasses import replace
from itertools import islice
from statistics import median

import pytest

from comfy_fleet.domain.errors import BadInput
from comfy_fleet.planning.generated import Generated, generate
from comfy_fleet.planning.trace import Tier

WANTED = Generated(jobs=20_000, rate=10.0, owners=4, sets=3, run_s=6.0, run_spread=0.5, seed=3)


def test_jobs_come_in_order_at_the_rate_that_is_said() -> None:
    times = [job.submitted for job in generate(WANTED)]
    assert times == sorted(times)
    assert len(times) / times[-1] == pytest.approx(10.0, rel=0.05)


def test_shares_are_zipfs() -> None:
    jobs = list(generate(WANTED))
    for counts in (Counter(job.owner for job in jobs), Counter(job.models.family for job in jobs)):
        ranked = [count for _, count in counts.most_common()]
        for rank, count in enumerate(ranked, 1):
            assert ranked[0] / count == pytest.approx(rank, rel=0.1)
    alike = Counter(job.owner for job in generate(replace(WANTED, owner_skew=0.0)))
    assert max(alike.values()) < 1.1 * min(alike.values())


def test_lengths_are_log_normal() -> None:
    logs = sorted(math.log(job.run_s / 6.0) for job in generate(WANTED))
    assert median(logs) == pytest.approx(0.0, abs=0.02)
    assert math.sqrt(sum(log * log for log in logs) / len(logs)) == pytest.approx(0.5, rel=0.03)
    assert {job.run_s for job in islice(generate(replace(WANTED, run_spread=0.0)), 100)} == {6.0}


def test_a_job_needs_its_models_and_more() -> None:
    jobs = list(islice(generate(WANTED), 1000))
    assert all(job.memory > job.models.size > 0 for job in jobs)
    assert {job.memory for job in islice(generate(replace(WANTED, beside=0)), 100)} == {0}
    assert all(not job.models.files for job in islice(generate(replace(WANTED, sets=0)), 100))


def test_bursts_come_at_one_moment() -> None:
    moments = Counter(job.submitted for job in generate(replace(WANTED, burst=5.0)))
    assert 20_000 / len(moments) == pytest.approx(5.0, rel=0.1)
    assert set(Counter(job.submitted for job in generate(WANTED)).values()) == {1}


def test_all_at_once_is_at_once() -> None:
    assert {job.submitted for job in generate(replace(WANTED, rate=0.0, jobs=50))} == {0.0}


def test_tiers_wishes_and_limits_are_set() -> None:
    wanted = replace(WANTED, tiers=(0.1, 0.3, 0.6), finish_within=4.0, ttl_s=30.0)
    jobs = list(generate(wanted))
    shares = Counter(job.tier for job in jobs)
    assert shares[Tier.BATCH] / len(jobs) == pytest.approx(0.6, rel=0.05)
    assert shares[Tier.EDITOR] / len(jobs) == pytest.approx(0.1, rel=0.1)
    assert all(job.finish_by == job.submitted + 4.0 * job.run_s and job.ttl_s == 30.0 for job in jobs)


def test_a_duration_ends_the_trace() -> None:
    jobs = list(generate(Generated(rate=5.0, duration_s=100.0)))
    assert len(jobs) == pytest.approx(500, rel=0.2)
    assert 90 < jobs[-1].submitted <= 100


def test_impossible_wishes_are_refused() -> None:
    with pytest.raises(BadInput, match="without a rate, --jobs must say"):
        Generated(rate=0.0)
    with pytest.raises(BadInput, match=r"--rate and --for make 3.6e\+09 jobs"):
        Generated(rate=1e6)
