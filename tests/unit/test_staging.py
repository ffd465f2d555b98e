"""Staging: only files that belonged to the job when it was submitted are put onto a node."""

from typing import Any, cast

import orjson
import pytest

from comfy_fleet.domain.graphs.graph import asset_reference
from comfy_fleet.domain.jobs.job import Job, JobStatus
from comfy_fleet.ports.assets import AssetStore
from comfy_fleet.ports.comfyui import NodeApi
from comfy_fleet.ports.runs import Claim
from comfy_fleet.services.staging import StagingError, stage


def claim(graph: Any, uploads: dict[str, str]) -> Claim:
    job = Job(
        id="j", owner="o", status=JobStatus.RUNNING, created_at=100, expires_at=200, graph_hash="h",
        profile="p", uploads=uploads,
    )  # fmt: skip
    return Claim(job=job, graph=orjson.dumps(graph), run="r", node="n", token="t", attempt=0)


async def test_an_asset_that_nobody_looked_at_is_never_staged() -> None:
    graph = {"1": {"class_type": "LoadImage", "inputs": {"image": asset_reference("somebody-s")}}}
    nobody = cast(Any, None)
    with pytest.raises(StagingError, match="was not part of the job") as caught:
        await stage(graph, claim(graph, {}), nodes=cast(NodeApi, nobody), assets=cast(AssetStore, nobody))
    assert caught.value.fatal
