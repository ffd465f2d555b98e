"""REST: pools, with their nodes, HAProxy's slots and an operator's settings."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict, Field
from starlette.requests import Request
from starlette.responses import Response

from comfy_fleet.api.audit import audit
from comfy_fleet.api.deps import deps, operator
from comfy_fleet.api.json import json_response
from comfy_fleet.api.typed_bodies import read
from comfy_fleet.domain.errors import NotFound
from comfy_fleet.domain.nodes.node import NodeState, check_name
from comfy_fleet.domain.nodes.pool import LEAST_SILENCE_S, LONGEST_PATIENCE_S, LONGEST_S, Pool


class PoolBody(BaseModel):
    """What is set for a pool. What is null or left out is not: the fleet's settings hold."""

    model_config = ConfigDict(
        extra="forbid",
        strict=True,
        json_schema_extra={"example": {"free_idle_s": 120, "free_on_oom": None}},
    )

    free_idle_s: float | None = Field(
        None,
        ge=0,
        le=LONGEST_S,
        allow_inf_nan=False,
        description="Idle seconds after which a node unloads its models; 0: never.",
    )
    free_on_oom: bool | None = Field(
        None, description="Whether a node on which a job ran out of memory unloads its models."
    )
    patience_s: float | None = Field(
        None,
        ge=0,
        le=LONGEST_PATIENCE_S,
        allow_inf_nan=False,
        description="For how many seconds a job may be passed over beyond its turn, so that nodes keep the "
        "models that they have; 0: never.",
    )
    silence_s: float | None = Field(
        None,
        ge=LEAST_SILENCE_S,
        le=LONGEST_S,
        allow_inf_nan=False,
        description="After how many seconds without a sign of progress a run is interrupted.",
    )


class PoolChangeBody(PoolBody):
    """What changes. What is left out stays; what is null is not set any more: the fleet's settings hold."""

    model_config = ConfigDict(json_schema_extra={"example": {"free_idle_s": 120}})


async def list_pools(request: Request) -> Response:
    """Every pool that has nodes, a slot in HAProxy, or something set."""
    operator(request)
    d = deps(request)
    states = await d.nodes.states()
    known = {pool.name: pool for pool in await d.pools.pools()}
    names = sorted(known.keys() | {one.node.pool for one in states})
    return json_response({"pools": [_row(known.get(name, Pool(name=name)), states) for name in names]})


async def get_pool(request: Request) -> Response:
    """One pool; 404 if it has no nodes, no slot, and nothing is set."""
    operator(request)
    d = deps(request)
    states = await d.nodes.states()
    name = check_name("pool", request.path_params["pool"])
    pool = await d.pools.get(name)
    if not (pool.is_set or pool.slot or any(one.node.pool == name for one in states)):
        raise NotFound(f"no pool {name!r}")
    return json_response(_row(pool, states))


async def set_pool(request: Request) -> Response:
    """Replaces all that was set; also for a pool that has no nodes yet.

    Every process goes by it within seconds. Jobs that wait for the pool are not touched.
    """
    operator(request)
    d = deps(request)
    name, body = request.path_params["pool"], await read(request, PoolBody)
    await d.pools.set(Pool(name=name, **body.model_dump()))
    await audit(request, "pool.changed", pool=name, **body.model_dump())
    return json_response(_row(await d.pools.get(name), await d.nodes.states()))


async def change_pool(request: Request) -> Response:
    """Changes only what the body names: the rest stays, even what somebody else sets at the same time."""
    operator(request)
    d = deps(request)
    name, body = request.path_params["pool"], await read(request, PoolChangeBody)
    await d.pools.change(name, body.model_dump(exclude_unset=True))
    await audit(request, "pool.changed", pool=name, **body.model_dump(exclude_unset=True))
    return json_response(_row(await d.pools.get(name), await d.nodes.states()))


def _row(pool: Pool, states: Sequence[NodeState]) -> dict[str, Any]:
    verdicts = Counter(one.verdict for one in states if one.node.pool == pool.name)
    return {
        "name": pool.name,
        "slot": pool.slot,
        "nodes": verdicts.total(),
        "up": verdicts["up"],
        "free_idle_s": pool.free_idle_s,
        "free_on_oom": pool.free_on_oom,
        "patience_s": pool.patience_s,
        "silence_s": pool.silence_s,
    }
