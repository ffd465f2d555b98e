"""ComfyUI's interface: model files by folder, with previews and metadata."""

from comfy_fleet.api.endpoint import ServedRoute

TABLE: tuple[ServedRoute, ...] = ()
