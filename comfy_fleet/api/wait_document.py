"""What an OpenAPI document says about the answers to a submit that may wait for its job's end."""

from collections.abc import Mapping
from typing import Any

from comfy_fleet.api.endpoint import JSON
from comfy_fleet.services.output_forms import KINDS

ERRORS = (404, 406, 409, 422, 502, 503, 504)
"""Statuses of errors that a submit has because it may wait, some of them beside its own."""
_PICTURE_ALSO = "With a picture for the answer also:"
_TOLD = {
    "200": "The job has ended, with `wait` or `Prefer: wait`: the job, as a GET shows it, however it ended. "
    "With `Accept: image/*` or `format`: the bytes of its first saved picture, in the file's own type if no "
    "other is preferred.",
    "404": f"There is no such thing, or it is somebody else's. {_PICTURE_ALSO} it was deleted.",
    "406": "With a picture for the answer: the job has succeeded, and has no picture (`no_picture`); "
    "`details.content_types` has what it has.",
    "409": f"It contradicts what is there. {_PICTURE_ALSO} the job was canceled (`canceled`).",
    "422": f"A field is wrong; the message names it. {_PICTURE_ALSO} the job has failed by its graph or "
    "input, with the job's own `error.code`, or its picture can't be had in this form (`not_convertible`).",
    "502": "With a picture for the answer: the job has failed, with its own `error.code`.",
    "503": f"The fleet takes nothing now: see Retry-After. {_PICTURE_ALSO} too many pictures are being "
    "converted (`busy`), or the moderation service could not be reached (`moderation_unavailable`).",
    "504": "With a picture for the answer: the job ran for too long (`run_timeout`), or its deadline came "
    "first (`deadline_exceeded`).",
}
_LATER = "It waits or runs: the usual answer, and with `wait` that when the time is over."
_ID = {"schema": {"type": "string", "format": "uuid"}}
_URL = {"schema": {"type": "string", "format": "uri"}}
_WAITED = {
    "Location": {**_URL, "description": "The job's address."},
    "X-Fleet-Job": {**_ID, "description": "The job's id, if `wait` or `Prefer` was sent."},
    "Preference-Applied": {
        "schema": {"type": "string", "example": "wait=60"},
        "description": "What counted of `Prefer`.",
    },
}
_PICTURE = {
    "Content-Location": {**_URL, "description": "With a picture: its address."},
    "X-Fleet-Asset": {**_ID, "description": "With a picture: its id."},
}


def waited(responses: Mapping[str, Any]) -> dict[str, Any]:
    """Return an operation's answers, by status, with what waiting makes of them."""
    made = dict(responses)
    for status, response in responses.items():
        told = {**response, "description": _TOLD.get(status, response["description"])}
        if status in ("201", "202"):
            told["description"] = _LATER
        if status in ("200", "201", "202"):
            told["headers"] = {**_WAITED, **(_PICTURE if status == "200" else {})}
        made[status] = told
    picture = {"schema": {"type": "string", "format": "binary"}}
    pictures = {f"image/{kind}": picture for kind in sorted(KINDS)}
    made["200"]["content"] = {JSON: made["200"]["content"][JSON], **pictures}
    return made
