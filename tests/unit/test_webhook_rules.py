"""When messages are sent again, and which URLs can be told anything."""

from typing import Any

import pytest

from comfy_fleet.domain.errors import BadInput
from comfy_fleet.domain.outbound import parse_allowed
from comfy_fleet.domain.webhooks.delivery import (
    SCHEDULE_S,
    SPREAD,
    DeliveryOutcome,
    NextStep,
    PostAnswer,
    next_step,
    parse_schedule,
)
from comfy_fleet.domain.webhooks.webhook import (
    ENDS,
    EVENTS,
    Webhook,
    checked_events,
    checked_url,
    receiver_of,
)


def step(answer: PostAnswer, *, attempts: int = 0, fails: int = 0, chance: float = 0.0) -> NextStep:
    return next_step(answer, attempts=attempts, fails=fails, chance=chance)


@pytest.mark.parametrize("status", [200, 201, 204, 299])
def test_any_2xx_is_delivered(status: int) -> None:
    assert step(PostAnswer(status=status)) == NextStep(outcome=DeliveryOutcome.DELIVERED)


def test_tries_are_spread_over_more_than_a_day() -> None:
    pauses = [step(PostAnswer(error="away"), attempts=n).after_s for n in range(len(SCHEDULE_S))]
    assert pauses == [5, 300, 1800, 7200, 18_000, 36_000, 36_000]
    assert step(PostAnswer(error="away"), attempts=len(SCHEDULE_S)).outcome is DeliveryOutcome.FAILED


def test_pauses_are_longer_by_chance_and_never_shorter() -> None:
    assert step(PostAnswer(error="away"), chance=1.0).after_s == pytest.approx(5 * (1 + SPREAD))


@pytest.mark.parametrize(
    ("answer", "paused"),
    [
        (PostAnswer(error="accepts no connection"), True),
        (PostAnswer(status=500), True),
        (PostAnswer(status=503), True),
        (PostAnswer(status=429), True),
        (PostAnswer(status=302), False),
        (PostAnswer(status=404), False),
        (PostAnswer(error="the fleet's own", ours=True), False),
    ],
)
def test_a_receiver_is_left_alone_if_it_is_the_receiver_that_fails(answer: PostAnswer, paused: bool) -> None:
    found = step(answer)
    assert found.outcome is DeliveryOutcome.AGAIN and found.error
    assert (found.pause_s is not None) == paused


def test_a_receivers_pauses_double_up_to_the_second_pause_of_a_message() -> None:
    pauses = [step(PostAnswer(status=500), fails=n).pause_s for n in range(8)]
    assert pauses == [5, 10, 20, 40, 80, 160, 300, 300]


def test_410_ends_it_at_once() -> None:
    assert step(PostAnswer(status=410)).outcome is DeliveryOutcome.GONE


def test_an_address_that_may_not_be_called_is_given_up_and_pauses_nobody() -> None:
    found = step(PostAnswer(error="leads to an address that is not public", never=True))
    assert (found.outcome, found.pause_s) == (DeliveryOutcome.FAILED, None)


@pytest.mark.parametrize(("asked", "after"), [(1.0, 5.0), (60.0, 60.0), (10**9, 300.0)])
def test_a_receiver_may_ask_for_a_longer_pause_within_bounds(asked: float, after: float) -> None:
    assert step(PostAnswer(status=503, retry_after_s=asked)).after_s == after


@pytest.mark.parametrize("text", ["", "x", "5,,6", "-1", "inf", "nan", ",".join(["1"] * 21)])
def test_a_schedule_that_can_not_be_read_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"^it must be 1 to 20 pauses"):
        parse_schedule(text)


@pytest.mark.parametrize(
    "url",
    [
        *(None, 5, "", "shop", "ftp://shop.test/", "http://", "http://a b/", "http://u:p@shop.test/"),
        *(
            "http://shop.test:0/",
            "http://127.0.0.1/",
            "http://[::1]/",
            "http://169.254.169.254/",
            "http://0x7f.1/",
        ),
        f"http://shop.test/{'x' * 2048}",
    ],
)
def test_what_can_not_be_told_is_refused_by_name(url: Any) -> None:
    with pytest.raises(BadInput, match="webhook_url") as caught:
        checked_url(url, parse_allowed("X", ""))
    assert caught.value.details["field"] == "webhook_url"


def test_a_refusal_names_what_allows_it() -> None:
    with pytest.raises(BadInput, match="FLEET_WEBHOOK_ALLOW"):
        checked_url("http://10.0.0.7/", parse_allowed("FLEET_WEBHOOK_ALLOW", "hooks.lan"))


def test_operators_allow_private_receivers() -> None:
    assert checked_url("http://10.1.2.3:9/x", parse_allowed("X", "10.1.0.0/16")) == "http://10.1.2.3:9/x"


@pytest.mark.parametrize("events", [[], "job.failed", ["job.running"], [["job.failed"]], {"job.failed": 1}])
def test_events_that_there_are_not_are_refused(events: Any) -> None:
    with pytest.raises(BadInput, match=r"job\.started"):
        checked_events(events)


def test_events_are_told_once_each() -> None:
    assert checked_events(["job.failed", "job.started", "job.failed"]) == ("job.started", "job.failed")
    assert "job.started" in EVENTS and "job.started" not in ENDS  # only who asks for it is told


def test_the_urls_of_one_server_are_one_receiver_of_each_owner() -> None:
    first = receiver_of("ada", "https://Shop.test/hooks?order=1")
    assert receiver_of("ada", "https://shop.test:443/else") == first
    others = {receiver_of("bob", "https://shop.test/"), receiver_of("ada", "http://shop.test/")}
    assert first not in others and len(others) == 2


def test_a_record_is_read_back_without_events_of_later_versions() -> None:
    hook = Webhook(url="https://shop.test/", events=("job.failed",), base="https://fleet.test")
    record = hook.record("ada")
    assert Webhook.from_record(record) == hook
    assert Webhook.from_record({**record, "events": "job.failed job.tickled"}) == hook
