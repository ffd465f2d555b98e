"""REST: model files that agents fetch. Operators order them, agents tell how far they are."""

import re
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field
from starlette.requests import Request
from starlette.responses import Response
from typing_extensions import TypedDict

from comfy_fleet.api import serialize
from comfy_fleet.api.answers import Time
from comfy_fleet.api.audit import audit
from comfy_fleet.api.deps import deps, operator
from comfy_fleet.api.host_names import is_loopback
from comfy_fleet.api.json import json_response
from comfy_fleet.api.typed_bodies import MAX_URL, read
from comfy_fleet.api.v1.hosts import NodeName, agent_of, is_local
from comfy_fleet.domain.errors import NotFound
from comfy_fleet.domain.networks import parse_networks
from comfy_fleet.domain.nodes.host import HOST_LABEL
from comfy_fleet.domain.nodes.model_fetch import LONGEST_WORDS, FetchState, HostFetch, ModelFetch
from comfy_fleet.domain.nodes.node_networks import why_not
from comfy_fleet.domain.outbound import parse_target

_ADDRESS = re.compile(r"(?:[A-Za-z0-9._-]{1,253}|\[[0-9A-Fa-f:.]{2,45}\]):[1-9][0-9]{0,4}")
_MOST_BYTES = 2**53


class ModelFetchBody(BaseModel):
    """A model file to fetch."""

    model_config = ConfigDict(
        extra="forbid",
        strict=True,
        json_schema_extra={
            "example": {
                "url": "https://models.example.com/kids_animal.safetensors",
                "folder": "loras",
                "sha256": "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
            }
        },
    )

    url: str = Field(max_length=MAX_URL, description="Where it is: http or https, without user and password.")
    folder: str = Field(max_length=64, description="The folder below `models`, such as `loras`.")
    sha256: str = Field(max_length=100, description="Its hash, in hexadecimal digits.")
    name: str | None = Field(
        None, max_length=1000, description="Its name there, also below folders; as the URL ends if left out."
    )
    pool: str | None = Field(None, max_length=100, description="Only nodes of this pool; all if left out.")
    allow_pickle: bool = Field(
        False, description="Also .ckpt, .pt, .pth and .bin, which can run code where they are loaded."
    )


class HostFetchAnswer(TypedDict):
    """How far a host is."""

    host: str
    nodes: Annotated[list[str], Field(description="Its nodes that shall have the file.")]
    state: FetchState
    words: Annotated[str, Field(description="Why, or where it got the file.")]
    bytes: Annotated[int, Field(description="How many are there.")]
    total: Annotated[int | None, Field(description="How many there will be; null: not known.")]
    told_at: Annotated[Time | None, Field(description="When its agent said so; null: it has not yet.")]


class ModelFetchAnswer(TypedDict):
    """A model file that agents fetch."""

    id: str
    url: Annotated[str, Field(description="Without its query.")]
    folder: str
    name: str
    sha256: str
    pool: Annotated[str | None, Field(description="null: all.")]
    by: Annotated[str, Field(description="Who wants it.")]
    created_at: Time
    state: Annotated[FetchState, Field(description="`failed` if a host failed, once all are through.")]
    canceled: Annotated[bool, Field(description="Whether it was canceled.")]
    hosts: list[HostFetchAnswer]


class ModelFetchListAnswer(TypedDict):
    """Model files that agents fetch, the newest first."""

    fetches: list[ModelFetchAnswer]


class ToldFetchBody(BaseModel):
    """How far an agent is with a file."""

    model_config = ConfigDict(extra="forbid")

    id: str = Field(max_length=36)
    state: FetchState
    words: str = Field("", max_length=LONGEST_WORDS)
    bytes: int = Field(0, ge=0, le=_MOST_BYTES)
    total: int | None = Field(None, ge=0, le=_MOST_BYTES)


class HostModelsBody(BaseModel):
    """What an agent says of its nodes' model files."""

    model_config = ConfigDict(extra="forbid")

    instance: str = Field(max_length=64)
    changed: list[NodeName] = Field(
        default_factory=list, max_length=256, description="Nodes whose folders of models have changed."
    )
    fetches: list[ToldFetchBody] = Field(default_factory=list, max_length=100)
    serves: str = Field("", max_length=300, description="HOST:PORT where it gives files to other agents.")


class HostModelsAnswer(TypedDict):
    """It was noted."""

    ok: bool


async def fetch_model(request: Request) -> Response:
    """Agents of the nodes' hosts download it, check its hash, and put it into the folder."""
    who = operator(request)
    body = await read(request, ModelFetchBody)
    fetch = await deps(request).model_fetching.begin(
        body.url,
        folder=body.folder,
        sha256=body.sha256,
        name=body.name,
        pool=body.pool,
        pickles=body.allow_pickle,
        by=who.owner,
    )
    await audit(
        request,
        "model.fetched",
        fetch=fetch.id,
        url=parse_target(fetch.url).shown,
        file=f"{fetch.folder}/{fetch.name}",
        sha256=fetch.sha256,
        pool=body.pool,
        allow_pickle=body.allow_pickle,
    )
    return json_response(_answer(fetch), 202)


async def list_fetches(request: Request) -> Response:
    """The last 200 of the last 14 days."""
    operator(request)
    return json_response({"fetches": [_answer(one) for one in await deps(request).model_fetching.recent()]})


async def get_fetch(request: Request) -> Response:
    """How far each host is."""
    operator(request)
    return json_response(_answer(await deps(request).model_fetching.get(request.path_params["fetch"])))


async def cancel_fetch(request: Request) -> Response:
    """Agents stop. Hosts that have the file keep it."""
    operator(request)
    fetch = await deps(request).model_fetching.cancel(request.path_params["fetch"])
    await audit(request, "model.fetch_canceled", fetch=fetch.id, file=f"{fetch.folder}/{fetch.name}")
    return json_response(_answer(fetch))


async def host_models(request: Request) -> Response:
    """An agent tells that folders have changed, and how far it is with files. For agents only."""
    host = await agent_of(request)
    d, body = deps(request), await read(request, HostModelsBody)
    await d.hosts.admit(host, body.instance)
    own = {one.name for one in await d.nodes.nodes() if one.labels.get(HOST_LABEL) == host and one.agent}
    again = set(body.changed) & own
    serves = _reachable(request, body.serves)
    for one in body.fetches:
        told = HostFetch(state=one.state, words=one.words, bytes=one.bytes, total=one.total)
        again |= set(await d.model_fetching.told(host, one.id, told, serves=serves)) & own
    for name in sorted(again):
        try:
            await d.nodes.want_reading(name)
        except NotFound:  # it was removed just now
            continue
    answer: HostModelsAnswer = {"ok": True}
    return json_response(answer)


def _reachable(request: Request, address: str) -> str:
    """Return where an agent gives files to others, if these may be sent there; else an empty text."""
    if not _ADDRESS.fullmatch(address):
        return ""
    name, local = address.rpartition(":")[0].strip("[]"), is_local(request)
    if is_loopback(name) and not local:
        return ""
    allowed = parse_networks(deps(request).settings.node_networks)
    return "" if why_not(name, allowed, local=local) else address


def _answer(fetch: ModelFetch) -> ModelFetchAnswer:
    return {
        "id": fetch.id,
        "url": parse_target(fetch.url).shown,
        "folder": fetch.folder,
        "name": fetch.name,
        "sha256": fetch.sha256,
        "pool": fetch.pool or None,
        "by": fetch.by,
        "created_at": serialize.time(fetch.created_at),
        "state": fetch.state,
        "canceled": fetch.canceled,
        "hosts": [
            {
                "host": host,
                "nodes": list(nodes),
                "state": (told := fetch.of(host)).state,
                "words": told.words,
                "bytes": told.bytes,
                "total": told.total,
                "told_at": serialize.time(told.at) if told.at else None,
            }
            for host, nodes in sorted(fetch.hosts.items())
        ],
    }
