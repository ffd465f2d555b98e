"""Absolute URLs, from the configured ones or from the edge's headers."""

from dataclasses import dataclass

from starlette.requests import Request

from comfy_fleet.api.errors import HttpError
from comfy_fleet.api.host_names import host_name
from comfy_fleet.api.origins import Origin, forwarded_prefix, marked
from comfy_fleet.settings import Settings


@dataclass(frozen=True)
class Links:
    """Makes URLs below one base, e.g. ``https://comfy.example.org``."""

    base: str

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
