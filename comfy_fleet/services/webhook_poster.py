"""Posts messages to webhooks through guarded calls."""

from collections.abc import Mapping

from comfy_fleet.domain.errors import OutboundFailed, OutboundRefused
from comfy_fleet.domain.webhooks.delivery import PostAnswer
from comfy_fleet.ports.outbound import GuardedCalls

WITHIN_S = 20.0
"""For the name's lookup, the connection and the answer's head."""
_MOST_ANSWER = 64 * 1024


class GuardedPoster:
    """Posts messages, to public addresses and to what operators allow.

    Args:
        clients: Calls the URLs that clients have named.
        operator: Calls the operator's own URL, wherever that is.
        operator_url: That URL; empty: there is none.
    """

    def __init__(self, clients: GuardedCalls, operator: GuardedCalls, *, operator_url: str = "") -> None:
        self._clients = clients
        self._operator = operator
        self._operator_url = operator_url

    async def post(
        self, url: str, headers: Mapping[str, str], body: bytes, *, operators: bool = False
    ) -> PostAnswer:
        """Post a body; of the answer only status and ``Retry-After`` count. See the port."""
        calls = self._operator if operators and url == self._operator_url else self._clients
        try:
            async with calls.post(
                url, body, headers=headers, most_bytes=_MOST_ANSWER, within_s=WITHIN_S
            ) as answer:
                return PostAnswer(
                    status=answer.status, retry_after_s=_seconds(answer.headers.get("retry-after", ""))
                )
        except OutboundRefused as error:
            return PostAnswer(error=error.message, never=True)
        except OutboundFailed as error:
            return PostAnswer(error=error.message)


def _seconds(text: str) -> float:
    return float(text) if text.isascii() and text.isdecimal() and len(text) < 10 else 0.0
