"""What ``Cache-Control`` asks for."""

import pytest
from starlette.requests import Request

from comfy_fleet.api.cache_control import cache_control_in
from comfy_fleet.api.errors import HttpError
from comfy_fleet.services.result_cache import CacheControl


def _read(*values: str) -> CacheControl:
    headers = [(b"cache-control", value.encode("latin-1")) for value in values]
    return cache_control_in(Request({"type": "http", "headers": headers}))


@pytest.mark.parametrize(
    ("values", "max_age_s", "keep"),
    [
        ([], None, True),
        (["no-cache"], 0.0, True),
        (["No-Store"], None, False),
        (["max-age=60"], 60.0, True),
        ([' MAX-AGE = "60" , private'], 60.0, True),
        (["max-age=60", "max-age=5"], 5.0, True),
        (["max-age=60, no-cache"], 0.0, True),
        (["max-age=99999999999999999999"], 1e9, True),
        ([f"max-age={'9' * 5000}"], 1e9, True),  # more digits than Python reads at once
        (["no-cacheable, nocache, min-fresh=soon, =, ,"], None, True),
        (['community="a, max-age=x, no-store", max-age=7'], 7.0, True),
    ],
)
def test_directives_are_read(values: list[str], max_age_s: float | None, keep: bool) -> None:
    assert _read(*values) == CacheControl(max_age_s=max_age_s, keep=keep)


@pytest.mark.parametrize("age", ["", "=", "=abc", "=3.5", "=-1", "=1e3", "=\u00b2", "=60s"])
def test_an_age_that_is_no_number_of_seconds_is_refused(age: str) -> None:
    with pytest.raises(HttpError, match=r"max-age.* must be a whole number of seconds: send") as refused:
        _read(f"no-store, max-age{age}")
    assert (refused.value.status, refused.value.details) == (400, {"field": "Cache-Control"})


@pytest.mark.parametrize("blank", [" ", "\t", '"', "=", ","])
def test_no_header_keeps_the_reader_busy(blank: str) -> None:
    # An expression with several runs of blanks beside each other would take hours for this.
    with pytest.raises(HttpError) as refused:
        _read(f'max-age={blank * 16_000}x{blank * 16_000}"x')
    assert len(refused.value.message) < 200
