"""Several observers as one, none of which can harm a job."""

import logging
from collections.abc import Callable, Sequence
from typing import ParamSpec

from comfy_fleet.ports.telemetry import Telemetry

logger = logging.getLogger(__name__)

P = ParamSpec("P")


class Observers:
    """Passes events to several observers, in order; their exceptions never reach the caller.

    Each observer's failure is logged once, because it would fail again with the next job.
    """

    def __init__(self, *observers: Telemetry) -> None:
        self.submitted = _contained([one.submitted for one in observers])
        self.claimed = _contained([one.claimed for one in observers])
        self.posted = _contained([one.posted for one in observers])
        self.left = _contained([one.left for one in observers])
        self.ended = _contained([one.ended for one in observers])
        self.given_back = _contained([one.given_back for one in observers])
        self.ended_without_run = _contained([one.ended_without_run for one in observers])
        self.lease_refused = _contained([one.lease_refused for one in observers])
        self.staged_ahead = _contained([one.staged_ahead for one in observers])
        self.fetched = _contained([one.fetched for one in observers])
        self.judged = _contained([one.judged for one in observers])
        self.webhook_tried = _contained([one.webhook_tried for one in observers])
        self.stored = _contained([one.stored for one in observers])
        self.store_retried = _contained([one.store_retried for one in observers])


def _contained(calls: Sequence[Callable[P, None]]) -> Callable[P, None]:
    failed: set[int] = set()

    def tell(*args: P.args, **kwargs: P.kwargs) -> None:
        for number, call in enumerate(calls):
            try:
                call(*args, **kwargs)
            except Exception:
                if number not in failed:
                    failed.add(number)
                    name = getattr(call, "__qualname__", type(call).__name__)
                    logger.exception("observer failed", extra={"observer": name})

    return tell
