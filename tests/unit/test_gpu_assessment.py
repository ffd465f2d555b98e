"""Does a GPU's state let its nodes get new jobs?"""

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from comfy_fleet.agent.agent_check_server import line
from comfy_fleet.domain.nodes.agent_state import AgentState, Readiness, both
from comfy_fleet.domain.nodes.gpu import Gpu, Recovery, Throttle
from comfy_fleet.domain.nodes.gpu_assessment import Assessment, Policy, State, assess, paced
from comfy_fleet.domain.nodes.vram import GIB, Source, Usage

TOTAL = 24 * GIB
FINE = Gpu(index=0, uuid="GPU-1")
FREE = Usage(total=TOTAL, foreign=0, source=Source.PROCESSES)
BLIND = Usage()
POLICY = Policy()


def held(gib: float, source: Source = Source.PROCESSES) -> Usage:
    return replace(FREE, foreign=int(gib * GIB), source=source)


def follow(
    steps: Sequence[tuple[float, Usage]], *, gpu: Gpu | None = FINE, policy: Policy = POLICY
) -> list[Assessment]:
    state, told = State(), []
    for now, use in steps:
        judgement, state = assess(gpu, use, state, now_s=now, policy=policy)
        told.append(judgement)
    return told


def words(told: Sequence[Assessment]) -> list[str]:
    return [judgement.readiness.value for judgement in told]


def test_a_node_full_of_its_own_models_is_ready_at_once() -> None:
    (told,) = follow([(0, replace(FREE, own={"g1": 22 * GIB}))])
    assert (told.readiness, told.weight, told.reason) == (Readiness.READY, 100, "")
    assert told.available_bytes == TOTAL - POLICY.reserve(TOTAL, 1)
    assert told.foreign_bytes == 0


def test_ten_gigabytes_of_somebody_else_drain_a_card_of_24() -> None:
    use = replace(FREE, foreign=int(10e9), others=((4242, "train.py", int(10e9)),))
    (told,) = follow([(0, use)])
    assert told.readiness is Readiness.DRAIN
    assert "9.3 GiB of 24.0 GiB" in told.reason
    assert "train.py 4242" in told.reason
    assert told.available_bytes == TOTAL - int(10e9) - POLICY.reserve(TOTAL, 1)


@pytest.mark.parametrize("total", [8, 12, 16, 24, 48, 80])
def test_a_desktop_does_not_drain_and_the_next_smaller_card_does(total: int) -> None:
    use = replace(FREE, total=total * GIB)
    assert words(follow([(0, replace(use, foreign=int(1.5 * GIB)))])) == ["ready"]
    assert words(follow([(0, replace(use, foreign=total * GIB // 2))])) == ["drain"]


def test_what_the_smallest_job_needs_sets_the_limit_but_never_beyond_90_percent() -> None:
    small = Policy(need_bytes=4 * GIB)
    assert words(follow([(0, held(10))], policy=small)) == ["ready"]
    assert words(follow([(0, held(19.5))], policy=small)) == ["drain"]
    nothing = Policy(need_bytes=0)
    assert words(follow([(0, held(21.5)), (1, held(21.7))], policy=nothing)) == ["ready", "drain"]
    (told,) = follow([(0, FREE)], policy=Policy(need_bytes=40 * GIB))
    assert told.readiness is Readiness.DRAIN
    assert "40.0 GiB" in told.reason


def test_a_host_s_memory_drains_only_when_it_is_nearly_full() -> None:
    use = replace(FREE, source=Source.HOST)
    half, full = replace(use, foreign=TOTAL // 2), replace(use, foreign=TOTAL * 95 // 100)
    assert words(follow([(0, half), (1, full)])) == ["ready", "drain"]


def test_it_drains_at_once_and_returns_after_the_dwell_without_a_break() -> None:
    times = (0, 1, 2, 11, 11.5, 12, 21, 22)
    told = follow([(now, held(12) if now in (1, 11.5) else FREE) for now in times])
    assert words(told) == ["ready", "drain", "drain", "drain", "drain", "drain", "drain", "ready"]
    assert told[3].reason == "well again, returns in 1 s"


def test_between_the_thresholds_everything_stays_as_it_is() -> None:
    limit, back = POLICY.drain_at(TOTAL, 1), POLICY.return_at(TOTAL, 1)
    between = replace(FREE, foreign=(limit + back) // 2)
    assert words(follow([(0, between), (100, between)])) == ["ready", "ready"]
    over = replace(FREE, foreign=limit)
    assert words(follow([(0, over), (1, between), (100, between)])) == ["drain"] * 3
    below = replace(FREE, foreign=back)
    assert words(follow([(0, over), (1, below), (11, below)])) == ["drain", "drain", "ready"]


SMALL = Policy(need_bytes=10, reserve_bytes=0, dwell_s=1.0)
"""Of a card of 100 bytes: drains at 90, returns below 85."""


@pytest.mark.parametrize(
    ("foreign", "policy", "word"),
    [
        (85, SMALL, "drain"),
        (84, SMALL, "ready"),
        (1, replace(SMALL, need_bytes=98), "drain"),  # drains at 2: the way back is half as long, not none
        (0, replace(SMALL, need_bytes=98), "ready"),
    ],
)
def test_the_way_back_ends_at_the_second_threshold(foreign: int, policy: Policy, word: str) -> None:
    card = Usage(total=100, foreign=90, source=Source.PROCESSES)
    less = replace(card, foreign=foreign)
    assert words(follow([(0, card), (1, less), (9, less)], policy=policy))[-1] == word


def test_a_card_that_has_just_too_little_says_so() -> None:
    empty = Usage(total=100, foreign=0, source=Source.PROCESSES)
    (told,) = follow([(0, empty)], policy=replace(SMALL, need_bytes=100))
    assert (told.readiness, "are too little" in told.reason) == (Readiness.DRAIN, True)


def test_nothing_is_available_beyond_what_there_is() -> None:
    (told,) = follow([(0, replace(FREE, foreign=TOTAL))])
    assert told.available_bytes == 0


def test_only_ready_has_a_weight_and_only_the_others_a_reason() -> None:
    warm = Assessment(readiness=Readiness.READY, weight=60, reason="throttled: software thermal")
    assert warm.verdict == AgentState(readiness=Readiness.READY, weight=60)
    assert replace(warm, readiness=Readiness.DRAIN, reason="full").verdict == AgentState(
        readiness=Readiness.DRAIN, reason="full"
    )


def test_more_nodes_on_a_card_leave_less_for_models() -> None:
    one, _ = assess(FINE, FREE, State(), now_s=0, nodes=1)
    three, _ = assess(FINE, FREE, State(), now_s=0, nodes=3)
    assert one.available_bytes is not None
    assert three.available_bytes == one.available_bytes - 2 * POLICY.context_bytes


def test_a_lost_gpu_is_down_and_comes_back_after_the_dwell() -> None:
    state = State()
    told = []
    for now, gpu in [(0, FINE), (1, replace(FINE, lost=True)), (2, FINE), (12, FINE)]:
        judgement, state = assess(gpu, FREE if not gpu.lost else BLIND, state, now_s=now)
        told.append(judgement)
    assert words(told) == ["ready", "down", "drain", "ready"]
    assert "fallen off the bus" in told[1].reason


@pytest.mark.parametrize(
    ("gpu", "why"),
    [
        (replace(FINE, xids=(13, 79)), "Xid 79"),
        (replace(FINE, recovery=Recovery.REBOOT), "a reboot"),
        (replace(FINE, remap_failed=True), "spare memory rows"),
        (replace(FINE, ecc_uncorrected=2), "2 uncorrected"),
        (replace(FINE, ecc_uncorrected=1), "1 uncorrected"),
    ],
)
def test_faults_drain_and_say_why(gpu: Gpu, why: str) -> None:
    (told,) = follow([(0, FREE)], gpu=gpu)
    assert told.readiness is Readiness.DRAIN
    assert why in told.reason


@pytest.mark.parametrize(
    "gpu",
    [
        replace(FINE, xids=(13, 31, 43, 94)),  # programs' own faults
        replace(FINE, recovery=Recovery.NONE, remap_failed=False, ecc_uncorrected=0),
        replace(FINE, reset_pending=True),  # works until the next reset, which then takes the bad rows out
        None,
    ],
)
def test_what_is_no_fault(gpu: Gpu | None) -> None:
    assert words(follow([(0, FREE)], gpu=gpu)) == ["ready"]


def test_memory_errors_can_be_allowed() -> None:
    gpu = replace(FINE, ecc_uncorrected=2)
    assert words(follow([(0, FREE)], gpu=gpu, policy=Policy(ecc_limit=0))) == ["ready"]


def test_what_can_not_be_judged_stays_as_it_is_and_then_drains() -> None:
    assert words(follow([(0, BLIND), (1000, BLIND), (1001, FREE)])) == ["hold", "hold", "ready"]
    told = follow([(0, FREE), (1, BLIND), (120, BLIND), (122, BLIND), (123, FREE), (133, FREE)])
    assert words(told) == ["ready", "hold", "hold", "drain", "drain", "ready"]
    assert "for 121 s" in told[3].reason
    assert words(follow([(0, held(12)), (1, BLIND), (500, BLIND)])) == ["drain", "drain", "drain"]


def test_bounds_are_enough_when_they_are_low() -> None:
    low, high = (held(gib, source=Source.BOUNDS) for gib in (2, 12))
    told = follow([(0, low), (1, high)])
    assert words(told) == ["ready", "hold"]
    assert told[0].available_bytes is told[0].foreign_bytes is None


def test_what_can_not_be_seen_keeps_nobody_out() -> None:
    (told,) = follow([(0, Usage(total=64 * GIB, foreign=0, source=Source.UNSEEN))], gpu=None)
    assert (told.readiness, told.source) == (Readiness.READY, Source.UNSEEN)
    assert words(follow([(0, Usage(foreign=0, source=Source.UNSEEN))], gpu=None)) == ["ready"]


@pytest.mark.parametrize(
    ("throttles", "speed", "weight"),
    [
        ((), None, 100),
        ((), 0.456, 46),
        ((), 1.7, 170),
        ((), 0.0, 1),
        ((Throttle.SOFT_THERMAL,), None, 60),
        ((Throttle.SOFT_THERMAL, Throttle.HARD_THERMAL), None, 30),
        ((Throttle.SOFT_THERMAL,), 0.5, 50),  # the speed has the heat in it
        ((Throttle.HARD,), 0.9, 30),
        ((Throttle.HARD,), 1.9, 30),
    ],
)
def test_the_weight_follows_heat_and_speed(
    throttles: tuple[Throttle, ...], speed: float | None, weight: int
) -> None:
    gpu = replace(FINE, throttles=frozenset(throttles))
    told, _ = assess(gpu, FREE, State(), now_s=0)
    assert bool(told.reason) == bool(throttles)
    told = paced(told, speed)
    assert told.readiness is Readiness.READY
    assert told.weight == weight


@pytest.mark.parametrize(
    ("record", "gpu", "word", "weight"),
    [
        (Readiness.READY, Readiness.READY, Readiness.READY, 80),
        (Readiness.READY, Readiness.DRAIN, Readiness.DRAIN, 0),
        (Readiness.DRAIN, Readiness.READY, Readiness.DRAIN, 0),
        (Readiness.HOLD, Readiness.DRAIN, Readiness.DRAIN, 0),
        (Readiness.HOLD, Readiness.READY, Readiness.HOLD, 0),
        (Readiness.READY, Readiness.HOLD, Readiness.HOLD, 0),
        (Readiness.DRAIN, Readiness.DOWN, Readiness.DOWN, 0),
    ],
)
def test_record_and_gpu_join_to_the_stricter_word(
    record: Readiness, gpu: Readiness, word: Readiness, weight: int
) -> None:
    one = AgentState(readiness=record, weight=200 if record is Readiness.READY else 0)
    two = AgentState(readiness=gpu, weight=40 if gpu is Readiness.READY else 0)
    assert both(one, two) == AgentState(readiness=word, weight=weight)


def test_the_operator_s_reason_comes_first() -> None:
    one = AgentState(readiness=Readiness.DRAIN, reason="fans")
    assert both(one, AgentState(readiness=Readiness.DRAIN, reason="memory")) == one
    tiny = both(
        AgentState(readiness=Readiness.READY, weight=1), AgentState(readiness=Readiness.READY, weight=1)
    )
    assert tiny.weight == 1  # never 0: that would be a drain


USES = st.one_of(
    st.just(BLIND),
    st.builds(
        lambda foreign, source: Usage(total=TOTAL, foreign=foreign, source=source),
        st.integers(0, TOTAL),
        st.sampled_from([Source.PROCESSES, Source.COUNTED, Source.BOUNDS, Source.STATS]),
    ),
)
GPUS = st.builds(
    lambda lost, xids, throttles: replace(FINE, lost=lost, xids=xids, throttles=throttles),
    st.sampled_from([False] * 9 + [True]),
    st.sampled_from([(), (), (), (31,), (79,)]),
    st.frozensets(st.sampled_from(list(Throttle))),
)
STEPS = st.lists(st.tuples(st.floats(0.01, 30), USES, st.none() | GPUS), max_size=60)
POLICIES = st.builds(
    Policy,
    need_bytes=st.none() | st.integers(0, 2 * TOTAL),
    dwell_s=st.floats(0, 60),
    band_share=st.floats(0, 0.5),
    blind_s=st.floats(0, 60),
)


@given(steps=STEPS, policy=POLICIES, nodes=st.integers(1, 4))
def test_no_order_of_events_breaks_the_rules(
    steps: list[tuple[float, Usage, Gpu | None]], policy: Policy, nodes: int
) -> None:
    state, now = State(), 0.0
    limit = policy.drain_at(TOTAL, nodes)
    for pause, use, gpu in steps:
        now += pause
        told, state = assess(gpu, use, state, now_s=now, nodes=nodes, policy=policy)
        assert 1 <= told.weight <= 100
        assert told.verdict.readiness is told.readiness
        if told.readiness in (Readiness.DRAIN, Readiness.DOWN):
            assert told.reason
        if told.readiness is Readiness.READY:  # never while others hold too much, nor on a broken GPU
            assert use.foreign is not None
            assert use.foreign < limit
            assert gpu is None or not (gpu.lost or 79 in (gpu.xids or ()))
        if use.certain and use.foreign is not None and use.foreign >= limit:
            assert told.readiness in (Readiness.DRAIN, Readiness.DOWN)  # at once, whatever was before


@given(steps=STEPS, policy=POLICIES)
def test_it_never_flaps_faster_than_the_dwell(
    steps: list[tuple[float, Usage, Gpu | None]], policy: Policy
) -> None:
    state, now, first_bad, was = State(), 0.0, None, Readiness.HOLD
    for pause, use, gpu in steps:
        now += pause
        told, state = assess(gpu, use, state, now_s=now, policy=policy)
        if told.readiness in (Readiness.DRAIN, Readiness.DOWN) and was not in (
            Readiness.DRAIN,
            Readiness.DOWN,
        ):
            first_bad = now
        if told.readiness is Readiness.READY and first_bad is not None:
            assert now - first_bad >= policy.dwell_s - 1e-6
            first_bad = None
        was = told.readiness


@given(own=st.integers(0, TOTAL), foreign=st.integers(0, GIB))
def test_a_node_that_just_ran_a_job_stays_ready(own: int, foreign: int) -> None:
    warm = replace(FREE, own={"g1": own}, foreign=foreign)
    assert words(follow([(0, FREE), (1, warm), (2, warm)])) == ["ready"] * 3


def test_the_guide_names_the_limits_that_hold() -> None:
    guide = (Path(__file__).parents[2] / "docs" / "howto" / "vram.md").read_text()
    rows = re.findall(
        r"^\| (\d+) GiB \| ([\d.]+) GiB \| ([\d.]+) GiB \| ([\d.]+) GiB \|$", guide, re.MULTILINE
    )
    assert len(rows) == 6
    for total, *told in rows:
        size = int(total) * GIB
        limits = POLICY.reserve(size, 1), POLICY.drain_at(size, 1), POLICY.return_at(size, 1)
        assert [float(text) for text in told] == pytest.approx([limit / GIB for limit in limits], abs=0.06)


def test_haproxy_reads_the_reason_of_a_lost_gpu_on_one_line() -> None:
    answer = line(AgentState(readiness=Readiness.DOWN, reason="the GPU\nis götne " + "x" * 200))
    assert answer.startswith(b"down 0% #the GPU is g?tne xxx")
    assert answer.count(b"\n") == 1
    assert len(answer) < 100
