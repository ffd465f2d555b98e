"""ComfyUI's interface: what it says about itself, and small routes."""

from comfy_fleet.api.endpoint import ServedRoute

TABLE: tuple[ServedRoute, ...] = ()
