"""Which model files a shared result depends on."""

from collections.abc import Mapping

import pytest

from comfy_fleet.domain.graphs.inventory import Inventory
from comfy_fleet.domain.graphs.workflow import CacheMode
from comfy_fleet.domain.jobs.job import Placement
from comfy_fleet.domain.nodes.model_sizes import ModelSizes
from comfy_fleet.services.fleet_model_sizes import FleetModelSizes
from comfy_fleet.services.result_cache import CacheControl, Computation, ResultCache

FILE = "checkpoints/a.safetensors"


class _Nodes:
    inventories: tuple[Inventory, ...] = ()

    def versions(self, placement: Placement) -> tuple[str, ...]:
        return ("0.3.64",)


class _Models(FleetModelSizes):
    def __init__(self, changed: Mapping[str, float]) -> None:
        self._sizes = ModelSizes(folders={"checkpoints": {"a.safetensors": 5}}, changed=changed)


def _key(changed: Mapping[str, float]) -> str | None:
    loader = {"1": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "a.safetensors"}}}
    job = Computation(graph=loader, runs=loader, files={}, models=[(FILE, 5)], extra_data={}, params={})
    cache = ResultCache(_Nodes(), _Models(changed), jobs="all")
    keys = cache.keys(job, Placement(), CacheMode.EXACT, CacheControl())
    return keys.wanted if keys else None


@pytest.mark.parametrize("changed", [{}, {"checkpoints/b.safetensors": 3.0}])
def test_a_result_of_a_model_of_which_no_node_tells_anything_is_not_shared(
    changed: Mapping[str, float],
) -> None:
    assert _key(changed) is None


def test_a_model_that_is_replaced_makes_other_results() -> None:
    assert _key({FILE: 3.0}) == _key({FILE: 3.0}) != _key({FILE: 4.0})
