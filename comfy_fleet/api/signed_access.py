"""Lets requests with a signed URL read one thing, whoever sends them and from wherever."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import parse_qsl

from starlette.types import Scope

from comfy_fleet.api.errors import HttpError
from comfy_fleet.domain.errors import NotFound
from comfy_fleet.domain.principal import Principal, PrincipalLimits
from comfy_fleet.ports.assets import AssetStore
from comfy_fleet.ports.jobs import JobStore
from comfy_fleet.services.signed_urls import SIGNATURE, Readable, SignatureFault, SignedUrls

_PATHS = (
    (re.compile(r"/api/v2/assets/([0-9a-f-]{36})/content/?"), Readable.OUTPUT),
    (re.compile(r"/api/v[12]/jobs/([0-9a-f-]{36})/events/?"), Readable.EVENTS),
)
_MOST_QUERY = 512
_WORDS = {
    SignatureFault.INVALID: "this URL's signature is wrong: it was changed, or the fleet's secret was; "
    "ask for the job with ?signed=SECONDS for a new one",
    SignatureFault.EXPIRED: "this URL has expired: ask for the job with ?signed=SECONDS for a new one",
}
HEADERS = (
    # No cookie and no key gives anything here, so any page may show it, and read it.
    (b"access-control-allow-origin", b"*"),
    (b"cross-origin-resource-policy", b"cross-origin"),
)
"""Of every answer to a signed URL."""


@dataclass(frozen=True, kw_only=True)
class SignedGrant:
    """What a request with a valid signature may read.

    Attributes:
        principal: Acts for the job's owner, in this request only.
        expires_at: Until when, in Unix seconds.
    """

    principal: Principal
    expires_at: float


def asked(scope: Scope) -> tuple[Readable, str, Mapping[str, str]] | None:
    """Return what a request wants to read by a signature: what, its id, the query; None if it has none.

    Anything but reading, and any other path, is asked for as ever: there, a signature means nothing.
    """
    raw: bytes = scope["query_string"]
    if scope["method"] not in ("GET", "HEAD") or SIGNATURE.encode() not in raw or len(raw) > _MOST_QUERY:
        return None
    query = dict(parse_qsl(raw.decode("latin-1"), keep_blank_values=True))
    for pattern, kind in _PATHS:
        if SIGNATURE in query and (found := pattern.fullmatch(scope["path"])):
            return kind, found[1], query
    return None


@dataclass(frozen=True, kw_only=True)
class SignedAccess:
    """Checks signed URLs.

    Attributes:
        limits: How much the holders of one owner's URLs may use at once, all together.
    """

    urls: SignedUrls
    jobs: JobStore
    assets: AssetStore
    limits: PrincipalLimits

    async def granted(self, kind: Readable, id_: str, query: Mapping[str, str], *, now: float) -> SignedGrant:
        """Return what a signature allows.

        Raises:
            HttpError: 403 ``signature_invalid`` or ``signature_expired``.
            NotFound: The job is gone.
        """
        job_id: str | None = id_
        if kind is Readable.OUTPUT:
            asset = await self.assets.get(id_)
            job_id = asset.job_id if asset is not None else None
        job = await self.jobs.get(job_id) if job_id is not None else None
        if job is None or job.removed:
            raise NotFound("there is nothing here any more: the job was removed, or is past its retention")
        fault = self.urls.fault(query, kind, id_, job=job.id, owner=job.owner, now=now)
        if fault is not None:
            raise HttpError(403, fault.value, _WORDS[fault], headers={"Cache-Control": "no-store"})
        return SignedGrant(
            principal=Principal(owner=job.owner, limits=self.limits), expires_at=float(query["expires"])
        )
