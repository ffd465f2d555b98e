"""What the fleet says about itself to clients that ask for something it does not have."""

NAME = "comfy_fleet"
"""Shows in ``/api/v1/health`` that this is a fleet and not a ComfyUI."""

NOTHING_HERE = (
    "There is nothing at this path. This is comfy_fleet, which schedules jobs on many ComfyUI servers. Of "
    "ComfyUI's own routes it has those that run prompts and show their results (/prompt, /ws, /queue, "
    "/history, /view, /upload/image, /object_info and others), with and without /api in front. Comfy API v2 "
    "is at /api/v2, and /api/v1 is described at /api/v1/openapi.json."
)
WHERE_INSTEAD = {"api": ["/api/v1", "/api/v2"], "docs": "/api/v1/openapi.json"}
