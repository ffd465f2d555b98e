"""Traces: what is written is read back, and what is wrong is named by line and field."""

import json
from collections.abc import Iterator

import pytest

from comfy_fleet.domain.errors import BadInput
from comfy_fleet.domain.schedule.model_set import NO_MODELS
from comfy_fleet.planning.generated import Generated, generate
from comfy_fleet.planning.trace import HEADER, MAX_LINE, Tier, header, line_of, read

HEAD = json.dumps(HEADER).encode()


def lines(*jobs: object) -> list[bytes]:
    return [HEAD, *(json.dumps(job).encode() for job in jobs)]


def test_what_is_left_out_is_as_usual() -> None:
    (job,) = read(lines({"submitted": 1, "run_s": 2}), "t")
    assert (job.id, job.submitted, job.run_s, job.owner, job.pool) == ("1", 1.0, 2.0, "everybody", "default")
    assert (job.priority, job.tier, job.models, job.memory) == (0, Tier.SINGLE, NO_MODELS, 0)
    assert (job.ttl_s, job.finish_by, job.canceled_at) == (None, None, None)


def test_every_field_is_written_and_read_back() -> None:
    given = {
        "id": "x", "submitted": 5.0, "owner": "ada", "pool": "big", "priority": -3, "tier": "editor",
        "models": {"vae/b": 2, "checkpoints/a": 10}, "run_s": 0.5, "memory": 30, "ttl_s": 9.0,
        "finish_by": 20.0, "canceled_at": 7.0,
    }  # fmt: skip
    (job,) = read(lines(given), "t")
    assert job.models.files == (("vae/b", 2), ("checkpoints/a", 10))
    assert json.loads(line_of(job)) == given
    assert list(read([header(), line_of(job)], "t")) == [job]


def test_a_made_up_trace_survives_its_file() -> None:
    wanted = Generated(jobs=200, sets=3, tiers=(0.3, 0.3, 0.4), finish_within=3.0, ttl_s=60.0, burst=3.0)
    jobs = list(generate(wanted))
    read_back = list(read([header(), *map(line_of, jobs)], "t"))
    assert read_back == jobs
    assert len({id(job.models) for job in read_back}) == 3


def test_lines_are_read_one_by_one() -> None:
    def endless() -> Iterator[bytes]:
        yield HEAD
        while True:
            yield b'{"submitted": 0, "run_s": 1}\n'

    found = read(endless(), "t")
    assert [next(found).id for _ in range(3)] == ["1", "2", "3"]


def test_blank_lines_and_nulls_say_nothing() -> None:
    jobs = list(
        read([HEAD + b"\r\n", b"\n", b'{"submitted": 0, "run_s": 1, "ttl_s": null}\r\n', b"  \n"], "t")
    )
    assert [(job.id, job.ttl_s) for job in jobs] == [("2", None)]


GOOD = {"submitted": 5, "run_s": 1}


@pytest.mark.parametrize(
    ("field", "value", "why"),
    [
        ("submitted", -1, "-1 is not a time in seconds from 0"),
        ("submitted", "now", "'now' is not a time in seconds"),
        ("submitted", True, "True is not a time"),
        ("submitted", 1e300, "is not a time in seconds from 0 to 1e+10"),
        ("run_s", 0, "0 is not a number of seconds above 0"),
        ("run_s", 1e8, "is not a number of seconds above 0, at most 1e+07"),
        ("owner", "", "'' is not a text of 1 to 200 printable characters"),
        ("owner", "a\nb", "is not a text of 1 to 200 printable characters"),
        ("owner", "x" * 201, "is not a text of 1 to 200"),
        ("pool", 7, "7 is not a text"),
        ("id", None, None),
        ("priority", 1.5, "1.5 is not a whole number from -1000000 to 1000000"),
        ("priority", 10**7, "is not a whole number from"),
        ("tier", "vip", "'vip' is not one of editor, single, batch"),
        ("tier", 1, "1 is not one of editor"),
        ("memory", -5, "-5 is not a whole number of bytes from 0"),
        ("memory", 1.0, "1.0 is not a whole number of bytes"),
        ("models", ["a"], "['a'] is not an object with bytes by file"),
        ("models", {"a": "6GiB"}, "is not an object whose files have whole numbers of bytes"),
        ("models", {"a": -1}, "is not an object whose files have whole numbers of bytes"),
        ("models", {"": 1}, "is not an object whose files have names of 1 to 1000"),
        ("models", {str(n): 1 for n in range(65)}, "at most 64 files"),
        ("ttl_s", 0, "0 is not a number of seconds above 0"),
        ("finish_by", 4, "4 is before submitted, 5"),
        ("canceled_at", 4.5, "4.5 is before submitted, 5"),
        ("priorty", 1, "is unknown; there are id, submitted, owner"),
    ],
)
def test_a_wrong_field_is_named_with_its_line(field: str, value: object, why: str | None) -> None:
    rows = lines(GOOD, {**GOOD, field: value})
    if why is None:
        assert len(list(read(rows, "t"))) == 2
        return
    with pytest.raises(BadInput) as found:
        list(read(rows, "jobs.jsonl"))
    assert str(found.value).startswith(f"jobs.jsonl, line 3, {field}: ")
    assert why in str(found.value)
    assert len(str(found.value)) < 300
    assert found.value.details == {"line": 3, "field": field}


@pytest.mark.parametrize("field", ["submitted", "run_s"])
def test_a_field_that_must_be_there_is_missed(field: str) -> None:
    with pytest.raises(BadInput, match=rf"t, line 2, {field}: is missing"):
        list(read(lines({key: value for key, value in GOOD.items() if key != field}), "t"))


@pytest.mark.parametrize(
    ("line", "why"),
    [
        (b"{", "t, line 2 is not JSON"),
        (b"[1]", "t, line 2 is not a JSON object"),
        (b'{"submitted": NaN, "run_s": 1}', "t, line 2 is not JSON"),
        (b'{"id": "' + b"x" * MAX_LINE + b'"}', f"t, line 2 has more than {MAX_LINE} bytes"),
        (b"\xff\xfe", "t, line 2 is not JSON"),
    ],
)
def test_a_line_that_is_no_job_is_named(line: bytes, why: str) -> None:
    with pytest.raises(BadInput) as found:
        list(read([HEAD, line], "t"))
    assert str(found.value).startswith(why)


def test_jobs_must_be_in_order() -> None:
    with pytest.raises(BadInput, match="t, line 3, submitted: 4 is before the line above: sort by it"):
        list(read(lines(GOOD, {**GOOD, "submitted": 4}), "t"))


@pytest.mark.parametrize(
    ("head", "why"),
    [
        ([], "t is empty: its first line must be {"),
        ([b'{"submitted": 0, "run_s": 1}'], "t, line 1 is not the header of a trace: {"),
        ([b"# a comment"], "t, line 1 is not the header of a trace: {"),
        ([b'{"trace": "comfy-fleet"}'], "t, line 1, version: None is no version: 1"),
        ([b'{"trace": "comfy-fleet", "version": 2}'], "t, line 1, version: 2 is newer than this program"),
        ([b'{"trace": "comfy-fleet", "version": 1, "units": {"time": "ms"}}'], "t, line 1, units: must be {"),
    ],
)
def test_a_wrong_header_is_explained(head: list[bytes], why: str) -> None:
    with pytest.raises(BadInput) as found:
        list(read(head, "t"))
    assert str(found.value).startswith(why)
