"""What the fleet says of itself to whoever asks for something that it does not have.

ComfyUI's clients come by, as the port is ComfyUI's own.
"""

NAME = "comfy_fleet"
"""By which ``/api/v1/health`` tells a fleet from a ComfyUI."""

NOTHING_HERE = (
    "This is comfy_fleet, which schedules jobs on many ComfyUI servers. ComfyUI's own routes are not here: "
    "the API is at /api/v1, described at /api/v1/openapi.json, and at /api/v2, which is Comfy API v2."
)
WHERE_INSTEAD = {"api": ["/api/v1", "/api/v2"], "docs": "/api/v1/openapi.json"}
