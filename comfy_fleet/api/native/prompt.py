"""ComfyUI's interface: POST and GET /prompt, and /interrupt."""

from comfy_fleet.api.endpoint import ServedRoute

TABLE: tuple[ServedRoute, ...] = ()
