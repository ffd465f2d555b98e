"""Tenants get their shares first, and then the users of each."""

from collections import defaultdict
from collections.abc import Iterable
from random import Random

import pytest

from comfy_fleet.domain.schedule.chooser import FairChooser
from comfy_fleet.domain.schedule.waiting_job import WaitingJob
from tests.unit.schedule.kit import Fleet, job, models, node


def of(tenant: str, user: str, count: int, *, every_s: float = 0.0) -> Iterable[WaitingJob]:
    """Return some jobs of one user."""
    for i in range(count):
        yield job(f"{user}-{i:04}", at=every_s * i, owner=user, tenant=tenant, run_s=1.0)


def used(fleet: Fleet, until: float, by: str = "tenant") -> dict[str, float]:
    """Return the GPU seconds that tenants or owners have had by then."""
    found: dict[str, float] = defaultdict(float)
    for each in fleet.started:
        if each.at < until:
            found[getattr(each.job, by)] += each.load_s + each.run_s
    return found


def played(policy: FairChooser, *jobs: WaitingJob, nodes: int = 2, until: float = 300.0) -> Fleet:
    fleet = Fleet([node(f"n{i}") for i in range(nodes)], policy)
    fleet.submit(*jobs)
    return fleet.run(until)


def test_two_tenants_get_the_same_however_many_users_they_have() -> None:
    many = [each for user in range(9) for each in of("studio", f"s{user}", 200)]
    fleet = played(FairChooser(), *of("", "ada", 1000), *many)
    time = used(fleet, 300.0)
    assert time["studio"] == pytest.approx(time[""], rel=0.02)
    by_user = used(fleet, 300.0, "owner")
    shares = [by_user[f"s{user}"] for user in range(9)]
    assert max(shares) - min(shares) <= 3.0  # of 33 s


def test_a_tenant_whose_users_come_once_gets_no_more() -> None:
    """Each of its users is new, and so has had nothing yet."""
    once = [each for i in range(900) for each in of("shop", f"u{i:03}", 1)]
    later = [job(f"late-{i:03}", at=0.4 * i, owner=f"l{i:03}", tenant="shop", run_s=1.0) for i in range(700)]
    time = used(played(FairChooser(), *of("studio", "ada", 1000), *once, *later), 300.0)
    assert time["shop"] == pytest.approx(time["studio"], rel=0.02)


def test_one_that_sends_one_job_after_the_other_is_not_behind_a_crowd() -> None:
    crowd = [each for user in range(20) for each in of("crowd", f"c{user:02}", 100)]
    single = list(of("single", "ann", 60, every_s=5.0))
    fleet = played(FairChooser(), *crowd, *single)
    waits = [each.wait_s for each in fleet.started if each.job.tenant == "single"]
    assert len(waits) == 60
    assert max(waits) <= 1.0


def test_shares_of_tenants_and_of_users_inside() -> None:
    fair = FairChooser(weights={"s0": 3.0}, tenant_weights={"studio": 2.0})
    fleet = played(fair, *of("shop", "ada", 1000), *of("studio", "s0", 600), *of("studio", "s1", 600))
    time, by_user = used(fleet, 300.0), used(fleet, 300.0, "owner")
    assert time["studio"] == pytest.approx(2 * time["shop"], rel=0.02)
    assert by_user["s0"] == pytest.approx(3 * by_user["s1"], rel=0.03)


def test_a_tenant_that_needs_less_leaves_the_rest() -> None:
    fleet = played(FairChooser(), *of("a", "ada", 1000), *of("b", "bob", 50))
    time = used(fleet, 300.0)
    assert time["b"] == pytest.approx(50.0, abs=0.1)
    assert time["a"] == pytest.approx(550.0, abs=2.0)


@pytest.mark.parametrize("tenant", ["studio"])
def test_one_tenant_alone_is_as_if_there_were_none(tenant: str) -> None:
    def choices(name: str) -> list[tuple[str, str, float, str]]:
        chance = Random(5)
        jobs = [
            job(
                f"j{i:03}",
                models(f"m{chance.randrange(4)}"),
                at=chance.uniform(0.0, 100.0),
                owner=f"o{chance.randrange(6)}",
                tenant=name,
                run_s=chance.choice([0.3, 1.0, 4.0]),
                priority_s=chance.choice([0.0, 60.0]),
            )
            for i in range(400)
        ]
        fleet = played(FairChooser(), *sorted(jobs, key=lambda each: each.submitted), nodes=3, until=1e6)
        return [(each.job.id, each.node, each.at, each.reason) for each in fleet.started]

    assert choices("") == choices(tenant)
