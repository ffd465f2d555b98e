"""The OpenAPI document of ``/api/v1``: of each fleet its own, with a path for each stored workflow."""

import copy
import re
from collections.abc import Mapping, Sequence
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

_PATH_NAMES = {
    "workflow": "The stored workflow's name.",
    "job_id": "The job's id.",
    "task_id": "What generate or submit answered.",
    "node": "The node's name.",
    "pool": "The pool's name.",
    "host": "The GPU host's name.",
}
_DESCRIPTION = (
    "Stored workflows with typed parameters, jobs, nodes. Each stored workflow has a path and a request of "
    "its own. The same jobs are at `/api/v2`, which is Comfy API v2: graphs, uploads, and files of jobs."
)


class FleetDocument:
    """The document, made when it is asked for and the stored workflows have changed since."""

    def __init__(self, table: Sequence[Endpoint]) -> None:
        self._table = table
        self._common: dict[str, Any] | None = None
        self._versions: list[tuple[str, str]] | None = None
        self._made: dict[str, Any] = {}

    async def openapi(self, request: Request) -> Response:
        """``GET /api/v1/openapi.json``."""
        owner(request)
        workflows = deps(request).catalog.list()
        versions = [(workflow.name, workflow.version) for workflow in workflows]
        if versions != self._versions:
            self._made, self._versions = self._with(workflows), versions
        return Response(openapi.dumped(self._made, links(request).base), media_type=JSON)

    def _with(self, workflows: Sequence[Workflow]) -> dict[str, Any]:
        if self._common is None:
            self._common = openapi.document(
                self._table,
                title="comfy_fleet",
                summary="Many GPUs, one ComfyUI: stored workflows, jobs and nodes.",
                description=_DESCRIPTION,
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
    operations = {
        operation["operationId"] for methods in common["paths"].values() for operation in methods.values()
    }
    names, ids = _Names(schemas), _Names(operations)
    paths: dict[str, Any] = {}
    for workflow in workflows:
        stem = "".join(word[:1].upper() + word[1:] for word in re.split(r"[^A-Za-z0-9]+", workflow.name))
        stem = stem if stem[0].isalpha() else f"Workflow{stem}"
        params, job = names.free(f"{stem}Params"), names.free(f"{stem}Job")
        schemas[params] = _params(workflow)
        schemas[job] = _job(body, workflow, params, required="required" in schemas[params])
        operation = copy.deepcopy(generic)
        operation |= {
            "operationId": ids.free("run_" + re.sub(r"[^a-z0-9]+", "_", workflow.name).strip("_")),
            "summary": f"Run {workflow.title or workflow.name}"[:120],
            "description": workflow.description or f"Run the stored workflow {workflow.name}.",
            "parameters": [one for one in generic["parameters"] if one["in"] != "path"],
        }
        operation["requestBody"]["content"][JSON]["schema"] = {"$ref": _REF + job}
        paths[f"/api/v1/workflows/{workflow.name}/jobs"] = {"post": operation}
    return {
        **common,
        "paths": {**common["paths"], **paths},
        "components": {**common["components"], "schemas": schemas},
    }


class _Names:
    """Names that are taken, compared as clients' languages do: without case and without signs."""

    def __init__(self, taken: Any) -> None:
        self._taken = {_plain(name) for name in taken}

    def free(self, name: str) -> str:
        """Return the name, with a number behind it if another one looks the same."""
        found, number = name, 1
        while _plain(found) in self._taken:
            number += 1
            found = f"{name}{number}"
        self._taken.add(_plain(found))
        return found


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())


def _job(body: Mapping[str, Any], workflow: Workflow, params: str, *, required: bool) -> dict[str, Any]:
    """Return the request's model: the general one with the workflow's own parameters."""
    made = {name: value for name, value in body.items() if name != "example"}
    made["description"] = f"A job from the stored workflow {workflow.name}."
    made["properties"] = {**body["properties"], "params": {"$ref": _REF + params}}
    return made | ({"required": ["params"]} if required else {})


def _params(workflow: Workflow) -> dict[str, Any]:
    """Return the parameters' model, in the part of JSON Schema that generators of clients understand."""
    whole = json_schema(workflow)
    properties = {name: _property(schema) for name, schema in whole["properties"].items()}
    made = {
        "type": "object",
        "description": f"Parameters of the stored workflow {workflow.name}, version {workflow.version}.",
        "properties": properties,
        "additionalProperties": False,
    }
    return openapi.without_defaults(made | ({"required": whole["required"]} if whole["required"] else {}))


def _property(schema: Mapping[str, Any]) -> dict[str, Any]:
    """Return one parameter without what names or means the same again: titles, and choices' labels."""
    made = {name: value for name, value in schema.items() if name not in ("title", "oneOf")}
    labels = [f"`{one['const']}`: {one['title']}" for one in schema.get("oneOf", ())]
    texts = [schema.get("title", ""), schema.get("description", ""), ", ".join(labels)]
    description = ". ".join(text.strip().rstrip(".") for text in texts if text.strip())
    return made | ({"description": description} if description else {})
