"""The OpenAPI document of ``/api/v1``. Each fleet has its own, with a path for each stored workflow."""

import copy
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from comfy_fleet.api import openapi
from comfy_fleet.api.deps import deps, links, owner
from comfy_fleet.api.endpoint import JSON, Endpoint
from comfy_fleet.domain.graphs.workflow import Workflow, json_schema

PATH = "/api/v1/openapi.json"
_GENERIC = "/api/v1/workflows/{workflow}/jobs"
_REF = "#/components/schemas/"
_LONGEST = 40  # characters of a name in generated code
_IN_USE = (
    *("additional_keys", "additional_properties", "cls", "d", "field_dict", "from_dict", "src_dict"),
    *("model_name", "this", "to_dict"),
)
"""Names that generated models use themselves, in Python and in PHP: no parameter may have one."""

_TAGS = {
    "generate": "A prompt in, a picture out.",
    "openai": "OpenAI's interface to pictures, for its client: a model is a stored workflow.",
    "workflows": "Stored workflows: typed parameters in, jobs out.",
    "batches": "Many jobs at once: checked together, followed, run again, downloaded in one zip.",
    "uploads": "Files of any size, in parts, gone on with after any break: tus 1.0.0.",
    "jobs": "What became of them.",
    "nodes": "ComfyUI servers, for operators.",
    "pools": "Nodes by name of their pool, for operators.",
    "hosts": "GPU hosts and their agents.",
    "people": "Tenants, users and their keys; and who one is oneself.",
    "stores": "Buckets and folders into which outputs are put.",
    "webhooks": "Messages to URLs of one's own, and what they are signed with.",
    "health": "Whether the fleet works.",
}
_PATH_NAMES = {
    "workflow": "The stored workflow's name; to read or run it, also `NAME@VERSION`, `NAME@LABEL` or "
    "`NAME@draft`.",
    "model": "The stored workflow's name, perhaps with `@VERSION` or `@LABEL`.",
    "version": "A version's digits, the beginning of them, or a label.",
    "label": "A label of a version.",
    "job_id": "The job's id.",
    "batch": "The batch's id.",
    "fetch": "The id of a model file's fetch.",
    "upload": "The upload's id.",
    "task_id": "What generate or submit answered.",
    "node": "The node's name.",
    "pool": "The pool's name.",
    "store": "The store's name.",
    "tenant": "The tenant's name.",
    "user": "The user's name.",
    "key": "The key's id.",
    "host": "The GPU host's name.",
    "message_id": "The message's `webhook-id`.",
    "token": "The token's id.",
}
_DESCRIPTION = (
    "Many GPUs, one ComfyUI. Stored workflows with typed parameters, jobs, nodes. Each stored workflow has a "
    "path and a request of its own. The same jobs are at `/api/v2`, which is Comfy API v2: graphs, uploads, "
    "and files of jobs."
)


class FleetDocument:
    """The document; made on request if the stored workflows have changed."""

    def __init__(self, table: Sequence[Endpoint]) -> None:
        self._table = table
        self._common: dict[str, Any] | None = None
        self._versions: list[tuple[str, str]] | None = None
        self._made: dict[str, Any] = {}

    async def openapi(self, request: Request) -> Response:
        """``GET /api/v1/openapi.json``."""
        owner(request)
        workflows = await deps(request).catalog.list()
        versions = [(workflow.name, workflow.version) for workflow in workflows]
        if versions != self._versions:
            self._made, self._versions = self._with(workflows), versions
        return Response(openapi.dumped(self._made, links(request).base), media_type=JSON)

    def _with(self, workflows: Sequence[Workflow]) -> dict[str, Any]:
        if self._common is None:
            self._common = openapi.document(
                self._table,
                title="comfy_fleet",
                description=_DESCRIPTION,
                tags=_TAGS,
                paths=_PATH_NAMES,
            )
        return with_workflows(self._common, workflows)


async def to_document(request: Request) -> Response:
    """``GET /openapi.json``."""
    return RedirectResponse(PATH)


def with_workflows(common: Mapping[str, Any], workflows: Sequence[Workflow]) -> dict[str, Any]:
    """Return a document with a path and a request model for each workflow, in front of the general path."""
    generic = common["paths"][_GENERIC]["post"]
    schemas = dict(common["components"]["schemas"])
    body = schemas[generic["requestBody"]["content"][JSON]["schema"]["$ref"].removeprefix(_REF)]
    operations = [
        operation["operationId"] for methods in common["paths"].values() for operation in methods.values()
    ]
    # Generators name a field's model after the model and the field.
    models = [name + field for name, shape in schemas.items() for field in ("", *shape.get("properties", ()))]
    names, ids = _Names(models), _Names(operations)
    paths: dict[str, Any] = {}
    for workflow in workflows:
        words = re.findall(r"[a-z0-9]+", workflow.name)
        choices = [f"Params{one.name}" for one in workflow.parameters if one.choices]
        stem = names.free(_stem(words), ["Params", "Job", *choices])
        schemas[f"{stem}Params"] = _params(workflow)
        schemas[f"{stem}Job"] = _job(body, workflow, f"{stem}Params")
        operation = copy.deepcopy(generic)
        operation |= {
            "operationId": ids.free(f"run_{'_'.join(words)}"[:_LONGEST].rstrip("_")),
            "summary": f"Run {' '.join(_text(workflow.title).split()) or workflow.name}"[:120],
            "description": _text(workflow.description) or f"Run the stored workflow {workflow.name}.",
            "parameters": [one for one in generic["parameters"] if one["in"] != "path"],
        }
        operation["requestBody"]["content"][JSON]["schema"] = {"$ref": f"{_REF}{stem}Job"}
        paths[f"/api/v1/workflows/{workflow.name}/jobs"] = {"post": operation}
    return {
        **common,
        "paths": {**common["paths"], **paths},
        "components": {**common["components"], "schemas": schemas},
    }


class _Names:
    """Names in use, compared as in clients' languages: only letters and digits, ignoring case."""

    def __init__(self, taken: Iterable[str] = ()) -> None:
        self._taken = {_plain(name) for name in taken}

    def free(self, name: str, endings: Sequence[str] = ("",)) -> str:
        """Return the name, with a number after it if it would look like another one with any of the
        endings."""
        found, number = name, 1
        while any(_plain(found + ending) in self._taken for ending in endings):
            number += 1
            found = f"{name}{number}"
        self._taken.update(_plain(found + ending) for ending in endings)
        return found


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())


def _stem(words: Sequence[str]) -> str:
    """Return the prefix of a workflow's models."""
    stem = "".join(word[0].upper() + word[1:] for word in words)
    return (stem if stem[0].isalpha() else f"Workflow{stem}")[:_LONGEST]


def _job(body: Mapping[str, Any], workflow: Workflow, params: str) -> dict[str, Any]:
    """Return the request's model: the general one with the workflow's own parameters."""
    made = {name: value for name, value in body.items() if name != "example"}
    made["description"] = f"A job from the stored workflow {workflow.name}."
    made["properties"] = {**body["properties"], "params": {"$ref": _REF + params}}
    required = any(parameter.required for parameter in workflow.parameters)
    return made | ({"required": ["params"]} if required else {})


def _params(workflow: Workflow) -> dict[str, Any]:
    """Return the parameters' model, in the subset of JSON Schema that client generators understand."""
    whole = json_schema(workflow)
    typed: dict[str, Any] = {}
    seen = {_plain(name) for name in _IN_USE}
    for name, schema in whole["properties"].items():
        if _plain(name) not in seen:
            seen.add(_plain(name))
            typed[name] = _property(schema)
    required = [name for name in whole["required"] if name in typed]
    untyped = [name for name in whole["properties"] if name not in typed]
    about = f"Parameters of the stored workflow {workflow.name}, version {workflow.version}."
    if untyped:
        about += f" It takes {', '.join(untyped)}, too, which generated code could not tell from others."
    made = {
        "type": "object",
        "description": about,
        "properties": typed,
        "additionalProperties": bool(untyped),
    }
    return openapi.without_defaults(made | ({"required": required} if required else {}))


def _property(schema: Mapping[str, Any]) -> dict[str, Any]:
    """Return one parameter without what names or means the same again: titles, and choices' labels."""
    made = {
        name: value for name, value in schema.items() if name not in ("title", "oneOf", "contentMediaType")
    }
    if kind := schema.get("contentMediaType"):  # OpenAPI 3.0 does not know it
        made["format"] = kind
    if not all(map(_is_plain, made.get("enum", ()))):
        del made["enum"]
    if "enum" in made:
        names = _Names()
        made["x-enum-varnames"] = [names.free(_constant(choice)) for choice in made["enum"]]
    labels = [f"`{one['const']}`: {one['title']}" for one in schema.get("oneOf", ())]
    texts = [schema.get("title", ""), schema.get("description", ""), ", ".join(labels)]
    description = ". ".join(_text(text).rstrip(".") for text in texts if _text(text))
    return made | ({"description": description} if description else {})


def _text(text: str) -> str:
    """Return the workflow author's text without characters that would break a comment in generated code."""
    return "".join(sign if sign.isprintable() or sign == "\n" else " " for sign in text).strip()


def _is_plain(choice: str) -> bool:
    """Return whether generators write a choice into code unchanged; they alter what could end a comment."""
    return choice.isprintable() and choice == choice.strip() and not ("*/" in choice or "/*" in choice)


def _constant(choice: str) -> str:
    """Return a choice's name in generated code: choices may be any text, and some look alike."""
    name = re.sub(r"[^A-Z0-9]+", "_", choice.upper()).strip("_")[:_LONGEST]
    return name if name[:1].isalpha() else f"VALUE_{name}".rstrip("_")
