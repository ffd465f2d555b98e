"""What the fleet says about itself to clients that ask for something it does not have.

It listens on ComfyUI's usual port, so clients of ComfyUI call it.
"""

NAME = "comfy_fleet"
"""Shows in ``/api/v1/health`` that this is a fleet and not a ComfyUI."""

NOTHING_HERE = (
    "This is comfy_fleet, which schedules jobs on many ComfyUI servers. ComfyUI's own routes are not here: "
    "the API is at /api/v1, described at /api/v1/openapi.json, and at /api/v2, which is Comfy API v2."
)
WHERE_INSTEAD = {"api": ["/api/v1", "/api/v2"], "docs": "/api/v1/openapi.json"}
