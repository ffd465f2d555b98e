"""What tests of batches share: a stored workflow, and requests to an API on which nothing runs."""

from pathlib import Path
from typing import Any

import orjson

from tests.fleet import until
from tests.integration.api_kit import Api
from tests.integration.test_batches import GRAPH, TABLE

PATH = "/api/v1/workflows/card/batches"
NUMBERS = (
    TABLE
    + """
[parameters.width]
type = "integer"
target = { title = "Wide", input = "width" }
default = 64
min = 8
max = 512
multiple_of = 8

[parameters.strength]
type = "number"
target = { title = "Wide", input = "strength" }
default = 1.0
"""
)


def folder(into: Path) -> Path:
    """Write a stored workflow with a picture, a text and numbers."""
    made = into / "workflows" / "card"
    made.mkdir(parents=True)
    graph = {
        **GRAPH,
        "3": {
            "class_type": "EmptyImage",
            "inputs": {"width": 64, "height": 64, "batch_size": 1, "color": 0},
            "_meta": {"title": "Wide"},
        },
        "4": {"class_type": "PreviewImage", "inputs": {"images": ["3", 0]}},
    }
    (made / "workflow.json").write_bytes(orjson.dumps(graph))
    (made / "workflow.toml").write_text(NUMBERS.replace('input = "strength"', 'input = "color"'))
    return into / "workflows"


async def post(api: Api, body: Any, status: int = 201, **headers: str) -> dict[str, Any]:
    answer = await api.client.post(PATH, json=body, headers=headers)
    assert answer.status_code == status, answer.text
    found: dict[str, Any] = answer.json()
    return found


async def show(api: Api, batch: dict[str, Any], query: str = "") -> dict[str, Any]:
    answer = await api.client.get(f"/api/v1/batches/{batch['id']}{query}")
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


async def queued(api: Api, batch: dict[str, Any], count: int) -> dict[str, Any]:
    """Wait until all of a batch is in the queue."""
    found: dict[str, Any] = {}

    async def over() -> bool:
        nonlocal found
        found = await show(api, batch)
        return bool(found["waiting"] == 0)

    await until(over, what="all items are queued")
    assert found["counts"]["queued"] == count
    return found


async def keys(api: Api, pattern: str) -> list[bytes]:
    client: Any = api.stores.redis
    return [key async for key in client.scan_iter(match=pattern)]


def item(name: str = "cat.png", **params: Any) -> dict[str, Any]:
    return {"params": {"picture": name, **params}}
