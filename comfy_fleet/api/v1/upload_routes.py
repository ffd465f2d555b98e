"""The part of ``/api/v1``'s table about uploads that may be resumed."""

from typing import Annotated, Any

from pydantic import WithJsonSchema

from comfy_fleet.api.answers import UploadAnswer
from comfy_fleet.api.endpoint import Endpoint
from comfy_fleet.api.v1 import uploads

_ONE = "/api/v1/uploads/{upload}"


def _header(name: str, about: str, *, number: bool = False, needed: bool = True) -> dict[str, Any]:
    kind = {"type": "integer", "minimum": 0} if number else {"type": "string"}
    return {"name": name, "in": "header", "required": needed, "description": about, "schema": kind}


_VERSION = {
    **_header("Tus-Resumable", "The version of tus."),
    "schema": {"type": "string", "enum": [uploads.VERSION]},
}

_Bytes = Annotated[str, WithJsonSchema({"type": "string", "format": "binary"})]

TABLE = (
    Endpoint(
        method="OPTIONS",
        path="/api/v1/uploads",
        operation="upload_options",
        handler=uploads.upload_options,
        summary="What of tus is spoken",
        tag="uploads",
        answers={204: None},
        passing=True,
        refusal=uploads.refusal,
    ),
    Endpoint(
        method="POST",
        path="/api/v1/uploads",
        operation="begin_upload",
        handler=uploads.begin_upload,
        summary="Begin an upload that may be resumed",
        tag="uploads",
        parameters=(
            _VERSION,
            _header("Upload-Length", "Bytes of the whole file.", number=True),
            _header(
                "Upload-Metadata",
                "Names, each with a value in base64, with commas between: `filename`, `filetype`.",
                needed=False,
            ),
        ),
        answers={201: None},
        errors=(412, 413, 415, 422, 507),
        at_once=True,
        refusal=uploads.refusal,
    ),
    Endpoint(
        method="HEAD",
        path=_ONE,
        operation="look_at_upload",
        handler=uploads.look_at_upload,
        summary="How much of an upload is here?",
        tag="uploads",
        parameters=(_VERSION,),
        answers={200: None},
        errors=(412,),
        refusal=uploads.refusal,
    ),
    Endpoint(
        method="GET",
        path=_ONE,
        operation="get_upload",
        handler=uploads.get_upload,
        summary="Show an upload",
        tag="uploads",
        answers={200: UploadAnswer},
        refusal=uploads.refusal,
    ),
    Endpoint(
        method="PATCH",
        path=_ONE,
        operation="append_to_upload",
        handler=uploads.append_to_upload,
        summary="Send the next bytes of an upload",
        tag="uploads",
        parameters=(
            _VERSION,
            _header("Upload-Offset", "How many bytes are here already.", number=True),
        ),
        body=_Bytes,
        body_kind=uploads.PART,
        answers={204: None},
        errors=(409, 412, 413, 415, 423),
        at_once=True,
        refusal=uploads.refusal,
    ),
    Endpoint(
        method="DELETE",
        path=_ONE,
        operation="remove_upload",
        handler=uploads.remove_upload,
        summary="Give an upload up",
        tag="uploads",
        parameters=(_VERSION,),
        answers={204: None},
        errors=(412,),
        refusal=uploads.refusal,
    ),
    Endpoint(
        method="POST",
        path=_ONE,
        operation="override_upload",
        handler=uploads.overridden,
        summary="PATCH or DELETE where a proxy knows neither",
        tag="uploads",
        parameters=(_header("X-HTTP-Method-Override", "`PATCH` or `DELETE`."),),
        answers={204: None},
        errors=(405, 409, 412, 413, 415, 423),
        at_once=True,
        refusal=uploads.refusal,
    ),
)
