"""Websockets to nodes, which can't send us elsewhere."""

from websockets.asyncio.client import connect


class UnredirectedConnect(connect):
    """:class:`websockets.asyncio.client.connect` that takes a redirect for the refusal that it is.

    The library follows them to any host, with all headers.
    """

    def process_redirect(self, exc: Exception) -> Exception | str:
        """Return the exception: nothing is followed."""
        return exc
