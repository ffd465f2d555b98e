"""The model files of the whole fleet, as ComfyUI's clients ask for them."""

import asyncio
import logging
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Protocol

import orjson

from comfy_fleet.domain.errors import NodeError
from comfy_fleet.domain.graphs.inputs import alike
from comfy_fleet.domain.nodes import model_lists
from comfy_fleet.domain.nodes.model_lists import CODE_FOLDERS, FORMER_NAMES, ModelFiles, ModelPlace
from comfy_fleet.services.node_answers import NodeAnswers

logger = logging.getLogger(__name__)

MAX_PREVIEW = 4 * 1024 * 1024
"""Largest preview and largest metadata, in bytes."""
_MOST_KEPT_BYTES = 32 * 1024 * 1024
_KEPT_S, _NOTHING_KEPT_S = 300.0, 30.0
"""How long a preview is remembered, and how long that there is none."""
_AT_ONCE = 8
_ENTRY_BYTES = 500


class ModelQuestions(Protocol):
    """The part of :class:`comfy_fleet.ports.comfyui.NodeApi` that is needed here."""

    async def listing(self, node: str, path: str, query: Mapping[str, str] | None = None) -> Any:
        """Return the JSON of one of ComfyUI's own lists; None if there is none. Raises NodeError."""

    async def preview(self, node: str, *, folder: str, index: int, name: str) -> bytes | None:
        """Return a model file's preview picture; None if it has none. Raises NodeError."""


class FleetModels:
    """Knows the nodes' model files.

    Args:
        answers: What the nodes list.
        ask: Asks one node about one file.
        clock: Seconds, for intervals.
    """

    def __init__(
        self, answers: NodeAnswers, ask: ModelQuestions, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._answers = answers
        self._ask = ask
        self._clock = clock
        self._kept: OrderedDict[tuple[str, ...], tuple[float, bytes | None]] = OrderedDict()
        self._kept_bytes = 0
        self._limit = asyncio.Semaphore(_AT_ONCE)

    async def folders(self) -> list[str]:
        """Return the answer to ``/models``. Raises NoNodes, as all others here."""
        return await self._answers.together("/models", model_lists.folders)

    async def names(self, folder: str) -> list[str] | None:
        """Return the answer to ``/models/FOLDER``; None if there is no such folder."""
        if folder not in await self.folders():
            return None
        if folder in CODE_FOLDERS:
            return []
        return await self._answers.together(f"/models/{folder}", model_lists.files)

    async def embeddings(self) -> list[str]:
        """Return the answer to ``/embeddings``."""
        return await self._answers.together("/embeddings", model_lists.files)

    async def folder_infos(self) -> list[dict[str, Any]]:
        """Return the answer to ``/experiment/models``."""
        return await self._answers.together("/experiment/models", model_lists.folder_infos)

    async def files(self, folder: str) -> ModelFiles | None:
        """Return what ``/experiment/models/FOLDER`` is about; None if there is no such folder."""
        if folder not in await self.folders():
            return None
        if folder in CODE_FOLDERS:
            return ModelFiles(listed=[], places={}, stems={})
        return await self._answers.together(f"/experiment/models/{folder}", model_lists.file_infos)

    async def preview(self, folder: str, index: int, name: str) -> bytes | None:
        """Return a preview picture (WebP), from a node that has the file; None if there is none.

        Args:
            folder: The folder.
            index: Which place of the folder holds the file, on the node whose entry was listed.
            name: The file's name; its extension does not matter.
        """
        found = await self.files(folder)
        file = found and found.stems.get(model_lists.without_extension(alike(name)))
        if not found or not file:
            return None
        places = sorted(found.places[file], key=lambda place: place.path_index != index)

        async def ask(place: ModelPlace) -> bytes | None:
            return await self._ask.preview(
                place.node, folder=folder, index=place.path_index, name=alike(place.name)
            )

        return await self._first(("preview", folder, str(index), file), places, ask)

    async def metadata(self, folder: str, name: str) -> bytes | None:
        """Return what a ``.safetensors`` file says about itself, as JSON; None if it says nothing."""
        folder = FORMER_NAMES.get(folder, folder)
        found = await self.files(folder) if name.endswith(".safetensors") else None
        places = found and found.places.get(alike(name))
        if not places:
            return None

        async def ask(place: ModelPlace) -> bytes | None:
            said = await self._ask.listing(
                place.node, f"/view_metadata/{folder}", {"filename": alike(place.name)}
            )
            return None if said is None else orjson.dumps(said)

        return await self._first(("metadata", folder, alike(name)), places, ask)

    async def _first(
        self,
        key: tuple[str, ...],
        places: Sequence[ModelPlace],
        ask: Callable[[ModelPlace], Awaitable[bytes | None]],
    ) -> bytes | None:
        """Return the first answer about a file, and remember it."""
        if (kept := self._kept.get(key)) is not None and self._clock() < kept[0]:
            self._kept.move_to_end(key)
            return kept[1]
        answered = False
        found: bytes | None = None
        async with self._limit:
            for place in places:
                try:
                    found = await ask(place)
                except NodeError as error:
                    logger.debug("model not looked at", extra={"node": place.node, "error": error.message})
                    continue
                answered = True
                if found is not None and len(found) <= MAX_PREVIEW:
                    break
                found = None
        if answered:
            self._keep(key, found)
        return found

    def _keep(self, key: tuple[str, ...], found: bytes | None) -> None:
        former = self._kept.pop(key, None)
        if former is not None:
            self._kept_bytes -= _size(former[1])
        until = self._clock() + (_NOTHING_KEPT_S if found is None else _KEPT_S)
        self._kept[key] = until, found
        self._kept_bytes += _size(found)
        while self._kept_bytes > _MOST_KEPT_BYTES:
            _, (_, dropped) = self._kept.popitem(last=False)
            self._kept_bytes -= _size(dropped)


def _size(found: bytes | None) -> int:
    return _ENTRY_BYTES + len(found or b"")
