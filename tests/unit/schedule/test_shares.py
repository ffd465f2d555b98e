"""Accounts and tags."""

from hypothesis import given
from hypothesis import strategies as st

from comfy_fleet.domain.schedule.shares import Account, Shares

SECONDS = st.floats(0.0, 1e4)


def test_a_charge_counts_by_weight() -> None:
    account = Account("ann", 2.0)
    account.charge(10.0)
    assert account.used == 5.0


def test_a_surplus_is_credit_for_the_next_charges() -> None:
    account = Account("ann", 1.0)
    account.charge(10.0)
    account.settle(10.0, 4.0)
    assert (account.used, account.credit) == (10.0, 6.0)
    account.charge(4.0)
    assert (account.used, account.credit) == (10.0, 2.0)
    account.charge(4.0)
    assert (account.used, account.credit) == (12.0, 0.0)


def test_what_was_charged_too_little_is_charged_at_the_end() -> None:
    account = Account("ann", 1.0)
    account.charge(4.0)
    account.settle(4.0, 10.0)
    assert account.used == 10.0


@given(st.lists(st.tuples(SECONDS, SECONDS), max_size=30), st.floats(0.1, 10.0))
def test_tags_never_decrease_and_in_the_end_only_use_counts(
    runs: list[tuple[float, float]], weight: float
) -> None:
    account, before = Account("ann", weight), 0.0
    for expected, used in runs:
        account.charge(expected)
        assert account.used >= before
        before = account.used
        account.settle(expected, used)
        assert account.used >= before and account.credit >= 0.0
        before = account.used
    real = sum(used for _, used in runs) / weight
    assert abs(account.used - account.credit - real) <= 1e-6 * max(1.0, real)


def test_who_comes_is_lifted_to_the_virtual_time() -> None:
    shares = Shares({})
    account, base = shares.enter("q", "ann", 100.0)
    assert account.used + base == 100.0


def test_who_goes_and_comes_back_is_not_forgiven_what_it_has_used() -> None:
    shares = Shares({})
    account, base = shares.enter("q", "ann", 100.0)
    account.charge(50.0)
    shares.leave("q", account, base, 110.0)
    account, base = shares.enter("q", "ann", 110.0)
    assert account.used + base == 150.0
    shares.leave("q", account, base, 110.0)
    account, base = shares.enter("q", "ann", 400.0)
    assert account.used + base == 400.0


def test_a_queue_that_is_further_does_not_hold_an_owner_up_elsewhere() -> None:
    shares = Shares({})
    account, slow = shares.enter("slow", "ann", 10.0)
    again, fast = shares.enter("fast", "ann", 1000.0)
    assert again is account
    assert (account.used + slow, account.used + fast) == (10.0, 1000.0)
    account.charge(5.0)
    assert (account.used + slow, account.used + fast) == (15.0, 1005.0)


def test_an_idle_owners_credit_is_no_claim_on_later_times() -> None:
    shares = Shares({})
    account, base = shares.enter("q", "ann", 0.0)
    shares.began(account)
    account.charge(100.0)
    shares.leave("q", account, base, 0.0)
    account.settle(100.0, 10.0)
    shares.ended(account)
    account, base = shares.enter("q", "ann", 60.0)
    assert account.used + base == 60.0 and account.credit == 0.0  # it is at 60, as everybody


@given(st.lists(st.tuples(st.sampled_from("abcdef"), st.floats(0.1, 50.0)), max_size=40))
def test_who_has_been_reached_is_forgotten(visits: list[tuple[str, float]]) -> None:
    shares, virtual = Shares({}), 0.0
    for owner, cost in visits:
        account, base = shares.enter("q", owner, virtual)
        shares.began(account)
        account.charge(cost)
        shares.leave("q", account, base, virtual)
        shares.ended(account)
        virtual += cost / 3
    for i in range(10):
        account, base = shares.enter("q", f"last{i}", 1e6 * (i + 1))
        shares.leave("q", account, base, 1e6 * (i + 1))
    assert shares.size == 0
