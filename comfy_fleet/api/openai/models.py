"""The stored workflows that make pictures, as models."""

from starlette.requests import Request
from starlette.responses import Response
from typing_extensions import TypedDict

from comfy_fleet.api.deps import ApiDeps, deps, owner, principal
from comfy_fleet.api.errors import HttpError
from comfy_fleet.api.json import json_response
from comfy_fleet.domain.errors import BadInput, NotFound
from comfy_fleet.domain.graphs.graph import is_link
from comfy_fleet.domain.graphs.workflow import Workflow
from comfy_fleet.domain.limits import refused_workflow

_SHOWN = 30
_IMAGE = "IMAGE"


class ModelAnswer(TypedDict):
    """A stored workflow as a model; ``created`` is always 0."""

    id: str
    object: str
    created: int
    owned_by: str


class ModelListAnswer(TypedDict):
    """All of them."""

    object: str
    data: list[ModelAnswer]


async def list_models(request: Request) -> Response:
    """The stored workflows that make pictures and that the caller may run."""
    owner(request)
    found = [_model(one.name) for one in await usable(request)]
    return json_response({"object": "list", "data": found})


async def get_model(request: Request) -> Response:
    """One of them, perhaps with `@VERSION` or `@LABEL`."""
    name = request.path_params["model"]
    await workflow_of(request, name)
    return json_response(_model(name))


async def usable(request: Request) -> list[Workflow]:
    """Return the stored workflows that make pictures and that the caller may run."""
    d, quotas = deps(request), principal(request).quotas
    return [
        one
        for one in await d.catalog.list()
        if refused_workflow(quotas, one.name) is None and makes_pictures(d, one)
    ]


async def workflow_of(request: Request, name: str | None) -> Workflow:
    """Return the stored workflow that a request's model is; the operator's choice if it has none.

    Raises:
        HttpError: 404 ``model_not_found``.
        FleetError: As :meth:`comfy_fleet.services.submitter.Submitter.named`.
    """
    d, who = deps(request), owner(request)
    wanted = name or d.settings.generate_workflow
    try:
        return await d.submitter.named(who, wanted, principal(request).quotas)
    except (NotFound, BadInput) as error:
        have = ", ".join(one.name for one in (await usable(request))[:_SHOWN])
        why = f" ({error.message})" if "@" in wanted else ""
        raise HttpError(
            404,
            "model_not_found",
            f"The model {wanted[:80]!r} does not exist here: models are the stored workflows, "
            f"{have or 'none'}; store one under this name, or name one of them as the model{why}",
            details={"field": "model"},
        ) from None


def makes_pictures(d: ApiDeps, workflow: Workflow) -> bool:
    """Return whether an output node of a workflow reads pictures; True while no node's classes are known."""
    known = d.inventories.inventories
    if not known:
        return True
    graph = workflow.graph

    def is_picture(source: str, slot: int) -> bool:
        kind = graph[source]["class_type"] if source in graph else ""
        return any(
            (info := one.classes.get(kind)) is not None and info.outputs[slot : slot + 1] == (_IMAGE,)
            for one in known
        )

    return any(
        is_link(value) and is_picture(*value)
        for node_id in d.inventories.output_nodes(graph)
        for value in graph[node_id]["inputs"].values()
    )


def _model(name: str) -> ModelAnswer:
    return {"id": name, "object": "model", "created": 0, "owned_by": "comfy_fleet"}
