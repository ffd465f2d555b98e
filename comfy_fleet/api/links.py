"""Absolute URLs, from the configured ones or from the edge's headers."""

from dataclasses import dataclass, replace

from starlette.requests import Request

from comfy_fleet.api.errors import HttpError
from comfy_fleet.api.host_names import host_name
from comfy_fleet.api.origins import Origin, editor_base, forwarded_prefix, marked
from comfy_fleet.services.signed_urls import Readable, SignedUrls
from comfy_fleet.settings import Settings

THUMBNAIL_WIDTH = 256


@dataclass(frozen=True, kw_only=True)
class Signing:
    """Which of an owner's URLs can be read without a key, and until when, in Unix seconds."""

    urls: SignedUrls
    owner: str
    expires_at: float


@dataclass(frozen=True)
class Links:
    """Makes URLs below one base, e.g. ``https://comfy.example.org``.

    Attributes:
        signing: If given, URLs of outputs and events are signed.
    """

    base: str
    signing: Signing | None = None

    @classmethod
    def of(cls, request: Request, settings: Settings) -> "Links":
        """Return the links for a request: below the URL of the port that it came to.

        Raises:
            HttpError: 400 if the client's host is malformed: it would appear in URLs.
        """
        headers = request.headers
        console = marked(headers) is Origin.CONSOLE
        if configured := settings.console_url if console else settings.public_url:
            return cls(configured.rstrip("/"))
        host = headers.get("x-forwarded-host") or headers.get("host", "")
        if host_name(host) is None:
            raise HttpError(400, "invalid_request", "the Host header is not a host name")
        scheme = headers.get("x-forwarded-proto") or request.scope["scheme"]
        prefix = forwarded_prefix(headers)
        return cls(f"{'https' if scheme == 'https' else 'http'}://{host}{prefix}")

    @classmethod
    def public(cls, request: Request, settings: Settings) -> "Links":
        """Return links for others than who asks: never to the console, which shows nothing to other sites.

        Raises:
            HttpError: As :meth:`of`.
        """
        if marked(request.headers) is Origin.CONSOLE:
            return cls(editor_base(request, settings))
        return cls.of(request, settings)

    def signed(self, signing: Signing) -> "Links":
        """Return the same links, of which those to outputs and events need no key."""
        return replace(self, signing=signing)

    def events(self, job_id: str) -> str:
        """Return the URL of a job's event stream."""
        return f"{self.job(job_id)}/events{self._query(Readable.EVENTS, job_id, job_id)}"

    def output(self, job_id: str, asset_id: str) -> str:
        """Return the URL of the bytes of a job's output."""
        return self.asset(asset_id) + self._query(Readable.OUTPUT, asset_id, job_id)

    def thumbnail(self, job_id: str, asset_id: str) -> str:
        """Return the URL of a small picture of an output that is a picture."""
        whole = self.output(job_id, asset_id)
        return f"{whole}{'&' if '?' in whole else '?'}format=webp&width={THUMBNAIL_WIDTH}"

    def _query(self, kind: Readable, id_: str, job_id: str) -> str:
        by = self.signing
        if by is None:
            return ""
        return "?" + by.urls.query(kind, id_, job=job_id, owner=by.owner, expires_at=by.expires_at)

    def job(self, job_id: str) -> str:
        """Return a job's URL in Comfy API v2."""
        return f"{self.base}/api/v2/jobs/{job_id}"

    def asset(self, asset_id: str) -> str:
        """Return the URL of an asset's bytes."""
        return f"{self.base}/api/v2/assets/{asset_id}/content"

    def status(self, job_id: str) -> str:
        """Return the URL for the status of a task of ``/api/v1/generate``."""
        return f"{self.base}/api/v1/status/{job_id}"

    def short_status(self, job_id: str) -> str:
        """Return the URL for the status of a task of ``/api/submit``."""
        return f"{self.base}/api/status/{job_id}"
