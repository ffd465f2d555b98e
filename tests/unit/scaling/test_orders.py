"""A node that was asked for, from the order to the end."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from comfy_fleet.domain.scaling.orders import (
    GONE_S,
    REJOIN_S,
    OrderedNode,
    OrderPhase,
    PoolBook,
    ScalingOrder,
    Step,
    followed,
    leaving,
)

BOOT_S = 100.0
ORDER = ScalingOrder(name="a", asked_at=1000.0, since=1000.0)
UP = OrderedNode(count=1, open=1)
DRAINED = OrderedNode(count=1, cordoned=True)
NONE = OrderedNode()


def after(order: ScalingOrder, node: OrderedNode, now: float) -> tuple[OrderPhase, Step]:
    found, step = followed(order, node, now=now, boot_s=BOOT_S)
    return found.phase, step


def test_it_is_ready_once_its_node_is() -> None:
    assert after(ORDER, NONE, 1050) == (OrderPhase.ASKED, Step.NOTHING)
    assert after(ORDER, OrderedNode(count=1), 1050) == (OrderPhase.ASKED, Step.NOTHING)
    assert after(ORDER, UP, 1050) == (OrderPhase.READY, Step.NOTHING)


def test_one_that_does_not_come_is_removed_and_says_why() -> None:
    order, step = followed(ORDER, NONE, now=1101, boot_s=BOOT_S)
    assert (order.phase, step) == (OrderPhase.DRAINING, Step.DRAIN)
    assert order.failed == "can't take jobs 100 s after its order"
    assert after(order, NONE, 1102) == (OrderPhase.ENDING, Step.REMOVE)


def test_one_that_is_away_for_long_is_removed() -> None:
    ready = ORDER.at(OrderPhase.READY, 1000)
    away, step = followed(ready, NONE, now=1500, boot_s=BOOT_S)
    assert (away.phase, step, away.missing_since) == (OrderPhase.READY, Step.NOTHING, 1500)
    assert followed(away, UP, now=1550, boot_s=BOOT_S)[0].missing_since is None
    lost, step = followed(away, NONE, now=1601, boot_s=BOOT_S)
    assert (lost.phase, step, lost.failed) == (OrderPhase.DRAINING, Step.DRAIN, "left the fleet for 100 s")


def test_whoever_drains_it_by_hand_may_but_a_quarantine_is_a_failure() -> None:
    ready = replace(ORDER.at(OrderPhase.READY, 1000), missing_since=1000.0)
    assert after(ready, DRAINED, 5000) == (OrderPhase.READY, Step.NOTHING)
    assert after(ready, replace(DRAINED, quarantined=True), 5000) == (OrderPhase.DRAINING, Step.DRAIN)


def test_it_is_removed_only_when_it_is_drained_and_has_no_work() -> None:
    drains = ORDER.at(OrderPhase.DRAINING, 2000)
    assert after(drains, replace(DRAINED, busy=True), 9000) == (OrderPhase.DRAINING, Step.NOTHING)
    assert after(drains, DRAINED, 2001) == (OrderPhase.ENDING, Step.REMOVE)


def test_somebody_may_resume_it() -> None:
    assert after(ORDER.at(OrderPhase.DRAINING, 2000), UP, 2001) == (OrderPhase.READY, Step.NOTHING)
    failed = ORDER.at(OrderPhase.DRAINING, 2000, failed="no")
    assert after(failed, UP, 2001) == (OrderPhase.DRAINING, Step.DRAIN)


def test_it_is_forgotten_once_nothing_answers_for_it() -> None:
    gone = ORDER.at(OrderPhase.GONE, 3000)
    assert after(gone, replace(DRAINED, answered=True), 3001) == (OrderPhase.GONE, Step.NOTHING)
    assert after(gone, DRAINED, 3001) == (OrderPhase.GONE, Step.FORGET)
    assert after(gone, replace(DRAINED, answered=True), 3000 + GONE_S) == (OrderPhase.GONE, Step.FORGET)
    assert after(gone, NONE, 3001) == (OrderPhase.GONE, Step.NOTHING), "its agent may come back once more"
    assert after(gone, NONE, 3000 + REJOIN_S) == (OrderPhase.GONE, Step.DROP)


@given(
    st.sampled_from(OrderPhase),
    st.builds(
        OrderedNode,
        count=st.integers(0, 2),
        open=st.integers(0, 2),
        cordoned=st.booleans(),
        quarantined=st.booleans(),
        busy=st.booleans(),
        answered=st.booleans(),
    ),
    st.floats(0, 1e6),
    st.sampled_from(["", "it failed"]),
)
def test_a_node_with_work_is_never_ended(
    phase: OrderPhase, node: OrderedNode, later: float, failed: str
) -> None:
    order = ORDER.at(phase, 1000, failed=failed)
    found, step = followed(order, node, now=1000 + later, boot_s=BOOT_S)
    if phase in (OrderPhase.ASKED, OrderPhase.READY, OrderPhase.DRAINING):
        if step is Step.REMOVE:
            assert not node.busy and (node.cordoned or not node.count)
        assert step not in (Step.FORGET, Step.DROP)
        assert found.phase is not OrderPhase.GONE


def test_idle_nodes_leave_first_and_of_these_the_newest() -> None:
    orders = [replace(ORDER, name=name, asked_at=at).at(OrderPhase.READY, at) for name, at in
              (("old", 1.0), ("new", 2.0), ("busy", 3.0), ("away", 4.0))]  # fmt: skip
    orders.append(replace(ORDER, name="boots"))
    nodes = {
        **dict.fromkeys(("old", "new", "boots"), UP),
        "busy": replace(UP, busy=True),
        "away": NONE,
    }
    assert [order.name for order in leaving(orders, nodes, 9)] == ["new", "old", "busy"]
    assert [order.name for order in leaving(orders, nodes, 1)] == ["new"]


@pytest.mark.parametrize(("failures", "pause_s"), [(0, 0.0), (1, 20.0), (2, 50.0), (20, 1790.0)])
def test_pauses_after_failures_double(failures: int, pause_s: float) -> None:
    assert PoolBook(failures=failures, failed_at=1000.0).pause_s(1010.0) == pause_s
