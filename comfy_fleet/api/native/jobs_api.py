"""ComfyUI's interface: /api/jobs, which today's editor asks instead of queue and history."""

from comfy_fleet.api.endpoint import ServedRoute

TABLE: tuple[ServedRoute, ...] = ()
