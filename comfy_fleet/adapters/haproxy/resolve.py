"""Resolve host names, because HAProxy's ``add server`` takes only addresses."""

import asyncio
import logging
import socket
from collections.abc import Callable, Collection, Iterable

from comfy_fleet.adapters.haproxy.server_lines import literal
from comfy_fleet.timeouts import Timeout

logger = logging.getLogger(__name__)

_AGAIN_S = 5.0
_TIMEOUT_S = 1.0


class Resolver:
    """Caches addresses; a name that failed, or is in doubt, is looked up again after a while."""

    def __init__(self, clock: Callable[[], float]) -> None:
        """Take the time in seconds from ``clock``."""
        self._clock = clock
        self._known: dict[str, tuple[float, tuple[str, ...]]] = {}

    async def resolve(
        self, hosts: Iterable[str], *, doubt: Collection[str] = ()
    ) -> dict[str, tuple[str, ...]]:
        """Return the addresses of all hosts; hosts that don't resolve are left out.

        Args:
            hosts: Names or addresses.
            doubt: Hosts to look up again although they resolved, because nothing answers there (a container
                may have a new address).
        """
        names = sorted(set(hosts))
        found = await asyncio.gather(*(self._one(name, doubt=name in doubt) for name in names))
        return dict(zip(names, found, strict=True))

    async def again(self, host: str) -> tuple[str, ...]:
        """Return a host's addresses, looked up again unless that was done a moment ago."""
        return await self._one(host, doubt=True)

    async def _one(self, host: str, *, doubt: bool) -> tuple[str, ...]:
        if address := literal(host):
            return (address,)
        asked, known = self._known.get(host, (float("-inf"), ()))
        if (known and not doubt) or self._clock() - asked < _AGAIN_S:
            return known
        try:
            async with Timeout(_TIMEOUT_S):
                found = await asyncio.get_running_loop().getaddrinfo(host, None, type=socket.SOCK_STREAM)
        except (OSError, TimeoutError, UnicodeError) as error:
            logger.warning("host not resolved", extra={"host": host, "reason": str(error) or "timeout"})
            self._known[host] = (self._clock(), known)
            return known
        # IPv4 first: ComfyUI listens on IPv4 unless told otherwise.
        ordered = sorted(found, key=lambda info: info[0] != socket.AF_INET)
        addresses = tuple(dict.fromkeys(str(info[4][0]) for info in ordered))
        self._known[host] = (self._clock(), addresses)
        return addresses
