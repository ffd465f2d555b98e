"""REST: the nodes' model files, for operators."""

from typing import Annotated

from pydantic import BaseModel, Field
from starlette.requests import Request
from starlette.responses import Response
from typing_extensions import TypedDict

from comfy_fleet.api.deps import deps, operator
from comfy_fleet.api.json import json_response
from comfy_fleet.api.typed_bodies import read_query
from comfy_fleet.domain.errors import BadInput, NotFound
from comfy_fleet.domain.nodes.model_stock import ModelStock, StockedFile

MOST = 5000
"""Files in an answer."""


class StockQuery(BaseModel):
    """Which files."""

    pool: str | None = Field(None, max_length=100, description="Only nodes of this pool count.")
    folder: str | None = Field(None, max_length=300, description="Only files in this folder below `models`.")
    node: str | None = Field(None, max_length=100, description="Only files that this node has.")
    missing_on: str | None = Field(
        None, max_length=100, description="Only files that this node lacks and another one has."
    )
    unequal: bool = Field(False, description="Only files that not all nodes have.")
    after: str = Field("", max_length=2000, description="`next` of the answer before.")
    limit: int = Field(1000, ge=1, le=MOST, description="Most files in the answer.")


class StockGroupAnswer(TypedDict):
    """Nodes with the same model files."""

    nodes: list[str]
    files: Annotated[int, Field(description="How many files they have.")]


class StockedFileAnswer(TypedDict):
    """A model file, and who has it."""

    folder: Annotated[str, Field(description="Below `models`; `models` itself where nothing tells it.")]
    name: Annotated[str, Field(description="With its folders below that one.")]
    bytes: Annotated[int | None, Field(description="null: no node has told its size.")]
    nodes: Annotated[int, Field(description="How many nodes have it.")]
    groups: Annotated[list[int], Field(description="Who has it: positions in `groups` of the answer.")]


class ModelStockAnswer(TypedDict):
    """The nodes' model files."""

    groups: Annotated[list[StockGroupAnswer], Field(description="The nodes; the largest group first.")]
    files: Annotated[list[StockedFileAnswer], Field(description="By folder and name.")]
    total: Annotated[int, Field(description="How many files there are that were asked for.")]
    next: Annotated[str | None, Field(description="`after` of the next question; null: this was all.")]
    unread: Annotated[list[str], Field(description="Nodes whose files are not known yet.")]


async def list_models(request: Request) -> Response:
    """Model files that the nodes' classes offer, and which nodes have each.

    Nodes with the same files are one group, so that the answer stays small with hundreds of equal nodes.
    """
    operator(request)
    query = read_query(request, StockQuery)
    stock, unread = await deps(request).stocked_models.look(query.pool)
    for name in (query.node, query.missing_on):
        if name is not None and name not in stock.group_of:
            if name in unread:
                raise BadInput(f"node {name} was not read yet: ask again", details={"field": "node"})
            raise NotFound(f"no node {name[:80]!r}{' in this pool' if query.pool else ''}")
    chosen = [one for one in stock.files if _asked_for(one, query, stock)]
    rest = [one for one in chosen if not query.after or _key(one) > tuple(query.after.split("/", 1))]
    shown = rest[: query.limit]
    counts = [0] * len(stock.groups)
    for one in stock.files:
        for group in one.groups:
            counts[group] += 1
    answer: ModelStockAnswer = {
        "groups": [
            {"nodes": list(nodes), "files": count} for nodes, count in zip(stock.groups, counts, strict=True)
        ],
        "files": [
            {
                "folder": one.folder,
                "name": one.name,
                "bytes": one.size,
                "nodes": stock.having(one),
                "groups": list(one.groups),
            }
            for one in shown
        ],
        "total": len(chosen),
        "next": "/".join(_key(shown[-1])) if len(rest) > len(shown) else None,
        "unread": list(unread),
    }
    return json_response(answer)


def _key(one: StockedFile) -> tuple[str, ...]:
    return one.folder, one.name


def _asked_for(one: StockedFile, query: StockQuery, stock: ModelStock) -> bool:
    return not (
        (query.folder is not None and one.folder != query.folder)
        or (query.node is not None and stock.group_of[query.node] not in one.groups)
        or (query.missing_on is not None and stock.group_of[query.missing_on] in one.groups)
        or (query.unequal and len(one.groups) == len(stock.groups))
    )
