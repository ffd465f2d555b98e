"""Figures that no card has, from a node: the listing and a refresh show a node, not a fault of ours."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis

from comfy_fleet.adapters.comfyui.json_lenient import decode
from tests.fakes.comfyui import FakeNodeApi
from tests.integration.api_kit import running

RECORDED = (Path(__file__).parents[1] / "recordings" / "GET_system_stats.json").read_text()
TOTAL = str(json.loads(RECORDED)["devices"][0]["vram_total"])


class Odd(FakeNodeApi):
    """Answers ``/system_stats`` with this text, read as a node's answers are."""

    text = ""

    async def system_stats(self, node: str) -> Mapping[str, Any]:
        found: Mapping[str, Any] = decode(self.text)
        return found


@pytest.mark.parametrize(
    "figure",
    ["NaN", "Infinity", "-Infinity", "1e999", "-1", "1.5", "9" * 400, "-" + "9" * 400, "9" * 5000,
     "null", "true", '"12 GB"', "[]", "{}", '"\\udcff"', '"' + "x" * 5000 + '"', "1e300"],
)  # fmt: skip
@pytest.mark.parametrize("everywhere", [False, True])
async def test_figures_that_no_card_has_are_not_taken(
    redis: Redis, redis_port: int, tmp_path: Path, figure: str, everywhere: bool
) -> None:
    odd = Odd()
    async with running(redis_port, tmp_path, info=odd) as api:
        await api.add_node("g1")
        odd.classes = api.info.classes
        odd.text = RECORDED.replace(TOTAL, figure)
        if everywhere:
            devices = [dict.fromkeys(json.loads(RECORDED)["devices"][0], "@")]
            system = dict.fromkeys(json.loads(RECORDED)["system"], "@")
            odd.text = json.dumps({"system": system, "devices": devices}).replace('"@"', figure)
        answer = await api.client.post("/api/v1/nodes/g1/refresh")
        assert answer.status_code in (200, 502), answer.text
        for path in ("/api/v1/nodes", "/api/v1/nodes/g1", "/api/v1/nodes-diff"):
            listed = await api.client.get(path)
            assert listed.status_code == 200, listed.text
        node = (await api.client.get("/api/v1/nodes/g1")).json()
        assert isinstance(node["vram_bytes"], int)
        assert 0 <= node["vram_bytes"] < 2**63
        assert math.isfinite(node["weight"])
        assert max(len(node[what]) for what in ("gpu", "comfyui", "pytorch", "python")) <= 200
