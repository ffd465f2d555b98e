"""What a request's ``Cache-Control`` says about results of earlier jobs (RFC 9111, section 5.2.1)."""

import re

from starlette.requests import Request

from comfy_fleet.api.errors import HttpError
from comfy_fleet.services.result_cache import CacheControl

_LONGEST_S = 10**9
_DIRECTIVE = re.compile(r'(?:"[^"]*"?|[^",])+')  # a comma in quotes ends none


def cache_control_in(request: Request) -> CacheControl:
    """Return them: ``no-cache`` wants a run, ``no-store`` also keeps its result from others.

    ``max-age=SECONDS`` takes a result that is not older. Of several the least counts. Other directives have
    no meaning here; the standard says that who doesn't know one ignores it.

    Raises:
        HttpError: 400 if an age is no whole number of seconds: whatever it was meant to be, the sender would
            not see that it got something else.
    """
    max_age_s: float | None = None
    keep = True
    for text in _DIRECTIVE.findall(",".join(request.headers.getlist("cache-control"))):
        name, _, value = (part.strip() for part in text.lower().partition("="))
        if name == "no-store":
            keep = False
        elif name == "no-cache":
            max_age_s = 0.0
        elif name == "max-age":
            age_s = _seconds(value)
            max_age_s = age_s if max_age_s is None else min(max_age_s, age_s)
    return CacheControl(max_age_s=max_age_s, keep=keep)


def _seconds(value: str) -> float:
    told = value.removeprefix('"').removesuffix('"').strip()
    if not re.fullmatch("[0-9]+", told):
        raise HttpError(
            400,
            "invalid_request",
            f"Cache-Control: max-age={value[:40]} must be a whole number of seconds: send max-age=3600 for a "
            "result of the last hour, or no-cache for a new one",
            details={"field": "Cache-Control"},
        )
    return float(min(int(told[:20]), _LONGEST_S))
