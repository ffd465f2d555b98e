"""Which paths of a node are its editor's, as regular expressions for both configurations.

Files go from the edge to the node. What is made anew for each request (``/``, lists, extensions' files and
routes) is asked of the node by the API. The broker lets both through, the edge only the files.
"""

import re
from typing import Any

from comfy_fleet.settings import Settings

SEGMENT = r"([A-Za-z0-9._~:@!$&()*+,;=\x27-]|%[0-9A-Fa-f]{2})+"
"""One segment of a path, as clients write it. No blank and no quote is in it."""

_FOLDERS = "assets|scripts|docs|templates|fonts|lib|cursor"
_KINDS = (
    "js|mjs|css|html|json|png|jpe?g|gif|svg|ico|webp|avif|mp4|webm|mp3|wav|ogg|woff2?|ttf|otf|wasm|webmanifest|"
    "map|txt|md|glb|gltf"
)
_LISTS = "extensions|i18n|workflow_templates|global_subgraphs"


def editor_paths(settings: Settings) -> dict[str, Any]:
    """Return the expressions, each for a whole path.

    Returns:
        - ``files``: files of the editor; ``fleets``: beginnings of paths that are the fleet's, where none is.
        - ``lists``, ``one_of_a_list``, ``extension_files``: what the API asks a node for.
        - ``routes``: open routes of extensions; None if there are none.
    """
    prefixes = "|".join(re.escape(prefix) for prefix in settings.extension_prefixes)
    return {
        "files": (
            rf"^/({_FOLDERS})(/{SEGMENT})+$",
            rf"^(/{SEGMENT})*/{SEGMENT}\.({_KINDS})$",
            rf"^/api/workflow_templates(/{SEGMENT}){{2,}}$",
        ),
        "fleets": ("/api/", "/internal/", "/k/", "/extensions/", "/userdata/", "/v2/", "/upload/", "/view/"),
        "lists": _both(rf"({_LISTS})"),
        "one_of_a_list": _both(rf"global_subgraphs/{SEGMENT}"),
        "extension_files": _both(rf"extensions(/{SEGMENT})+"),
        "routes": rf"^(/api)?({prefixes})(/{SEGMENT})*$" if prefixes else None,
    }


def _both(path: str) -> str:
    return f"^(/api)?/{path}$"
