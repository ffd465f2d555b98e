"""The port to model files that agents are to fetch."""

from collections.abc import Sequence
from typing import Protocol

from comfy_fleet.domain.nodes.model_fetch import HostFetch, ModelFetch


class ModelFetches(Protocol):
    """Orders to fetch model files, and what hosts say of them. All methods raise StoreDown."""

    async def add(self, fetch: ModelFetch) -> None:
        """Keep an order. Raises LimitReached while too many are not over."""

    async def get(self, fetch_id: str) -> ModelFetch | None:
        """Return an order; None if there is none."""

    async def recent(self) -> Sequence[ModelFetch]:
        """Return the orders of the last days, the newest first."""

    async def open(self) -> Sequence[ModelFetch]:
        """Return the orders that are not over."""

    async def tell(self, fetch: ModelFetch, host: str, told: HostFetch, *, serves: str = "") -> bool:
        """Note what a host says.

        Its end is noted once, and nothing after it.

        Returns:
            Whether this is its end, and it was not known before.
        """

    async def cancel(self, fetch_id: str) -> None:
        """Note that an order is not wanted any more."""

    async def close(self, fetch: ModelFetch) -> None:
        """Note that all hosts are through: what is secret in its URL is forgotten."""
