"""What messages to webhooks are signed with: secrets of each owner, stored encrypted."""

import base64
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

import orjson

from comfy_fleet.domain.errors import Busy
from comfy_fleet.ports.webhooks import Webhooks

PREFIX = "whsec_"
OVERLAP_S = 86_400.0
"""For how long messages carry the signature of the secret before, too."""
_BYTES = 32
_TRIES = 5


class SecretSealer(Protocol):
    """Encrypts and decrypts what must not be readable at rest."""

    def seal(self, plain: bytes) -> bytes:
        """Encrypt."""

    def open_sealed(self, sealed: bytes) -> bytes:
        """Decrypt; raises ConfigError if it was encrypted with another key."""


@dataclass(frozen=True, kw_only=True)
class SigningSecrets:
    """An owner's secrets.

    Attributes:
        current: As receivers get it: ``whsec_`` and base64.
        before: The one before it; empty: there was none, or it holds no more.
        before_until: Until when that one signs, too, in Unix seconds.
    """

    current: str = field(repr=False)
    before: str = field(default="", repr=False)
    before_until: float = 0.0

    def valid(self, now: float) -> tuple[str, ...]:
        """Return those that sign messages now."""
        return (self.current, self.before) if self.before and now < self.before_until else (self.current,)


class WebhookSecrets:
    """Reads and renews signing secrets.

    Args:
        webhooks: Stores them.
        sealer: Encrypts them.
        draw: Returns so many random bytes.
        clock: Unix seconds.
    """

    def __init__(
        self,
        webhooks: Webhooks,
        sealer: SecretSealer,
        *,
        draw: Callable[[int], bytes],
        clock: Callable[[], float],
    ) -> None:
        self._webhooks = webhooks
        self._sealer = sealer
        self._draw = draw
        self._clock = clock

    async def of(self, owner: str) -> SigningSecrets:
        """Return an owner's secrets; the first is drawn when it is first needed.

        Raises:
            ConfigError: They were encrypted with another key.
            StoreDown: Redis does not answer.
        """
        for _ in range(_TRIES):
            sealed = await self._webhooks.secrets(owner)
            if sealed is not None:
                return self._opened(sealed)
            made = SigningSecrets(current=self._drawn())
            if await self._save(owner, made, before=None):
                return made
        raise _changing()

    async def rotate(self, owner: str) -> SigningSecrets:
        """Draw a new secret; for a day, messages are signed with the one before, too.

        Raises:
            StoreDown: Redis does not answer.
        """
        for _ in range(_TRIES):
            before = await self.of(owner)
            sealed = await self._webhooks.secrets(owner)
            made = SigningSecrets(
                current=self._drawn(), before=before.current, before_until=self._clock() + OVERLAP_S
            )
            if (
                sealed is not None
                and self._opened(sealed) == before
                and await self._save(owner, made, before=sealed)
            ):
                return made
        raise _changing()

    def _drawn(self) -> str:
        return PREFIX + base64.b64encode(self._draw(_BYTES)).decode()

    def _opened(self, sealed: bytes) -> SigningSecrets:
        found = orjson.loads(self._sealer.open_sealed(sealed))
        return SigningSecrets(
            current=str(found["current"]),
            before=str(found.get("before", "")),
            before_until=float(found.get("before_until", 0.0)),
        )

    async def _save(self, owner: str, made: SigningSecrets, *, before: bytes | None) -> bool:
        plain = {"current": made.current, "before": made.before, "before_until": made.before_until}
        return await self._webhooks.save_secrets(owner, self._sealer.seal(orjson.dumps(plain)), before=before)


def _changing() -> Busy:
    return Busy("the signing secret is being changed by somebody else: try again", retry_after_s=1)
