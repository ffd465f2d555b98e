"""A stored workflow as a tool: its name, its parameters as JSON Schema, and what an agent says in them.

Titles and descriptions are texts of whoever keeps the workflows. They are bounded, and nothing but texts.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any

from mcp_types import Tool, ToolAnnotations

from comfy_fleet.client import WorkflowData, WorkflowSummaryData

MOST_TOOLS = 100
MOST_ABOUT, MOST_ABOUT_PARAMETER = 1000, 300
"""Characters of a description."""
MOST_CHOICES = 200
_LONGEST_NAME = 60
_FILE = (
    "An http(s) URL, a data: URI, or the id of an output of another job (`outputs[].id`). "
    "A path is not taken: no file of this machine is read."
)
_KEPT = ("type", "default", "enum", "minimum", "maximum", "multipleOf", "minLength", "maxLength")

OUTPUT = "fleet_output"
"""The argument that says where outputs are put besides; no workflow's parameter begins so."""
_OUTPUT = {
    "type": "object",
    "description": "Puts the outputs into a store of the operator's, besides returning them. Only if "
    "somebody has named the store to you.",
    "properties": {
        "store": {"type": "string", "maxLength": 64, "description": "Its name."},
        "key": {
            "type": "string",
            "maxLength": 512,
            "description": "The template of the files' names there, e.g. `foxes/{job_id}-{index}.{ext}`.",
        },
    },
    "required": ["store"],
    "additionalProperties": False,
}
JOB, CANCEL, STATUS = "fleet_job", "fleet_cancel", "fleet_status"

_JOB_ID = {
    "type": "object",
    "properties": {"job_id": {"type": "string", "description": "The job's id.", "maxLength": 64}},
    "required": ["job_id"],
    "additionalProperties": False,
}
OWN_TOOLS = (
    Tool(
        name=JOB,
        title="Show a job",
        description="How far a job is, why it waits, or what it has made, with its pictures.",
        input_schema=_JOB_ID,
        annotations=ToolAnnotations(read_only_hint=True, open_world_hint=False),
    ),
    Tool(
        name=CANCEL,
        title="Cancel a job",
        description="Cancel a job that waits or runs.",
        input_schema=_JOB_ID,
        annotations=ToolAnnotations(read_only_hint=False, destructive_hint=True, idempotent_hint=True),
    ),
    Tool(
        name=STATUS,
        title="Is the fleet working?",
        description="Whether jobs can run now, and if not, why; and which of your jobs wait or run.",
        input_schema={"type": "object", "properties": {}, "additionalProperties": False},
        annotations=ToolAnnotations(read_only_hint=True, open_world_hint=False),
    ),
)


def tool_names(workflows: Iterable[WorkflowSummaryData]) -> dict[str, WorkflowSummaryData]:
    """Return the workflows that the key may run by the names of their tools; at most :data:`MOST_TOOLS`.

    Some hosts take only letters, digits, `_` and `-` in names, and not many of them.
    """
    taken = {one.name for one in OWN_TOOLS}
    named: dict[str, WorkflowSummaryData] = {}
    for workflow in workflows:
        if not workflow.get("allowed", True) or len(named) == MOST_TOOLS:
            continue
        stem = re.sub(r"[^a-zA-Z0-9_-]", "_", workflow["name"])[:_LONGEST_NAME]
        name, number = stem, 1
        while name in taken:
            number += 1
            name = f"{stem}_{number}"
        taken.add(name)
        named[name] = workflow
    return named


def tool_of(name: str, workflow: WorkflowData) -> Tool:
    """Return a workflow's tool."""
    schema = workflow["parameters"]
    about = text(workflow["description"], MOST_ABOUT) or text(workflow["title"], MOST_ABOUT)
    return Tool(
        name=name,
        title=text(workflow["title"], 100) or None,
        description=f"{about or 'Runs a stored workflow.'}\nReturns what it makes, pictures as images.",
        input_schema={
            "type": "object",
            "properties": {
                **{key: _property(one) for key, one in schema.get("properties", {}).items()},
                **({} if OUTPUT in schema.get("properties", {}) else {OUTPUT: _OUTPUT}),
            },
            "required": list(schema.get("required", ())),
            "additionalProperties": False,
        },
        annotations=ToolAnnotations(read_only_hint=False, destructive_hint=False, idempotent_hint=False),
    )


def _property(schema: Mapping[str, Any]) -> dict[str, Any]:
    made = {key: schema[key] for key in _KEPT if key in schema}
    if len(made.get("enum", ())) > MOST_CHOICES:
        del made["enum"]  # a refusal names them
    labels = [
        f"{text(str(one['const']), 60)}: {text(str(one['title']), 60)}"
        for one in schema.get("oneOf", ())[:MOST_CHOICES]
        if one.get("title") and one["title"] != one.get("const")
    ]
    about = [text(schema.get("title", ""), 100), text(schema.get("description", ""), MOST_ABOUT_PARAMETER)]
    if schema.get("x-fleet-type") in ("image", "asset"):
        about.append(_FILE)
    about.append(text("; ".join(labels), MOST_ABOUT_PARAMETER))
    if description := "\n".join(filter(None, about)):
        made["description"] = description
    return made


def text(value: object, most: int) -> str:
    """Return a text without control characters, and not longer than this."""
    found = "".join(sign if sign.isprintable() or sign == "\n" else " " for sign in str(value)).strip()
    return found if len(found) <= most else f"{found[: most - 1]}…"


def output_of(workflow: WorkflowData, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of a submit that say where its outputs are put besides; none if it does not."""
    wanted = arguments.get(OUTPUT)
    if wanted is None or OUTPUT in workflow["parameters"].get("properties", {}):
        return {}
    return {"output": wanted}


def values(workflow: WorkflowData, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return an agent's arguments as parameters: null is left out, and 512.0 is a whole number, too."""
    types = {name: one.get("type") for name, one in workflow["parameters"].get("properties", {}).items()}
    return {
        name: int(value)
        if types.get(name) == "integer" and isinstance(value, float) and value.is_integer()
        else value
        for name, value in arguments.items()
        if value is not None and (name != OUTPUT or name in types)
    }
