"""``extra_data``: what a node gets besides the graph, and which parts of it nobody may read again."""

import hashlib
import re
from collections.abc import Mapping
from typing import Any

# ComfyUI keeps auth_token_comfy_org and api_key_comfy_org out of its history; node packs have their own.
MOST_ID = 128
"""Characters of a workflow's id that a job keeps; the editor's are UUIDs."""
_SECRET = re.compile(r"token|api_?key|secret|passw|credential", re.IGNORECASE)


def split_secrets(extra_data: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the parts that may be kept and shown, and those that must be sealed, by their names."""
    shown = {name: value for name, value in extra_data.items() if not _SECRET.search(name)}
    return shown, {name: value for name, value in extra_data.items() if name not in shown}


def editor_workflow_id(extra_data: Mapping[str, Any]) -> str | None:
    """Return the id that ComfyUI's editor gave the workflow in ``extra_pnginfo``, if it is one."""
    info = extra_data.get("extra_pnginfo")
    workflow = info.get("workflow") if isinstance(info, Mapping) else None
    found = workflow.get("id") if isinstance(workflow, Mapping) else None
    return found if isinstance(found, str) and 0 < len(found) <= MOST_ID else None


def editor_key(owner: str, client_id: str | None, extra_data: Mapping[str, Any]) -> str:
    """Return the key of the editor that a job comes from; empty if it is no editor's.

    An editor has a client id, and sends its graph beside the prompt or says what it is. Two owners' editors
    have different keys, whatever ids they choose.
    """
    info = extra_data.get("extra_pnginfo")
    graph = info.get("workflow") if isinstance(info, Mapping) else None
    if client_id is None or not (isinstance(graph, Mapping) or "comfy_usage_source" in extra_data):
        return ""
    text = f"{owner}\n{client_id}".encode("utf-8", "surrogatepass")
    return hashlib.sha256(text).hexdigest()[:32]
