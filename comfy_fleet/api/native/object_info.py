"""ComfyUI's interface: ``/object_info``, what the nodes have together."""

from comfy_fleet.api.endpoint import ServedRoute

TABLE: tuple[ServedRoute, ...] = ()
