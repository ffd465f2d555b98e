"""How large a job's model files are: known in memory at every submit, asked of nodes in the background.

Nodes with the same inventory have the same files, so only some of each kind are asked, by one process for
all; others, and those that start later, read from the store what it was told. A node that takes long, or
says nothing that makes sense, is left out.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol

from blake3 import blake3

from comfy_fleet.domain.errors import NodeError
from comfy_fleet.domain.graphs.graph import Graph
from comfy_fleet.domain.graphs.inventory import Inventory
from comfy_fleet.domain.graphs.named_models import named_models
from comfy_fleet.domain.nodes import model_lists
from comfy_fleet.domain.nodes.model_sizes import (
    MOST_FILES,
    Folders,
    ModelSizes,
    agreed,
    told_changes,
    told_sizes,
)
from comfy_fleet.domain.nodes.node import NodeState
from comfy_fleet.domain.text import natural
from comfy_fleet.ports.nodes import SizeStore
from comfy_fleet.tasks import forever
from comfy_fleet.timeouts import Timeout

logger = logging.getLogger(__name__)

FRESH_S, AGAIN_S = 300.0, 15
"""How often nodes are asked, and how often at most if nodes come that have something else."""
LOOK_S = 2.0
"""How often each process looks at what is stored."""
PATIENCE_S = 20.0
"""How long one node has for all its folders; what it has said by then counts."""
MOST_FOLDERS = 200
_ASKED_OF_A_KIND, _MOST_ASKED, _AT_ONCE = 3, 64, 8


class ModelFolders(Protocol):
    """The part of :class:`comfy_fleet.ports.comfyui.NodeApi` that is needed here."""

    async def listing(self, node: str, path: str, query: Mapping[str, str] | None = None) -> Any:
        """Return the JSON of one of ComfyUI's own lists; None if there is none. Raises NodeError."""


class FleetNodes(Protocol):
    """The nodes, in memory."""

    @property
    def states(self) -> Mapping[str, NodeState]:
        """The nodes by name."""

    @property
    def inventories(self) -> Sequence[Inventory]:
        """What they have, each different one once."""


class FleetModelSizes:
    """Knows the sizes of model files.

    Args:
        fleet: Which nodes there are.
        ask: Asks one of them.
        store: What was asked before, by any process.
        clock: Unix seconds.
    """

    def __init__(
        self,
        fleet: FleetNodes,
        ask: ModelFolders,
        store: SizeStore,
        *,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._fleet = fleet
        self._ask = ask
        self._store = store
        self._clock = clock
        self._sizes = ModelSizes()
        self._digest = ""
        self._rounds = 0

    @property
    def known(self) -> int:
        """How many files' sizes are known."""
        return len(self._sizes)

    @property
    def sizes(self) -> ModelSizes:
        """All that is known; another object whenever that changes."""
        return self._sizes

    def of(self, graph: Graph) -> tuple[tuple[str, int], ...]:
        """Return the model files of a graph as ``FOLDER/NAME`` with their bytes; guessed where none is known.

        Args:
            graph: What runs of a checked graph.
        """
        return self._sizes.of(named_models(graph, self._fleet.inventories, self._sizes.lists))

    def identities(self, files: Iterable[tuple[str, int]]) -> list[tuple[str, int, float]]:
        """Return files ``FOLDER/NAME`` with their bytes, and when any node's was changed last; 0: unknown."""
        return [(place, size, self._sizes.changed.get(place, 0.0)) for place, size in files]

    async def run(self) -> None:
        """Keep the sizes fresh until canceled."""
        await forever(self.look, name="sizes of model files", pause_s=lambda: LOOK_S)

    async def look(self) -> None:
        """Read what is stored, and ask the nodes if that is due and no other process does it."""
        stored = await self._store.load(self._digest)
        if stored is not None and stored.folders is not None:
            self._sizes = ModelSizes(folders=stored.folders, changed=stored.changed)
            self._digest = stored.digest
        inventories = {state.reading.inventory for state in self._fleet.states.values()}
        of = blake3("\n".join(sorted(inventories)).encode()).hexdigest()[:32]
        fresh = stored is not None and stored.of == of and abs(self._clock() - stored.at) < FRESH_S
        kinds = {} if fresh else self._kinds()
        if not kinds or not await self._store.claim(ttl_s=AGAIN_S):
            return
        changed: dict[str, float] = {}
        answers = await self._asked(self._chosen(kinds), changed)
        self._sizes = self._sizes.with_news(agreed(answers), changed)
        self._digest = await self._store.save(
            self._sizes.folders, changed=self._sizes.changed, of=of, at=self._clock()
        )
        logger.debug("model files read", extra={"nodes": len(answers), "files": len(self._sizes)})

    def _kinds(self) -> dict[str, list[str]]:
        """Return the nodes that can be asked, by what they have."""
        kinds: dict[str, list[str]] = {}
        for name, state in self._fleet.states.items():
            if state.verdict not in ("down", "new"):
                kinds.setdefault(state.reading.inventory, []).append(name)
        return kinds

    def _chosen(self, kinds: Mapping[str, Sequence[str]]) -> list[str]:
        """Return some nodes of each kind, others each time."""
        chosen = []
        for _, names in sorted(kinds.items()):
            start = self._rounds * _ASKED_OF_A_KIND % len(names)
            ordered = sorted(names, key=natural)
            chosen.append((ordered[start:] + ordered[:start])[:_ASKED_OF_A_KIND])
        self._rounds += 1
        turns = max(map(len, chosen))
        return [names[turn] for turn in range(turns) for names in chosen if turn < len(names)][:_MOST_ASKED]

    async def _asked(self, nodes: Sequence[str], changed: dict[str, float]) -> list[Folders]:
        """Return what nodes say about sizes, and note when files were changed."""
        turns = asyncio.Semaphore(_AT_ONCE)

        async def one(node: str) -> Folders:
            async with turns:
                return await self._node(node, changed)

        return [folders for folders in await asyncio.gather(*map(one, nodes)) if folders]

    async def _node(self, node: str, changed: dict[str, float]) -> Folders:
        """Return what a node says, as far as it does within the time."""
        found: dict[str, Mapping[str, int]] = {}
        try:
            async with Timeout(PATIENCE_S):
                listed = await self._ask.listing(node, "/experiment/models")
                for folder in _folders(node, listed):
                    said = await self._ask.listing(node, f"/experiment/models/{folder}")
                    found[folder] = await asyncio.to_thread(told_sizes, said)
                    for name, at in (await asyncio.to_thread(told_changes, said)).items():
                        place = f"{folder}/{name}"
                        if name in found[folder] and len(changed) < MOST_FILES:
                            changed[place] = max(at, changed.get(place, 0.0))
        except (NodeError, TimeoutError) as error:
            logger.debug("sizes of model files not read", extra={"node": node, "error": str(error)})
        return found


def _folders(node: str, listed: object) -> list[str]:
    names = [str(info["name"]) for info in model_lists.folder_infos([(node, listed)])]
    return [name for name in names if "/" not in name and not model_lists.leaves(name)][:MOST_FOLDERS]
