"""Limits by role, key and tenant: how they are written, and which one counts."""

import pytest

from comfy_fleet.api.errors import HttpError
from comfy_fleet.api.request_pace import RequestPace
from comfy_fleet.domain.errors import BadInput, NotAllowed
from comfy_fleet.domain.limits import (
    NO_LIMITS,
    Limits,
    ScopedLimits,
    Window,
    check_workflow_allowed,
    least,
    limit_words,
    limits_of_roles,
    parse_limits,
    parse_role_limits,
    script_quota,
    stored_limits,
)
from comfy_fleet.domain.roles import Role


def scoped(scope: str = "user", **limits: str) -> ScopedLimits:
    return ScopedLimits(scope=scope, subject="x", owners=("x",), limits=parse_limits(limits))


def test_limits_are_read_as_people_write_them() -> None:
    text = (
        "submits=10/1s,100/m queued=50 stored=1.5GB raw_graphs=no workflows=a,b_c priority=-3 requests=2/2h"
    )
    assert parse_limits(limit_words(text)) == Limits(
        submits=(Window(count=10, seconds=1), Window(count=100, seconds=60)),
        queued=50,
        stored=1_500_000_000,
        raw_graphs=False,
        workflows=("a", "b_c"),
        priority=-3,
        requests=(Window(count=2, seconds=7200),),
    )
    assert parse_limits({}) == NO_LIMITS


@pytest.mark.parametrize(
    "words",
    [
        "submits=10",
        "submits=0/1s",
        "submits=1/0s",
        "submits=20000/1s",
        "submits=1/8d",
        "submits=1/1s,1/2s,1/3s,1/4s,1/5s",
        "queued=-1",
        "queued=x",
        "stored=1XB",
        "stored=99999999999999999TB",
        "raw_graphs=maybe",
        "workflows=a/b",
        "colour=red",
        "queued",
        "queued=1 queued=2",
    ],
)
def test_what_is_no_limit_is_refused_by_name(words: str) -> None:
    with pytest.raises(BadInput) as caught:
        parse_limits(limit_words(words))
    assert words.partition("=")[0] in caught.value.message


def test_what_a_newer_version_has_stored_is_left_out_and_the_rest_holds() -> None:
    assert stored_limits({"colour": "red", "queued": "3"}).queued == 3
    with pytest.raises(BadInput):
        stored_limits({"queued": "red"})


def test_limits_of_the_highest_role_count() -> None:
    table = parse_role_limits("submit: queued=1; artist: queued=2; admin: queued=9;")
    for roles, queued in (
        (set(), 1),
        ({Role.SUBMIT}, 1),
        ({Role.SUBMIT, Role.ARTIST}, 2),
        ({Role.OPERATOR}, 9),
    ):
        assert limits_of_roles(table, frozenset(roles)).queued == queued
    for wrong in ("boss: queued=1", "submit: queued=1; submit: queued=2", "submit queued=1"):
        with pytest.raises(BadInput):
            parse_role_limits(wrong)


def test_the_lowest_limit_counts_and_says_whose_it_is() -> None:
    some = [scoped("user", queued="9"), scoped("key", queued="3", body="1k"), scoped("tenant")]
    assert least(some, "queued") == (3, "key") and least(some, "body") == (1000, "key")
    assert least(some, "stored") is None


@pytest.mark.parametrize(
    ("some", "name", "allowed"),
    [
        ([], None, True),
        ([scoped(raw_graphs="no")], None, False),
        ([scoped(raw_graphs="no")], "a", True),
        ([scoped(workflows="a,b")], "a", True),
        ([scoped(workflows="a,b")], "c", False),
        ([scoped(workflows="a,b")], None, False),  # whoever may run these two may not run anything
        ([scoped(workflows="a", raw_graphs="yes")], None, True),
        ([scoped(workflows="a,b"), scoped("key", workflows="b")], "a", False),
        ([scoped(workflows="")], "a", False),
    ],
)
def test_which_jobs_may_be_made(some: list[ScopedLimits], name: str | None, allowed: bool) -> None:
    if allowed:
        check_workflow_allowed(some, name)
        return
    with pytest.raises(NotAllowed):
        check_workflow_allowed(some, name)


def test_only_what_is_limited_is_checked_in_the_store() -> None:
    assert script_quota([scoped(priority="1"), scoped("key", body="1k")]) is None
    quota = script_quota([scoped(submits="2/1s"), scoped("tenant", queued="3")])
    assert quota is not None
    assert [one["shown"] for one in quota["windows"]] == ["2/1s"]
    assert [(one["scope"], one["name"], one["most"]) for one in quota["amounts"]] == [("tenant", "queued", 3)]


def test_requests_beyond_a_window_wait_for_it_and_refusals_do_not_count() -> None:
    now = [0.0]
    pace = RequestPace(lambda: now[0])
    some = (scoped(requests="10/10s"),)
    for _ in range(10):
        pace.take(some)
    for _ in range(5):
        with pytest.raises(HttpError) as caught:
            pace.take(some)
        assert caught.value.status == 429 and caught.value.headers["Retry-After"] == "1"
    pace.take((scoped("key", requests="10/10s"),))  # somebody else's
    now[0] = 1.001
    pace.take(some)
    with pytest.raises(HttpError):
        pace.take(some)
