"""A bound on all of a caller's requests, in the memory of each API process."""

import math
import time
from collections import OrderedDict
from collections.abc import Callable

from comfy_fleet.api.errors import HttpError
from comfy_fleet.domain.limits import ScopedLimits

_CALLERS = 20_000


class RequestPace:
    """How far ahead callers are of what their limits allow.

    A window of 600 in a minute lets 600 come at once, and one more every tenth of a second.

    Args:
        monotonic: A clock.
    """

    def __init__(self, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._monotonic = monotonic
        self._even: OrderedDict[tuple[str, str, str], float] = OrderedDict()
        """When a caller would be even again, by scope, subject and window."""

    def take(self, quotas: tuple[ScopedLimits, ...]) -> None:
        """Count a request.

        Raises:
            HttpError: 429 ``limit_reached``.
        """
        for one in quotas:
            for window in one.limits.requests:
                now, key = self._monotonic(), (one.scope, one.subject, str(window))
                each = window.seconds / window.count
                even = max(now, self._even.pop(key, 0.0)) + each
                ahead_s = even - now - window.seconds
                self._even[key] = even if ahead_s <= 0 else even - each
                if len(self._even) > _CALLERS:
                    self._even.popitem(last=False)
                if ahead_s > 0:
                    raise HttpError(
                        429,
                        "limit_reached",
                        f"the {one.scope}'s limit 'requests' is {window.count} in {window.seconds:g} s, and "
                        "all are used: try again later",
                        details={
                            "limit": "requests",
                            "scope": one.scope,
                            "most": window.count,
                            "used": window.count,
                            "window": str(window),
                        },
                        headers={"Retry-After": str(max(1, math.ceil(ahead_s)))},
                    )
