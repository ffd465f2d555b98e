"""Which values of a stored workflow's parameters a request for pictures means.

What the workflow can't take is refused with what it takes. Left out is only what clients send whether anybody
has chosen it or not (:data:`_UNCHOSEN`).
"""

import re
from collections.abc import Mapping
from typing import Any

import orjson

from comfy_fleet.api.errors import HttpError
from comfy_fleet.api.openai.bodies import PictureRequestBody
from comfy_fleet.domain.errors import InvalidParameter
from comfy_fleet.domain.graphs import binding
from comfy_fleet.domain.graphs.graph import is_link
from comfy_fleet.domain.graphs.workflow import DRAWN, FILES, MAX_SEED, Parameter, ParameterType, Workflow

_SIZE = re.compile(r"([0-9]{1,5})x([0-9]{1,5})")
_UNCHOSEN = {
    "quality": ("auto", "standard"),
    "style": ("vivid", "natural"),
    "background": ("auto",),
}
"""Values that clients send by themselves: of no effect where the workflow has no such parameter or choice."""
_NUMERIC = (ParameterType.INTEGER, ParameterType.NUMBER, ParameterType.SEED, ParameterType.BOOLEAN)
_LOADS_ALPHA = "LoadImage"
"""This class's second output is what is transparent in the file."""


def refused(field: str, message: str) -> HttpError:
    """Return the error for a field that can't be taken."""
    return HttpError(422, "invalid_request", message, details={"field": field})


def params_of(body: PictureRequestBody, workflow: Workflow, *, texts: bool = False) -> dict[str, Any]:
    """Return the values that a request means, without files and without the seeds of several jobs.

    Args:
        body: The request.
        workflow: The workflow.
        texts: Whether further fields come as texts, as in a form.

    Raises:
        HttpError: 422 if the workflow can't take a field.
    """
    params: dict[str, Any] = dict(body.model_extra or {})
    if texts:
        params = {name: _typed(workflow.parameter(name), value) for name, value in params.items()}
    for role in ("prompt", "negative_prompt", "seed"):
        if (value := getattr(body, role)) is not None:
            params[_named(workflow, role)] = value
    for role, unchosen in _UNCHOSEN.items():
        value = getattr(body, role)
        if value is None:
            continue
        parameter = workflow.parameter(workflow.name_for(role))
        if parameter is not None and (value not in unchosen or _takes(parameter, value)):
            params[parameter.name] = value
        elif value not in unchosen:
            also = " or ".join(unchosen)
            raise refused(
                role,
                f"workflow {workflow.name!r} has no parameter {role!r}, so it can't take {value[:40]!r}: "
                f"leave {role} out, or send {also}",
            )
    if body.size is not None and body.size != "auto":
        params |= _size(body.size, workflow, params)
    return params


def seeds_of(workflow: Workflow, params: Mapping[str, Any], count: int, draw: int) -> list[dict[str, Any]]:
    """Return the values of several jobs: each has a seed of its own, one after the other.

    Args:
        workflow: The workflow.
        params: The values of all.
        count: How many.
        draw: A random number, from 0 on, for the first one's seed if the request has none.

    Raises:
        HttpError: 422 if there is no seed, so that all would be the same.
    """
    if count == 1:
        return [dict(params)]
    named = workflow.parameter(workflow.name_for("seed"))
    seed = named if named is not None and named.type is ParameterType.SEED else None
    seed = seed or next((one for one in workflow.parameters if one.type is ParameterType.SEED), None)
    if seed is None:
        raise refused(
            "n",
            f"workflow {workflow.name!r} has no seed, so that {count} pictures would be the same: send n 1",
        )
    low = int(seed.minimum or 0)
    high = MAX_SEED if seed.maximum is None else int(seed.maximum)
    sent = params.get(seed.name)
    try:
        first = binding.check_value(seed, sent)
    except InvalidParameter as error:
        raise refused("seed", error.message) from None
    if (seed.default if sent is None else sent) in (None, DRAWN):
        first = low + draw % (high - low + 1)
    return [{**params, seed.name: low + (first - low + number) % (high - low + 1)} for number in range(count)]


def image_parameters(workflow: Workflow) -> list[Parameter]:
    """Return the parameters that pictures go to, in order; none of them is the mask."""
    mask = mask_parameter(workflow)
    first = workflow.name_for("image")
    found = [one for one in workflow.parameters if one.type is ParameterType.IMAGE or one.name == first]
    found = [one for one in found if one is not mask and one.type in FILES]
    return sorted(found, key=lambda one: one.name != first)


def mask_parameter(workflow: Workflow) -> Parameter | None:
    """Return the parameter of the mask; None if there is none."""
    found = workflow.parameter(workflow.name_for("mask"))
    return found if found is not None and found.type in FILES else None


def reads_alpha(workflow: Workflow, image: Parameter) -> bool:
    """Return whether the workflow reads as a mask what is transparent in a picture itself."""
    loaders = {
        target.node_id
        for target in image.targets
        if workflow.graph[target.node_id]["class_type"] == _LOADS_ALPHA
    }
    links = (value for node in workflow.graph.values() for value in node["inputs"].values() if is_link(value))
    return any(source in loaders and slot == 1 for source, slot in links)


def _named(workflow: Workflow, role: str) -> str:
    name = workflow.name_for(role)
    if role == "prompt" and workflow.parameter(name) is None:
        raise refused(
            "model",
            f"workflow {workflow.name!r} takes no prompt: give one of its parameters the role 'prompt', or "
            "choose another model",
        )
    return name


def _takes(parameter: Parameter, value: Any) -> bool:
    try:
        binding.check_value(parameter, value)
    except InvalidParameter:
        return False
    return True


def _typed(parameter: Parameter | None, text: Any) -> Any:
    if parameter is None or parameter.type not in _NUMERIC or not isinstance(text, str):
        return text
    try:
        return orjson.loads(text.lower())
    except orjson.JSONDecodeError:
        return text


def _size(size: str, workflow: Workflow, params: Mapping[str, Any]) -> dict[str, Any]:
    match = _SIZE.fullmatch(size)
    if match is None:
        raise refused("size", f"size {size[:40]!r} must look like 1024x1024, or be auto")
    named, no = f"workflow {workflow.name!r}", f"size {size} is not possible"
    whole = workflow.parameter(workflow.name_for("size"))
    if whole is not None:
        if not _takes(whole, size):
            raise refused("size", f"{no}: {named} takes {_of(whole).removeprefix('of ')}")
        return {whole.name: size}
    width, height = (workflow.parameter(workflow.name_for(role)) for role in ("width", "height"))
    if width is None or height is None:
        raise refused("size", f"{named} makes pictures of a size of its own: leave size out, or send auto")
    values = {width.name: int(match[1]), height.name: int(match[2])}
    for name, value in values.items():
        if params.get(name, value) != value:
            sent = str(params[name])[:40]
            raise refused("size", f"size {size} contradicts {name} {sent}: send one of them")
    if not (_takes(width, values[width.name]) and _takes(height, values[height.name])):
        raise refused("size", f"{no}: {named} takes a width {_of(width)}, and a height {_of(height)}")
    return values


def _of(parameter: Parameter) -> str:
    """Return what a parameter takes, in words."""
    if parameter.choices:
        return f"of {', '.join(choice.name for choice in parameter.choices)}"
    words = [
        f"{word} {limit:g}"
        for word, limit in (
            ("from", parameter.minimum),
            ("to" if parameter.minimum is not None else "up to", parameter.maximum),
            ("in multiples of", parameter.multiple_of),
        )
        if limit is not None
    ]
    return " ".join(words) or "of any value"
