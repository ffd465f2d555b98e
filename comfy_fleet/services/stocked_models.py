"""Which model files the fleet's nodes have, for operators: from what is in memory, without a question."""

import asyncio
from collections.abc import Mapping

from comfy_fleet.domain.graphs.inventory import Inventory
from comfy_fleet.domain.nodes.eligibility import Candidate
from comfy_fleet.domain.nodes.model_sizes import ModelSizes
from comfy_fleet.domain.nodes.model_stock import ModelStock, files_of, model_stock
from comfy_fleet.services.fleet_model_sizes import FleetModelSizes
from comfy_fleet.services.inventories import NodeInventories


class StockedModels:
    """Knows the nodes' model files.

    Equal nodes share an inventory, and each is read once, until it or what is known of sizes changes.

    Args:
        inventories: What the nodes have.
        sizes: How large files are.
    """

    def __init__(self, inventories: NodeInventories, sizes: FleetModelSizes) -> None:
        self._inventories = inventories
        self._sizes = sizes
        self._read: dict[int, tuple[Inventory, ModelSizes, Mapping[tuple[str, str], int | None]]] = {}

    async def look(self, pool: str | None = None) -> tuple[ModelStock, tuple[str, ...]]:
        """Return the model files, and the nodes of which none are known yet.

        Args:
            pool: Only nodes of this pool.
        """
        candidates = [
            one
            for one in (await self._inventories.by_node()).values()
            if pool is None or one.node.pool == pool
        ]
        unread = tuple(sorted(one.node.name for one in candidates if one.inventory is None))
        stock = await asyncio.to_thread(self._stock, candidates, self._sizes.sizes)
        return stock, unread

    def _stock(self, candidates: list[Candidate], sizes: ModelSizes) -> ModelStock:
        nodes: dict[int, list[str]] = {}
        read: dict[int, tuple[Inventory, ModelSizes, Mapping[tuple[str, str], int | None]]] = {}
        for one in candidates:
            if one.inventory is None:
                continue
            key = id(one.inventory)
            nodes.setdefault(key, []).append(one.node.name)
            kept = self._read.get(key)
            if kept is None or kept[0] is not one.inventory or kept[1] is not sizes:
                kept = read.get(key) or (one.inventory, sizes, files_of(one.inventory, sizes))
            read[key] = kept
        self._read = read  # those that no node has any more are forgotten
        return model_stock((names, read[key][2]) for key, names in nodes.items())
