"""What requests for pictures say: as JSON, or as the fields of a form."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, TypeVar

import orjson
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema
from typing_extensions import TypedDict

from comfy_fleet.api.errors import HttpError
from comfy_fleet.api.job_options import JobOptionsBody
from comfy_fleet.api.typed_bodies import checked

MOST_PICTURES = 10
MOST_PARTIAL = 3
LONGEST_WAIT_S = 86_400
_OUTPUT_NUMBERS = ("quality", "width")
_NUMBERS = ("n", "output_compression", "partial_images", "seed")
_TIMES = ("priority", "ttl_s", "deadline_s", "timeout_s", "finish_by")
_LISTS = ("webhook_events", "spill_to")
_OBJECTS = ("metadata", "labels", "output")
M = TypeVar("M", bound=BaseModel)


def _or_default(default: object) -> BeforeValidator:
    """Let null be the same as nothing: clients send it for what nobody has chosen."""
    return BeforeValidator(lambda value: default if value is None else value)


class PictureRequestBody(JobOptionsBody):
    """Pictures from a prompt. Further fields are parameters of the workflow."""

    model_config = ConfigDict(
        extra="allow", strict=True, json_schema_extra={"example": {"model": "image_card", "prompt": "a fox"}}
    )

    prompt: str = Field("", description="What to draw; must not be empty.")
    model: str | None = Field(
        None,
        description="Stored workflow, perhaps with `@VERSION`, `@LABEL` or `@draft`; the operator's choice "
        "when left out.",
    )
    n: Annotated[int, _or_default(1)] = Field(
        1, ge=1, le=MOST_PICTURES, description="How many jobs, each with a seed of its own."
    )
    size: str | None = Field(None, description="WIDTHxHEIGHT in pixels, or `auto`.")
    quality: str | None = Field(None, description="A choice of the workflow's, `auto` or `standard`.")
    style: str | None = Field(None, description="A choice of the workflow's, `vivid` or `natural`.")
    background: str | None = Field(None, description="A choice of the workflow's, or `auto`.")
    moderation: Literal["auto", "low"] | None = Field(None, description="Of no effect.")
    output_format: Literal["png", "jpeg", "webp"] | None = Field(
        None, description="As the workflow saves it, if left out."
    )
    output_compression: int | None = Field(
        None, ge=0, le=100, description="Quality of `jpeg` and `webp`; 100 if left out."
    )
    response_format: Literal["url", "b64_json"] | None = Field(
        None, description="`url`: a URL that needs no key, for an hour."
    )
    stream: Annotated[bool, _or_default(False)] = Field(False, description="Answer with events.")
    partial_images: Annotated[int, _or_default(0)] = Field(
        0, ge=0, le=MOST_PARTIAL, description="With `stream`: at most so many previews of each picture."
    )
    user: str | None = Field(None, max_length=1024, description="Of no effect.")
    safety_identifier: str | None = Field(None, max_length=1024, description="Of no effect.")
    negative_prompt: str | None = Field(None, description="What not to draw.")
    seed: Annotated[Any, WithJsonSchema({"type": "integer", "nullable": True})] = Field(
        None, description="-1 or nothing draws one; with `n`, the first of as many."
    )


class _EditFields(TypedDict, total=False):
    prompt: Annotated[str, Field(description="What to draw.")]
    model: Annotated[str, Field(description="As for generations; so are all other fields there.")]
    mask: Annotated[
        str,
        Field(description="A PNG: what is transparent is to be drawn anew."),
        WithJsonSchema({"type": "string", "format": "binary"}),
    ]
    n: Annotated[int, Field(ge=1, le=MOST_PICTURES)]
    size: str


class PictureEditBody(_EditFields):
    """Pictures from others. ``image`` may come up to 16 times, also as ``image[]``."""

    image: Annotated[str, WithJsonSchema({"type": "string", "format": "binary"})]


class PictureWaitQuery(BaseModel):
    """How long the answer may take; clients send it as ``extra_query``."""

    wait: int | None = Field(
        None,
        ge=1,
        le=LONGEST_WAIT_S,
        description="Seconds after which the answer is 504, and the jobs go on. At most the operator's "
        "`FLEET_MAX_WAIT_S` count; so many without it.",
    )
    cancel_on_disconnect: bool = Field(
        False, description="Cancel the jobs if the client hangs up before it has its answer."
    )


def body_of(fields: Mapping[str, Sequence[str]]) -> PictureRequestBody:
    """Return the fields of a form as a body.

    Raises:
        HttpError: 422 if one is wrong, or comes twice.
    """
    found: dict[str, Any] = {}
    for name, values in fields.items():
        outer, bracket, inner = name.partition("[")
        if bracket and outer in _OBJECTS and inner.endswith("]"):
            if outer in fields:
                raise HttpError(
                    422,
                    "invalid_request",
                    f"{outer} must come as one field, or in parts, and not as both",
                    details={"field": outer},
                )
            part, text = inner[:-1], values[-1]
            is_number = outer == "output" and part in _OUTPUT_NUMBERS
            found.setdefault(outer, {})[part] = _number(text) if is_number else text
            continue
        if outer in _LISTS and inner in ("", "]"):
            found[outer] = list(values)
            continue
        if len(values) > 1:
            raise HttpError(
                422, "invalid_request", f"{name[:80]} must come only once", details={"field": name[:80]}
            )
        found[name] = _value(name, values[0])
    return checked({name: value for name, value in found.items() if value != ""}, PictureRequestBody)


def _value(name: str, text: str) -> Any:
    """Return a form's text as the field wants it; what is no number stays a text, which is refused as one."""
    if name == "stream":
        return {"true": True, "false": False, "True": True, "False": False}.get(text, text)
    return _number(text) if name in _NUMBERS + _TIMES else text


def _number(text: str) -> Any:
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError:
        return text
