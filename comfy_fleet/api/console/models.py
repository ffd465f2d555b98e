"""The console's pages about model files and classes: who has what, and what is missing for which workflow."""

import asyncio
from typing import Any
from urllib.parse import urlencode

from starlette.requests import Request
from starlette.responses import Response

from comfy_fleet.api.console.paging import Pages, number
from comfy_fleet.api.console.rendering import page
from comfy_fleet.api.deps import deps, operator
from comfy_fleet.api.endpoint import ServedRoute
from comfy_fleet.domain.graphs.file_check import FilePolicy
from comfy_fleet.domain.nodes.model_stock import ModelStock, StockedFile
from comfy_fleet.domain.text import natural
from comfy_fleet.services.workflow_fitness import MOST_KINDS, fitness_of, kinds_of

EACH = 100
EACH_WORKFLOW = 20
MOST_NAMED = 6
"""Nodes that a line names."""
MOST_ASKED = 50
MOST_PROBLEMS = 20


async def show_files(request: Request) -> Response:
    """``GET /console/models``: model files and who has them.

    Query: ``q`` (part of a name), ``folder``, ``pool``, ``lack`` (``some``: that not all nodes have; or the
    name of a node that lacks them), ``page``.
    """
    operator(request)
    d, query = deps(request), request.query_params
    chosen = {name: query.get(name, "")[:200].strip() for name in ("q", "folder", "pool", "lack")}
    stock, unread = await d.stocked_models.look(chosen["pool"] or None)
    wanted = await asyncio.to_thread(_wanted, stock, chosen)
    pages = Pages(total=len(wanted), each=EACH, number=number(query.get("page", "")))
    asked = {name: text for name, text in chosen.items() if text}
    nodes = await d.nodes.nodes()
    return page(
        request,
        "models.html",
        title="Models",
        here="models",
        rows=[_row(one, stock) for one in wanted[pages.first : pages.last]],
        all=len(stock.files),
        nodes=sum(map(len, stock.groups)),
        kinds=len(stock.groups),
        unread=unread[:MOST_NAMED],
        unread_more=max(0, len(unread) - MOST_NAMED),
        folders=sorted({one.folder for one in stock.files})[:200],
        pools=sorted({one.pool for one in nodes}),
        lacks=sorted((group[0] for group in stock.groups), key=natural)[:200],
        chosen=chosen,
        pages=pages,
        query=urlencode(asked),
    )


def _wanted(stock: ModelStock, chosen: dict[str, str]) -> list[StockedFile]:
    part, folder, lack = chosen["q"].lower(), chosen["folder"], chosen["lack"]
    group = stock.group_of.get(lack)
    return [
        one
        for one in stock.files
        if part in one.name.lower()
        and folder in ("", one.folder)
        and (lack != "some" or len(one.groups) < len(stock.groups))
        and (group is None or lack == "some" or group not in one.groups)
    ]


def _row(one: StockedFile, stock: ModelStock) -> dict[str, Any]:
    having, lacking = (
        [name for number, group in enumerate(stock.groups) if (number in one.groups) is has for name in group]
        for has in (True, False)
    )
    return {
        "file": one,
        "having": len(having),
        "lacking": len(lacking),
        "named": sorted(lacking, key=natural)[:MOST_NAMED],
    }


async def show_missing(request: Request) -> Response:
    """``GET /console/models/missing``: what workflows need and nodes lack. Query: ``q``, ``page``."""
    operator(request)
    d, query = deps(request), request.query_params
    part = query.get("q", "")[:64].strip()
    workflows = [one for one in await d.catalog.list() if part.lower() in f"{one.name} {one.title}".lower()]
    pages = Pages(total=len(workflows), each=EACH_WORKFLOW, number=number(query.get("page", "")))
    kinds, unread = kinds_of((await d.inventories.by_node()).values())
    policy = FilePolicy.parse(d.settings.deny_classes, d.settings.free_paths, d.settings.allow_classes)
    found = [
        await asyncio.to_thread(fitness_of, one, kinds, policy) for one in workflows[pages.first : pages.last]
    ]
    asked = (await d.missing.asked())[:MOST_ASKED]
    places = await d.inventories.with_parts(one.part for one in asked)
    return page(
        request,
        "missing.html",
        title="What is missing",
        here="models",
        fitness=found,
        nodes=sum(len(one.nodes) for one in kinds),
        not_looked=sum(len(one.nodes) for one in kinds[MOST_KINDS:]),
        unread=unread[:MOST_NAMED],
        unread_more=max(0, len(unread) - MOST_NAMED),
        most=MOST_NAMED,
        most_problems=MOST_PROBLEMS,
        asked=[
            {"one": one, "lacking": lacking[:MOST_NAMED], "more": max(0, len(lacking) - MOST_NAMED)}
            for one, (having, lacking) in zip(asked, places, strict=True)
            if not having
        ],
        chosen=part,
        pages=pages,
        query=urlencode({"q": part} if part else {}),
    )


routes = [
    ServedRoute("/console/models", show_files, name="console_models", console=True),
    ServedRoute("/console/models/missing", show_missing, name="console_missing", console=True),
]
