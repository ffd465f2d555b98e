"""What a class of ``/object_info`` offers of its user's own files: ComfyUI's choice of those in ``input``.

ComfyUI lists what lies directly in the folder, by the file's kind; 3D files lie below ``3d``.
"""

import json
from collections.abc import Iterable, Sequence
from typing import Any

from comfy_fleet.domain.graphs.choice_lists import choice_lists
from comfy_fleet.domain.jobs.media import MODELS, content_type_of, extension_of

_KINDS = {"image_upload": ("image",), "video_upload": ("video",), "audio_upload": ("audio", "video")}
_EXTENSIONS = {
    "LoadLatent": (".latent",),
    "GeminiInputFiles": (".txt", ".pdf"),
    "OpenAIInputFiles": (".txt", ".pdf"),
}
_MODELS_BELOW = "3d/"


def with_uploads(name: str, body: bytes, files: Iterable[str]) -> bytes:
    """Return a class, given as JSON, with a user's own files in its lists of uploads.

    Args:
        name: The class.
        body: Its description, in which those lists name no file.
        files: Names in the user's ``input``, with their folders.
    """
    given = sorted(files)
    described = json.loads(body)
    for found in choice_lists(name, described):
        if found.upload:
            choices = [*found.choices, *_chosen(name, found.flags, given)]
            found.replace(choices)
            if found.flags.get("default") not in (None, *choices):  # a file on the node
                found.flags["default"] = choices[0] if choices else None
    return json.dumps(described, ensure_ascii=False, separators=(",", ":")).encode(errors="replace")


def _chosen(name: str, flags: dict[str, Any], files: Sequence[str]) -> list[str]:
    if flags.get("file_upload"):
        return [one for one in files if one.startswith(_MODELS_BELOW) and extension_of(one) in MODELS]
    direct = [one for one in files if "/" not in one]
    if name in _EXTENSIONS:
        return [one for one in direct if extension_of(one) in _EXTENSIONS[name]]
    kinds = [kind for flag, some in _KINDS.items() if flags.get(flag) for kind in some]
    return [one for one in direct if not kinds or content_type_of(one).partition("/")[0] in kinds]
