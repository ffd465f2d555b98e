"""``extra_data``: what a node gets besides the graph, and which parts of it nobody may read again."""

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
