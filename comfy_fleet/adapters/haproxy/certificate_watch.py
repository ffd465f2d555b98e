"""Follows the operator's certificate files, and warns of what ends soon."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from typing import NoReturn

from comfy_fleet.adapters.haproxy.certificates import (
    SOON_S,
    EdgeCertificates,
    certificate_paths,
    edge_certificates,
    expiry_words,
    stamp,
)
from comfy_fleet.domain.errors import ConfigError
from comfy_fleet.settings import Settings

logger = logging.getLogger(__name__)

LOOK_S = 5.0
WARN_EVERY_S = 86400.0


class CertificateWatch:
    """The certificates that the edge shows.

    Args:
        settings: Which files they are in.
        look_s: How often the files are looked at.
        clock: Seconds since 1970.

    Attributes:
        shown: What the edge shows now, or is to show at its start.
    """

    def __init__(
        self, settings: Settings, *, look_s: float = LOOK_S, clock: Callable[[], float] = time.time
    ) -> None:
        self.shown = EdgeCertificates()
        self._settings = settings
        self._paths = certificate_paths(settings)
        self._look_s = look_s
        self._clock = clock
        self._stamp: tuple[object, ...] = ()
        self._trouble = ""
        self._warned: dict[str, float] = {}

    def read(self) -> None:
        """Read the files.

        Raises:
            ConfigError: One can't be used; what was read before stays.
        """
        seen = stamp(self._paths)
        self.shown = edge_certificates(self._settings)
        self._stamp = seen
        self._warn()

    async def follow(self, take: Callable[[], Awaitable[None]]) -> NoReturn:
        """Read the files whenever they have changed, until canceled.

        What can't be used is logged once and tried again; the edge goes on with what it has.

        Args:
            take: Has the edge take what is :attr:`shown`. Raises ConfigError if it does not.
        """
        while True:
            await asyncio.sleep(self._look_s)
            if not self._paths:
                continue
            self._warn()
            if await asyncio.to_thread(stamp, self._paths) == self._stamp:
                continue
            before = self.shown
            try:
                await asyncio.to_thread(self.read)
                if self.shown != before:
                    await take()
            except ConfigError as error:
                self.shown, self._stamp = before, ()
                if error.message != self._trouble:
                    logger.error("certificate not taken", extra={"reason": error.message})
                self._trouble = error.message
            else:
                self._trouble = ""
                if self.shown != before:
                    self._tell()

    def _tell(self) -> None:
        for origin, one in self.shown.by_origin.items():
            words = expiry_words(one.expires_at, now=self._clock())
            logger.info(
                "certificate taken", extra={"origin": origin, "names": list(one.names), "good": words}
            )

    def _warn(self) -> None:
        """Log what ends soon, once a day."""
        now = self._clock()
        for origin, one in self.shown.by_origin.items():
            if one.expires_at - now > SOON_S:
                self._warned.pop(origin, None)
            elif now - self._warned.get(origin, float("-inf")) >= WARN_EVERY_S:
                self._warned[origin] = now
                facts = {"origin": origin, "file": str(one.path)}
                logger.warning(
                    "certificate ends", extra=facts | {"good": expiry_words(one.expires_at, now=now)}
                )
