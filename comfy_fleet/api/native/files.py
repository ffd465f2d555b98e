"""ComfyUI's interface: /view, uploads, and lists of one's own files."""

from comfy_fleet.api.endpoint import ServedRoute

TABLE: tuple[ServedRoute, ...] = ()
