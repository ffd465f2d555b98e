"""What a request's ``Cache-Control`` says about results of earlier jobs (RFC 9111, section 5.2.1)."""

import re

from starlette.requests import Request

from comfy_fleet.services.result_cache import CacheControl

_LONGEST_S = 10**9


def cache_control_in(request: Request) -> CacheControl:
    """Return them: ``no-cache`` wants a run, ``no-store`` also keeps its result from others.

    ``max-age=SECONDS`` takes a result that is not older. An age that is no number is 0; other directives have
    no meaning here.
    """
    max_age_s: float | None = None
    keep = True
    for text in ",".join(request.headers.getlist("cache-control")).split(","):
        name, _, value = (part.strip() for part in text.lower().partition("="))
        if name == "no-store":
            keep = False
        elif name == "no-cache":
            max_age_s = 0.0
        elif name == "max-age":
            told = value.removeprefix('"').removesuffix('"').strip()
            age_s = float(min(int(told), _LONGEST_S)) if re.fullmatch("[0-9]{1,20}", told) else 0.0
            max_age_s = age_s if max_age_s is None else min(max_age_s, age_s)
    return CacheControl(max_age_s=max_age_s, keep=keep)
