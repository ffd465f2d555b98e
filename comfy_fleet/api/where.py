"""Where a job may run: the fields that every face takes, read in one way."""

from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from comfy_fleet.api.errors import HttpError
from comfy_fleet.api.typed import checked
from comfy_fleet.domain.errors import BadInput
from comfy_fleet.domain.nodes.eligibility import PlacementRequest
from comfy_fleet.domain.nodes.node import check_name


class WhereBody(BaseModel):
    """Pools, zone and labels."""

    model_config = ConfigDict(extra="forbid", strict=True)

    pool: str | None = Field(None, max_length=63, description="The pool that it must run in.")
    prefer_pool: str | None = Field(None, max_length=63, description="The pool that is asked first.")
    spill_to: list[str] = Field(
        default_factory=list, max_length=16, description="With `pool`: pools that are asked next."
    )
    zone: str = Field("", max_length=64, description="The zone that it must run in.")
    labels: dict[str, str] = Field(
        default_factory=dict, max_length=16, description="Labels that the node must carry."
    )


def where(body: WhereBody) -> PlacementRequest:
    """Return what a body says.

    Raises:
        HttpError: 422: a pool's name is none, or they contradict each other.
    """
    if body.pool is not None:
        _check_pool("pool", body.pool)
    if body.prefer_pool is not None:
        _check_pool("prefer_pool", body.prefer_pool)
    for pool in body.spill_to:
        _check_pool("spill_to", pool)
    if body.pool is not None and body.prefer_pool is not None:
        raise _wrong("pool and prefer_pool exclude each other: name one", "pool")
    if body.spill_to and body.pool is None:
        raise _wrong("spill_to needs pool", "spill_to")
    return PlacementRequest(
        pool=body.pool,
        prefer=body.prefer_pool,
        spill_to=tuple(body.spill_to),
        zone=body.zone,
        labels=body.labels,
    )


def where_in(body: dict[str, Any]) -> PlacementRequest:
    """Return what a body says that may hold anything else besides.

    Raises:
        HttpError: 422: a field has another form, or see :func:`where`.
    """
    given = {name: body[name] for name in WhereBody.model_fields if body.get(name) is not None}
    return where(checked(given, WhereBody)) if given else PlacementRequest()


def _check_pool(field: str, pool: str) -> None:
    try:
        check_name(field, pool)
    except BadInput as error:
        raise _wrong(error.message, field) from None


def _wrong(message: str, field: str) -> HttpError:
    return HttpError(422, "invalid_request", message, details={"field": field})
