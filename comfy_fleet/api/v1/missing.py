"""REST: what people asked for and the fleet lacked."""

from typing import Annotated, Any

from pydantic import BaseModel, Field
from starlette.requests import Request
from starlette.responses import Response
from typing_extensions import TypedDict

from comfy_fleet.api import serialize
from comfy_fleet.api.answers import Time
from comfy_fleet.api.deps import artist, deps
from comfy_fleet.api.json import json_response
from comfy_fleet.api.typed_bodies import read_query
from comfy_fleet.domain.graphs.missing import PartKind
from comfy_fleet.ports.missing import AskedPart

MOST = 500
"""Parts in an answer."""


class MissingQuery(BaseModel):
    """Which parts."""

    all: bool = Field(False, description="Also what a node has by now.")


class MissingPartAnswer(TypedDict):
    """A class or a file that people asked for."""

    kind: PartKind
    name: Annotated[str, Field(description="The class, or the file as the graph names it.")]
    class_type: Annotated[str, Field(description="The class; of a file, the one that loads it.")]
    input: Annotated[str, Field(description="The input that names the file; empty for a class.")]
    package: Annotated[str, Field(description="That the class is in, as the graph says; may be empty.")]
    version: Annotated[str, Field(description="The package's, as the graph says; may be empty.")]
    url: Annotated[
        str,
        Field(description="Where the file is from, as the graph says: nobody has checked it; may be empty."),
    ]
    folder: Annotated[str, Field(description="Below `models`; may be empty.")]
    asked: Annotated[int, Field(description="How often a submit was refused for it.")]
    people: Annotated[int, Field(description="How many people asked.")]
    first_asked_at: Time
    last_asked_at: Time
    nodes_with: Annotated[list[str], Field(description="The nodes that have it now.")]
    nodes_without: Annotated[list[str], Field(description="The nodes that lack it now.")]


class MissingListAnswer(TypedDict):
    """What people asked for in the last 30 days, the newest first."""

    missing: list[MissingPartAnswer]


async def list_missing(request: Request) -> Response:
    """Classes and files for which submits were refused, and where graphs say that they can be got.

    For operators, and for people with the role artist. Each person's last 100 are remembered, for 30 days.
    URLs come from people's graphs: look at them before you load anything.
    """
    artist(request)
    d = deps(request)
    wanted = read_query(request, MissingQuery)
    asked = (await d.missing.asked())[:MOST]
    places = await d.inventories.with_parts(one.part for one in asked)
    found = [
        _row(one, having, lacking)
        for one, (having, lacking) in zip(asked, places, strict=True)
        if wanted.all or not having
    ]
    return json_response({"missing": found})


def _row(one: AskedPart, having: list[str], lacking: list[str]) -> dict[str, Any]:
    about = one.part.to_json()
    names = ("kind", "name", "class_type", "input", "package", "version", "url", "folder")
    return {
        **{name: about[name] for name in names},
        "asked": one.asked,
        "people": one.people,
        "first_asked_at": serialize.time(one.first),
        "last_asked_at": serialize.time(one.last),
        "nodes_with": having,
        "nodes_without": lacking,
    }
