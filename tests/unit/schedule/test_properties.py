"""What holds whatever comes: bounds in time, in heads and in shares, and nothing left behind."""

from collections import Counter
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from comfy_fleet.domain.schedule.backlog import MAX_HEADS
from comfy_fleet.domain.schedule.chooser import FairChooser
from comfy_fleet.domain.schedule.model_set import NO_MODELS, ModelSet
from comfy_fleet.domain.schedule.policy import JobChoice
from comfy_fleet.domain.schedule.scheduled_node import GIB
from comfy_fleet.domain.schedule.waiting_job import BATCH, EDITOR, SINGLE, WaitingJob
from tests.unit.schedule.kit import Fleet, job, models, node

SETS = [models(f"m{i}") for i in range(8)]
LOAD_S, PATIENCE_S = 9.0, 20.0


def some_jobs(chance: Random, count: int, *, over_s: float, owners: int = 3) -> list[WaitingJob]:
    """Return jobs of all kinds, in the order of their submits."""
    made = []
    for i, at in enumerate(sorted(chance.uniform(0.0, over_s) for _ in range(count))):
        finish_by = at + chance.uniform(5, 300) if chance.random() < 0.2 else None
        made.append(
            job(
                f"j{i:04}",
                chance.choice([*SETS, NO_MODELS]),
                at=at,
                owner=f"o{chance.randrange(owners)}",
                place=chance.choice(["image", "image", "video"]),
                tier=chance.choice([EDITOR, SINGLE, SINGLE, BATCH]),
                priority_s=chance.choice([0.0, 0.0, 60.0]),
                run_s=chance.choice([0.3, 1.0, 4.0]),
                memory=chance.choice([0, 10, 20, 23]) * GIB,
                finish_by=finish_by,
            )
        )
    return made


def some_fleet(chance: Random, policy: FairChooser) -> Fleet:
    nodes = [
        node("n0", "image", "video"),
        node("n1", "image", vram_gib=20),
        node("n2", "image", "video", speed=2.0),
    ]
    return Fleet(nodes, policy, noise=lambda seconds: seconds * chance.uniform(0.5, 2.0))


@pytest.mark.parametrize("seed", range(8))
def test_every_job_is_chosen_once_and_only_where_it_fits(seed: int) -> None:
    chance = Random(seed)
    jobs = some_jobs(chance, 300, over_s=150.0)
    fleet = some_fleet(chance, FairChooser(patience_s=PATIENCE_S))
    fleet.submit(*jobs)
    fleet.run()
    assert Counter(each.job.id for each in fleet.started) == Counter(each.id for each in jobs)
    cards = {each.name: each for each in fleet.nodes}
    for each in fleet.started:
        assert each.job.memory <= cards[each.node].vram_bytes
        assert each.job.place in cards[each.node].places
    assert fleet.most_heads <= MAX_HEADS


@pytest.mark.parametrize("seed", range(3))
def test_the_same_events_lead_to_the_same_choices(seed: int) -> None:
    def played() -> list[tuple[str, str, float]]:
        chance = Random(seed)
        fleet = some_fleet(chance, FairChooser())
        fleet.submit(*some_jobs(chance, 200, over_s=60.0))
        return [(each.job.id, each.node, each.at) for each in fleet.run().started]

    assert played() == played()


@pytest.mark.parametrize("seed", range(6))
def test_nobody_is_passed_over_for_longer_than_patience_one_load_and_one_run(seed: int) -> None:
    """One owner, so that no share counts; each job that comes finds the nodes busy with warm ones."""
    chance = Random(seed)
    fair = FairChooser(patience_s=PATIENCE_S)
    fleet = Fleet([node("n0"), node("n1")], fair)
    hot = [job(f"h{i:04}", SETS[i % 2], at=0.5 * i, run_s=1.0) for i in range(400)]
    rare = [job(f"r{i}", SETS[2 + i % 6], at=chance.uniform(20.0, 150.0), run_s=1.0) for i in range(4)]
    fleet.submit(*hot, *rare)
    fleet.run()
    first = {each.job.id: each.at for each in fleet.started}
    for each in rare:
        # Its turn comes once all that was submitted before it has started or been passed over.
        before = [first[other.id] for other in hot if other.submitted < each.submitted]
        others = LOAD_S * sum(1 for other in rare if other.submitted <= each.submitted)
        turn = max(*before, each.submitted)
        assert first[each.id] - turn <= PATIENCE_S + LOAD_S + 1.0 + others


def test_a_claim_reads_few_heads_whatever_waits() -> None:
    chance = Random(1)
    fair = FairChooser(patience_s=0.5)
    sets = [models(f"f{i // 4}", f"l{i}", gib=6) for i in range(1000)]
    for i in range(20):
        fair.node_up(
            node(f"n{i:02}", *(f"p{place}" for place in range(12)), vram_gib=[12, 24, 48][i % 3]), 0.0
        )
    for i in range(20_000):
        fair.submitted(
            job(
                f"j{i:05}",
                chance.choice(sets),
                owner=f"o{i % 10_000}",
                place=f"p{i % 12}",
                memory=chance.choice([0, 8, 20, 40]) * GIB,
                finish_by=chance.choice([None, 0.5, 500.0]),
                run_s=chance.uniform(0.1, 3.0),
            ),
            0.0,
        )
    most, chosen = 0, 0
    for step in range(600):
        now, name = 0.05 * step, f"n{step % 20:02}"
        answer = fair.next_for(name, now)
        most = max(most, fair.heads_read)
        if isinstance(answer, JobChoice):
            chosen += 1
            fair.ended(
                answer.job.id, name, load_s=answer.load_s, run_s=3 * answer.job.run_s, ok=True, now=now
            )
    assert 10 < most <= MAX_HEADS
    assert chosen > 500


@pytest.mark.parametrize("loads", ["none", "one", "any of two"])
@pytest.mark.parametrize("mixed", [False, True])
def test_two_owners_get_their_shares(loads: str, mixed: bool) -> None:
    chance = Random(3)
    fair = FairChooser(weights={"ann": 2.0})
    spread = 0.0 if mixed else 0.4  # mixed lengths alone come to 2 % in a minute

    fleet = Fleet(
        [node(f"n{i}") for i in range(4)], fair, noise=lambda s: s * chance.uniform(1 - spread, 1 + spread)
    )
    for owner in ("ann", "bob"):
        fleet.submit(
            *(
                job(
                    f"{owner}{i:04}",
                    {"none": NO_MODELS, "one": SETS[0]}.get(loads, SETS[i % 2]),
                    owner=owner,
                    run_s=chance.choice([0.2, 0.5, 4.0]) if mixed else 0.32,
                )
                for i in range(3000)
            )
        )
    fleet.run(until=150.0)
    for begin in (30.0, 60.0, 90.0):
        used: Counter[str] = Counter()
        for each in fleet.started:
            end = min(begin + 60.0, each.at + each.load_s + each.run_s)
            used[each.job.owner] += max(0.0, end - max(begin, each.at))  # type: ignore[assignment]
        share = used["ann"] / (used["ann"] + used["bob"])
        assert share == pytest.approx(2 / 3, rel=0.03)


@pytest.mark.parametrize("loads", [SETS[0], SETS[1], NO_MODELS])
def test_a_single_job_waits_one_run_and_one_load_behind_a_thousand_of_top_priority(loads: ModelSet) -> None:
    fair = FairChooser()
    fleet = Fleet([node(f"n{i}") for i in range(4)], fair)
    fleet.submit(*(job(f"a{i:04}", SETS[0], tier=EDITOR, priority_s=6e7, run_s=6.0) for i in range(1000)))
    fleet.submit(
        *(
            job(f"b{i}", loads, at=at, owner="bob", tier=BATCH, run_s=6.0)
            for i, at in enumerate((50.0, 161.0, 333.0))
        )
    )
    fleet.run()
    for i in range(3):
        assert fleet.start_of(f"b{i}").wait_s <= 6.0 + LOAD_S


def test_an_owner_lags_by_some_loads_and_runs_at_most() -> None:
    chance = Random(5)
    fair = FairChooser(patience_s=1e6)
    fleet = Fleet([node(f"n{i}") for i in range(4)], fair)
    for number, owner in enumerate(("ann", "bob", "cat")):
        fleet.submit(
            *(
                job(f"{owner}{i:04}", SETS[number], owner=owner, run_s=chance.uniform(0.5, 2.0))
                for i in range(900)
            )
        )
    fleet.run(until=400.0)
    used: Counter[str] = Counter()
    for each in fleet.started:
        used[each.job.owner] += each.load_s + each.run_s  # type: ignore[assignment]
        if each.at > 30.0:
            assert max(used.values()) - min(used.values()) <= 4 * (LOAD_S + 2.0)


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["submit", "cancel", "ask", "end", "up", "down", "wait"]),
        st.integers(0, 7),
        st.integers(0, 5),
    ),
    max_size=80,
)


@settings(max_examples=150, deadline=None)
@given(STEPS)
def test_nothing_is_left_behind_and_nothing_runs_twice(steps: list[tuple[str, int, int]]) -> None:
    fair, now = FairChooser(patience_s=5.0), 0.0
    waiting: dict[str, WaitingJob] = {}
    running: dict[str, str] = {}  # by node
    up: set[str] = set()
    for number, (what, one, two) in enumerate(steps):
        name = f"n{one % 3}"
        match what:
            case "submit":
                made = job(
                    f"j{number}",
                    SETS[two],
                    at=now,
                    owner=f"o{one % 3}",
                    tier=one % 3,
                    finish_by=now + 9 if two == 3 else None,
                )
                waiting[made.id] = made
                fair.submitted(made, now)
            case "cancel" if waiting:
                gone = sorted(waiting)[one % len(waiting)]
                del waiting[gone]
                fair.withdrawn(gone, now)
            case "ask" if name in up and name not in running:
                answer = fair.next_for(name, now)
                if isinstance(answer, JobChoice):
                    assert waiting.pop(answer.job.id) == answer.job
                    running[name] = answer.job.id
            case "end" if name in running:
                fair.ended(running.pop(name), name, load_s=float(two), run_s=1.0, ok=two != 0, now=now)
            case "up":
                fair.node_up(node(name, vram_gib=24 + two), now)
                up.add(name)
            case "down":
                fair.node_down(name, now)
                up.discard(name)
            case "wait":
                now += two
    for job_id in waiting:
        fair.withdrawn(job_id, now)
    for name, job_id in running.items():
        fair.ended(job_id, name, load_s=0.0, run_s=0.0, ok=True, now=now)
    for name in ("n0", "n1", "n2"):
        fair.node_down(name, now)
    left = fair.snapshot()
    assert (left.waiting, left.queues, left.runs, left.nodes, left.families) == (0, 0, 0, 0, 0)
