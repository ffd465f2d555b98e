"""What ``Cache-Control`` asks for."""

import pytest
from starlette.requests import Request

from comfy_fleet.api.cache_control import cache_control_in
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
        (["max-age"], 0.0, True),
        (["max-age=-1"], 0.0, True),
        (["max-age=\u00b2"], 0.0, True),
        (["max-age=99999999999999999999"], 1e9, True),
        (["no-cacheable, min-fresh=3, =, ,"], None, True),
    ],
)
def test_directives_are_read(values: list[str], max_age_s: float | None, keep: bool) -> None:
    assert _read(*values) == CacheControl(max_age_s=max_age_s, keep=keep)


@pytest.mark.parametrize("blank", [" ", "\t", '"', "=", ","])
def test_no_header_keeps_the_reader_busy(blank: str) -> None:
    # An expression with several runs of blanks beside each other would take hours for this.
    assert _read(f'max-age={blank * 16_000}x{blank * 16_000}"x').max_age_s == 0.0
