"""Comfy API v2's documented request bodies; :mod:`.jobs` and :mod:`.assets` read them.

The contract ignores unknown fields, so these models forbid none.
"""

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, WithJsonSchema
from typing_extensions import TypedDict

from comfy_fleet.api.job_options import JobOptionsBody

_HASH = "^blake3:[0-9a-fA-F]{64}$"
_PATH: dict[str, Any] = {"minLength": 1, "maxLength": 1024}
_Tag = Annotated[str, WithJsonSchema({"type": "string", "pattern": "^[A-Za-z0-9_.:/-]{1,64}$"})]


class ExtraDataBody(BaseModel):
    """What the node gets beside the graph; kept encrypted until the job's end."""

    model_config = ConfigDict(extra="forbid")

    api_key_comfy_org: str | None = Field(None, description="Pays for partner nodes.")
    extra_pnginfo: dict[str, Any] | None = Field(
        None, description='Written into pictures, e.g. `{"workflow": ...}` with the editor\'s graph.'
    )


class GraphJobBody(JobOptionsBody):
    """A job from a graph."""

    model_config = ConfigDict(extra="ignore", strict=True)

    workflow: dict[str, Any] = Field(description="The graph in ComfyUI's API format.")
    extra_data: ExtraDataBody | None = None


class _UploadFields(TypedDict, total=False):
    file_path: Annotated[
        str,
        Field(description="A relative path; the file's own name if left out.", json_schema_extra=_PATH),
    ]
    content_type: Annotated[str, Field(description="That of the part, or by the name, if left out.")]
    expected_hash: Annotated[str, Field(description="`blake3:` and 64 hexadecimal digits.")]
    expires_in: Annotated[int, Field(ge=60, le=604_800, description="Seconds.")]
    tags: Annotated[str, Field(description="At most 32: with commas between, or the field once for each.")]


class UploadBody(_UploadFields):
    """An upload. Its fields may come before or after the file."""

    file: Annotated[str, WithJsonSchema({"type": "string", "format": "binary"})]


class FromHashBody(BaseModel):
    """A record over bytes that the caller has already."""

    hash: str = Field(
        description="`blake3:` and 64 hexadecimal digits.", json_schema_extra={"pattern": _HASH}
    )
    file_path: str | None = Field(None, description="A relative path.", json_schema_extra=_PATH)
    tags: list[_Tag] | None = Field(None, max_length=32)
    expires_in: int | None = Field(None, ge=60, le=604_800, description="Seconds.")
