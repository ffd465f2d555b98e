"""The table of ``/v1``: OpenAI's interface to pictures."""

from typing import Annotated, Any

from pydantic import Field
from typing_extensions import TypedDict

from comfy_fleet.api import endpoint
from comfy_fleet.api.endpoint import Endpoint, ServedRoute
from comfy_fleet.api.openai import bodies, errors, images, models

_IDEMPOTENCY_KEY = {
    "name": "Idempotency-Key",
    "in": "header",
    "required": False,
    "description": "For 24 h, the same key with the same request waits for, and answers, the same jobs.",
    "schema": {"type": "string", "minLength": 1, "maxLength": 255},
}


class _PictureFields(TypedDict, total=False):
    b64_json: str
    url: str


class PictureAnswer(_PictureFields):
    """A picture: its bytes in Base64, or a URL that needs no key."""


class _PicturesFields(TypedDict, total=False):
    output_format: str
    size: str


class PicturesAnswer(_PicturesFields):
    """Pictures, in the order of their jobs; a workflow may make several for each."""

    created: Annotated[int, Field(description="Unix seconds.")]
    data: list[PictureAnswer]


_PICTURES: dict[str, Any] = {
    "method": "POST",
    "tag": "openai",
    "query": bodies.PictureWaitQuery,
    "parameters": (_IDEMPOTENCY_KEY,),
    "answers": {200: PicturesAnswer},
    "errors": (404, 409, 502, 504),
    "failure": errors.PictureErrorEnvelope,
    "refusal": errors.refusal,
}
_MODELS: dict[str, Any] = {
    "method": "GET",
    "tag": "openai",
    "failure": errors.PictureErrorEnvelope,
    "refusal": errors.refusal,
}

TABLE = (
    Endpoint(
        path="/v1/images/generations",
        operation="generate_images",
        handler=images.generate_images,
        summary="Make pictures, as OpenAI's client asks",
        body=bodies.PictureRequestBody,
        **_PICTURES,
    ),
    Endpoint(
        path="/v1/images/edits",
        operation="edit_images",
        handler=images.edit_images,
        summary="Make pictures from others, as OpenAI's client asks",
        body=bodies.PictureEditBody,
        body_kind="multipart/form-data",
        at_once=True,
        **_PICTURES,
    ),
    Endpoint(
        path="/v1/models",
        operation="list_models",
        handler=models.list_models,
        summary="List stored workflows as models",
        answers={200: models.ModelListAnswer},
        **_MODELS,
    ),
    Endpoint(
        path="/v1/models/{model}",
        operation="get_model",
        handler=models.get_model,
        summary="Show a stored workflow as a model",
        answers={200: models.ModelAnswer},
        **_MODELS,
    ),
)


def routes() -> list[ServedRoute]:
    """Return the routes."""
    return endpoint.routes(TABLE)
