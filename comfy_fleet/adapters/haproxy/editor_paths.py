"""Which paths of a node are its editor's, as regular expressions for both configurations.

Files go from the edge to the node. What is made anew for each request (``/``, lists, extensions' files and
routes) is asked of the node by the API. The broker lets both through, the edge only the files: those of
ComfyUI's own folders, and at the top level what looks like one. Deeper paths may be extensions' routes.
"""

import re
from typing import Any

from comfy_fleet.domain.extension_routes import CLOSED, EDITOR_FOLDERS, METHODS
from comfy_fleet.settings import Settings

SEGMENT = r"([A-Za-z0-9._~:@!$&()*+,;=\x27-]|%[0-9A-Fa-f]{2})+"
"""One segment of a path, as clients write it. No blank and no quote is in it."""

_FOLDERS = "|".join(("assets", *sorted(EDITOR_FOLDERS)))
_KINDS = (
    "js|mjs|css|html|json|png|jpe?g|gif|svg|ico|webp|avif|mp4|webm|mp3|wav|ogg|woff2?|ttf|otf|wasm|webmanifest|"
    "map|txt|md|glb|gltf"
)
_LISTS = "extensions|i18n|workflow_templates|global_subgraphs"


def editor_paths(settings: Settings) -> dict[str, Any]:
    """Return the expressions, each for a whole path.

    Returns:
        - ``files``: files of the editor; ``fleets``: beginnings of paths where none is.
        - ``lists``, ``one_of_a_list``, ``extension_files``: what the API asks a node for.
        - ``routes``: open routes of extensions; None if there are none.
        - ``route_methods``: how these are called.
    """
    prefixes = "|".join(re.escape(prefix) for prefix in settings.extension_prefixes)
    return {
        "files": (
            rf"^/({_FOLDERS})(/{SEGMENT})+$",
            rf"^/{SEGMENT}\.({_KINDS})$",
            rf"^/api/workflow_templates(/{SEGMENT}){{2,}}$",
        ),
        "fleets": (
            *("/api/", "/k/", "/extensions/", "/userdata/", "/v2/", "/upload/", "/view/"),
            *(f"/{name}/" for name in sorted(CLOSED - EDITOR_FOLDERS)),
        ),
        "lists": _both(rf"({_LISTS})"),
        "one_of_a_list": _both(rf"global_subgraphs/{SEGMENT}"),
        "extension_files": _both(rf"extensions(/{SEGMENT})+"),
        "routes": rf"^(/api)?({prefixes})(/{SEGMENT})*$" if prefixes else None,
        "route_methods": " ".join(("HEAD", *METHODS)),
    }


def _both(path: str) -> str:
    return f"^(/api)?/{path}$"
