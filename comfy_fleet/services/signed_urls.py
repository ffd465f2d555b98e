"""Signed URLs: who has one may read one job's outputs or events for a while, without a key.

``PATH?expires=UNIX&signature=MAC``. The MAC is the HMAC-SHA256, in lower-case hexadecimal, of what is read,
its job, the job's owner and the expiry, under a key that is derived from the fleet's secret. So a URL that
was changed is refused, and so are all when that secret is replaced.
"""

import hashlib
import hmac
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from comfy_fleet.services.editor_ticket import DerivesKeys

PURPOSE = b"signed urls"
"""What the key is derived for."""
LONGEST_S = 7 * 86_400
"""A URL holds for so long at most."""
EXPIRES, SIGNATURE = "expires", "signature"
_EXPIRES = re.compile(r"[0-9]{1,12}")
_MAC = re.compile(r"[0-9a-f]{64}")


class Readable(StrEnum):
    """What a signed URL leads to."""

    OUTPUT = "output"
    EVENTS = "events"


class SignatureFault(StrEnum):
    """Why a signed URL is refused."""

    INVALID = "signature_invalid"
    EXPIRED = "signature_expired"


@dataclass(frozen=True, kw_only=True)
class SignedUrls:
    """Signs and verifies.

    Args:
        key: 32 bytes that only the fleet has.
    """

    key: bytes = field(repr=False)

    @classmethod
    def under(cls, secret: DerivesKeys) -> "SignedUrls":
        """Return those of the fleet that has this secret."""
        return cls(key=secret.derive(PURPOSE))

    def query(self, kind: Readable, id_: str, *, job: str, owner: str, expires_at: float) -> str:
        """Return the query that lets somebody read something.

        Args:
            kind: What it is.
            id_: Its id: the output's asset, or the job.
            job: The job.
            owner: Whose job it is.
            expires_at: Until when, in Unix seconds; a fraction is left out.
        """
        expires = str(math.floor(expires_at))
        return f"{EXPIRES}={expires}&{SIGNATURE}={self._mac(kind, id_, job, owner, expires)}"

    def fault(
        self, query: Mapping[str, str], kind: Readable, id_: str, *, job: str, owner: str, now: float
    ) -> SignatureFault | None:
        """Return why a query does not let somebody read something; None if it does."""
        expires, mac = query.get(EXPIRES, ""), query.get(SIGNATURE, "")
        if not _EXPIRES.fullmatch(expires) or not _MAC.fullmatch(mac):
            return SignatureFault.INVALID
        if not hmac.compare_digest(mac, self._mac(kind, id_, job, owner, expires)):
            return SignatureFault.INVALID
        return None if int(expires) > now else SignatureFault.EXPIRED

    def _mac(self, kind: Readable, id_: str, job: str, owner: str, expires: str) -> str:
        signed = "\n".join((kind.value, id_, job, owner, expires))
        return hmac.new(self.key, signed.encode(), hashlib.sha256).hexdigest()
