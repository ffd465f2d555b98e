"""An entry of RQ's clients, as RQ's record has it."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

RESULT_TTL_S, FAILURE_TTL_S = 500, 365 * 86400
"""How long RQ keeps results and failures if nothing else is asked for."""
CALLBACK_TIMEOUT_S = 60
FIELDS = (
    *("data", "meta", "timeout", "ttl", "result_ttl", "failure_ttl"),
    *("success_callback_name", "failure_callback_name", "stopped_callback_name"),
    *("success_callback_timeout", "failure_callback_timeout", "stopped_callback_timeout"),
    *("webhooks", "repeats_left"),
)
"""The fields of RQ's record that are read, in the order in which scripts return them."""
_SECONDS = re.compile(r"-?[0-9]{1,10}(\.0)?")


@dataclass(frozen=True, kw_only=True)
class RqEntry:
    """An entry as RQ's record has it.

    Attributes:
        id: In RQ; its client has chosen it.
        job_id: The UUID of its job in the fleet.
        fields: :data:`FIELDS` of the record, empty where one is missing.
        too_long: A field that is longer than is read, and empty in ``fields``.
    """

    id: str
    job_id: str
    fields: Mapping[str, bytes]
    too_long: str = ""

    def seconds(self, name: str, default: int) -> int:
        """Return a number of seconds; the default if there is none that can be used."""
        text = self.fields.get(name, b"").decode(errors="replace")
        return int(float(text)) if _SECONDS.fullmatch(text) else default

    def callback(self, kind: str) -> str:
        """Return the name of the function of ``success_callback``, ``failure_callback`` or so; or empty."""
        return self.fields.get(f"{kind}_name", b"").decode(errors="replace")
