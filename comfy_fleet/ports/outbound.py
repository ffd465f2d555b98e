"""Guarded calls: HTTP to URLs that clients name, and that must not lead into the operator's network."""

from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Protocol


@dataclass(frozen=True, kw_only=True)
class OutboundAnswer:
    """An answer to a guarded call.

    Attributes:
        url: Where it came from, after redirects, without its query.
        status: Any HTTP status.
        headers: Its headers, by lower-case names; of several equal ones the first. All are in ASCII: others
            are left out.
        chunks: Its body as it comes, within the call's limits. Raises OutboundFailed when it breaks one; a
            body that is not read breaks none.
    """

    url: str
    status: int
    headers: Mapping[str, str]
    chunks: AsyncIterator[bytes] = field(repr=False)

    async def read(self) -> bytes:
        """Return the whole body, or what is left of it. Raises OutboundFailed."""
        return b"".join([chunk async for chunk in self.chunks])


class GuardedCalls(Protocol):
    """Calls URLs that clients name.

    Use one for each purpose, since operators allow private hosts by purpose::

        async with calls.get(url, most_bytes=20 * MIB, within_s=30) as answer:
            if answer.status == 200:
                await blobs.put(answer.chunks, durable=True)

        async with calls.post(url, body, headers={...}, most_bytes=64 * KIB, within_s=10) as answer:
            delivered = 200 <= answer.status < 300

    Check a URL already when a client sends it, with :func:`comfy_fleet.domain.outbound.parse_target`. The
    answer is the status whatever it is; no status is an error here.
    """

    def get(
        self, url: str, *, headers: Mapping[str, str] | None = None, most_bytes: int, within_s: float
    ) -> AbstractAsyncContextManager[OutboundAnswer]:
        """Call GET, and follow up to five redirects, each of which is checked as the first URL was.

        Args:
            url: The URL.
            headers: More headers. Conditions (``If-...``) go wherever redirects lead, others only to the
                first origin.
            most_bytes: Most bytes of the body.
            within_s: Most time for everything, the context's body included.

        Raises:
            OutboundRefused: The URL, or where it leads, may not be called. It stays so until the name's
                addresses change or the operator allows it.
            OutboundFailed: No answer, or one that breaks a limit; another call may succeed.
        """

    def post(
        self,
        url: str,
        body: bytes,
        *,
        headers: Mapping[str, str] | None = None,
        most_bytes: int,
        within_s: float,
    ) -> AbstractAsyncContextManager[OutboundAnswer]:
        """Call POST. A redirect is not followed: it is the answer. Else as :meth:`get`."""
