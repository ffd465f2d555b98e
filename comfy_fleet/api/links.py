"""Absolute URLs, from the configured public one or from the edge's headers."""

from dataclasses import dataclass

from starlette.requests import Request

from comfy_fleet.api.errors import HttpError
from comfy_fleet.api.site_guard import host_name


@dataclass(frozen=True)
class Links:
    """Makes URLs below one base, e.g. ``https://comfy.example.org``."""

    base: str

    @classmethod
    def of(cls, request: Request, public_url: str | None) -> "Links":
        """Return the links for a request.

        Raises:
            HttpError: 400 if the client's host is malformed: it would appear in URLs.
        """
        if public_url:
            return cls(public_url.rstrip("/"))
        headers = request.headers
        host = headers.get("x-forwarded-host") or headers.get("host", "")
        if host_name(host) is None:
            raise HttpError(400, "invalid_request", "the Host header is not a host name")
        scheme = headers.get("x-forwarded-proto") or request.scope["scheme"]
        return cls(f"{'https' if scheme == 'https' else 'http'}://{host}")

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
