"""What this server can, as ``/features`` and the ``feature_flags`` frame tell it."""

from typing import Any

from comfy_fleet.settings import Settings


def features(settings: Settings) -> dict[str, Any]:
    """Return the flags: those of ComfyUI 0.3.64 and 0.33 that are true of a fleet.

    There is no manager and there are no assets: an editor then shows neither.
    """
    return {
        "supports_preview_metadata": True,
        "max_upload_size": settings.max_body_bytes,
        "node_replacements": True,
        "assets": False,
    }
