"""The console's pages about models, usage and people, over HTTP."""

import csv
import html
import io
import json
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis

from comfy_fleet.domain.graphs.missing import MissingPart, PartKind
from comfy_fleet.domain.graphs.part_sources import PartSource
from comfy_fleet.domain.nodes.model_stock import ModelStock, model_stock
from comfy_fleet.services.stocked_models import StockedModels
from tests.factories import GRAPH, sampled
from tests.integration.api_kit import Api, code, object_info, running
from tests.integration.test_console import ANN, BEN, CONSOLE, FIG, HOSTILE, OPS, PART, harmless, shown
from tests.key_files import write_keys

ODD = HOSTILE.replace("\x00", "")


@pytest.fixture
async def api(redis_port: int, redis: Redis, tmp_path: Path) -> AsyncIterator[Api]:
    folder = tmp_path / "workflows/painted"
    folder.mkdir(parents=True)
    (folder / "workflow.json").write_text(json.dumps(sampled()))
    (folder / "workflow.toml").write_text(f"title = {json.dumps(ODD)}\n")
    keys = "ann ann-key-0123456789\nben ben-key-0123456789\nops ops-key-0123456789 operator\n"
    write_keys(tmp_path / "keys", f"{keys}fig fig-key-0123456789 metrics\n")
    made = running(redis_port, tmp_path, keys_file=tmp_path / "keys", workflows=tmp_path / "workflows")
    async with made as api:
        yield api


async def add(api: Api, name: str, *files: str) -> None:
    """Add a node that has these checkpoints."""
    info: Any = object_info()
    info["CheckpointLoaderSimple"]["input"]["required"]["ckpt_name"][0] = list(files)
    await api.add_node(name, info=False)
    api.info.serve(name, info)
    assert await api.deps.inventories.refresh(name)


async def test_only_operators_see_models_and_people(api: Api) -> None:
    for path in ("models", "models/missing", "models/unequal", "people"):
        for who in (ANN, FIG):
            refused = await api.client.get(f"/console/{path}", headers={**CONSOLE, **who})
            assert code(refused) == (403, "forbidden")
    assert code(await api.client.get("/console/usage", headers={**CONSOLE, **FIG})) == (403, "forbidden")


async def test_the_front_page_of_the_same_origin_leads_there(api: Api) -> None:
    assert 'href="console"' in (await api.client.get("/", headers=CONSOLE)).text
    assert 'href="console"' not in (await api.client.get("/k/ops-key-0123456789/", headers=CONSOLE)).text


async def test_models_are_shown_with_who_lacks_them(api: Api) -> None:
    await add(api, "g1", "both.safetensors", "m.safetensors")
    await add(api, "g2", "both.safetensors", f"{ODD}.safetensors")
    text = await shown(api, "models?folder=checkpoints", OPS)
    harmless(text)
    assert re.search(r"both\.safetensors.*?all 2", text) and "2 kinds differ" in text
    assert re.search(r"m\.safetensors</bdi>.*?1 of 2 .*?missing on <bdi>g2", text)
    lacking = await shown(api, "models?lack=g2", OPS, PART)
    assert "m.safetensors" in lacking and "both" not in lacking and "<html" not in lacking
    assert "both" not in await shown(api, "models?lack=some", OPS, PART)
    assert "No file is like that" in await shown(api, "models?q=nothing", OPS, PART)
    missing = await shown(api, "models/missing", OPS)
    harmless(missing)
    assert "1 of 2" in missing and re.search(r"g2</bdi>: 1 fault", missing)
    unequal = await shown(api, "models/unequal", OPS)
    harmless(unequal)
    assert "2 nodes of 2 kinds" in unequal and "checkpoints/both" not in unequal
    assert re.search(r"checkpoints/m\.safetensors</bdi>.*?>file<.*?<bdi>yes</bdi>.*?>none<", unequal)
    assert "nothing to compare" in await shown(api, "models/unequal?pool=none&page=x&group=99", OPS, PART)
    assert "can't all run the same" in html.unescape(await shown(api, "nodes", OPS))


async def test_what_people_asked_for_is_shown_with_where_it_is_from(api: Api) -> None:
    await add(api, "g1", "m.safetensors")
    source = PartSource(package=ODD, url="https://example.com/x")
    await api.deps.missing.note(
        "ann", [MissingPart(kind=PartKind.CLASS, name=ODD, class_type=ODD, source=source)]
    )
    text = await shown(api, "models/missing", OPS)
    harmless(text)
    assert "What people asked for" in text and "https://example.com/x" in text and 'href="https' not in text


async def test_a_page_of_many_unequal_nodes_stays_small(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    files: dict[tuple[str, str], int | None] = {("loras", f"{one}.safetensors"): 1 for one in range(2000)}
    having = [((f"n{node}",), {**files, ("loras", f"own{node}"): 2}) for node in range(300)]
    stock = model_stock(having)

    async def look(self: StockedModels, pool: str | None = None) -> tuple[ModelStock, tuple[str, ...]]:
        return stock, ()

    monkeypatch.setattr(StockedModels, "look", look)
    for path in ("models", "models?lack=some", "models?page=99"):
        text = await shown(api, path, OPS)
        assert text.count('<tr><th scope="row"') <= 100 and len(text) < 100_000, path
    assert "and 293 more" in await shown(api, "models?lack=some", OPS)


async def test_usage_is_shown_and_saved_as_a_table(api: Api) -> None:
    await api.add_node("g1")
    for who in (ANN, BEN):
        made = (await api.client.post("/api/v2/jobs", json={"workflow": GRAPH}, headers=who)).json()
        await api.finish(await api.claim(made["id"]), seconds=90)
    text = await shown(api, "usage", OPS)
    harmless(text)
    assert "<bdi>ann</bdi>" in text and "<bdi>ben</bdi>" in text and "yours alone" not in text
    days, seconds = json.loads(html.unescape(re.findall(r'data-plot="([^"]*)"', text)[0]))
    assert len(days) == len(seconds) == 30 and days[-1] - days[0] == 29 * 86400
    own = await shown(api, "usage?by=workflow&days=7", ANN)
    assert "yours alone" in own and "<bdi>graphs</bdi>" in own
    table = await api.client.get("/console/usage.csv?by=user&days=7", headers={**CONSOLE, **OPS})
    assert table.headers["content-type"].startswith("text/csv")
    rows = list(csv.DictReader(io.StringIO(table.text)))
    assert [(row["user"], row["jobs"]) for row in rows] == [("ann", "1"), ("ben", "1")]
    mine = await api.client.get("/console/usage.csv", headers={**CONSOLE, **ANN})
    assert "ben" not in mine.text
    assert "<bdi>ann</bdi>" in await shown(api, "usage?by=nonsense&days=1e9&page=-1", OPS)


async def test_people_are_shown_with_limits_and_without_secrets(api: Api) -> None:
    bodies: list[tuple[str, dict[str, Any]]] = [
        ("tenants", {"name": "shop", "limits": {"queued": "5"}, "deny_classes": "PreviewImage", "share": 2}),
        ("users", {"name": "cid", "tenant": "shop"}),
        ("keys", {"user": "cid", "roles": ["artist"], "note": ODD[:200], "expires_in_s": 3600}),
    ]
    key: dict[str, Any] = {}
    for path, body in bodies:
        made = await api.client.post(f"/api/v1/{path}", json=body, headers=OPS)
        assert made.status_code == 201, made.text
        key = made.json()
    text = await shown(api, "people", OPS)
    harmless(text)
    assert key["id"] in text and "artist" in text and "PreviewImage" in text and "cid" in text
    assert key["key"] not in text and "ann-key" not in text
    for other in api.deps.keys.ring.people.keys.values():
        assert other.digest not in text
    of_shop = await shown(api, "people?tenant=shop", OPS, PART)
    assert "cid" in of_shop and "ann" not in of_shop
    assert "No user is like that" in await shown(api, "people?q=nobody", OPS, PART)
