"""The model files of the whole fleet, as ComfyUI's clients ask for them."""

import logging
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Protocol

import orjson

from comfy_fleet.domain.errors import Busy, NodeError
from comfy_fleet.domain.graphs.inputs import alike
from comfy_fleet.domain.nodes import model_lists
from comfy_fleet.domain.nodes.model_lists import CODE_FOLDERS, FORMER_NAMES, ModelFiles, ModelPlace
from comfy_fleet.services.kept_answers import KeptAnswers
from comfy_fleet.services.node_answers import NodeAnswers
from comfy_fleet.turns import FairTurns, NoTurn

logger = logging.getLogger(__name__)

MAX_PREVIEW = 4 * 1024 * 1024
"""Largest preview and largest metadata, in bytes."""
_MOST_KEPT_BYTES = 32 * 1024 * 1024
_KEPT_S, _NOTHING_KEPT_S = 300.0, 30.0
"""How long a preview is remembered, and how long that there is none."""
_AT_ONCE, _AT_ONCE_EACH = 8, 6
_LINE_EACH = 64
_WAIT_S = 10.0


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
        self._kept = KeptAnswers[bytes](_MOST_KEPT_BYTES, size=len, clock=clock)
        self._turns = FairTurns(_AT_ONCE, each=_AT_ONCE_EACH, line=_LINE_EACH, wait_s=_WAIT_S)

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

    async def preview(self, owner: str, folder: str, index: int, name: str) -> bytes | None:
        """Return a preview picture (WebP), from a node that has the file; None if there is none.

        Args:
            owner: Who asks: owners take turns.
            folder: The folder.
            index: Which place of the folder holds the file, on the node whose entry was listed.
            name: The file's name; its extension does not matter.

        Raises:
            Busy: The owner waits for many already, or it took long until its turn came.
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

        # An index that no place has is kept as the one that was found instead.
        return await self._first(owner, ("preview", folder, str(places[0].path_index), file), places, ask)

    async def metadata(self, owner: str, folder: str, name: str) -> bytes | None:
        """Return what a ``.safetensors`` file says about itself, as JSON; None if it says nothing.

        Raises:
            Busy: As :meth:`preview`.
        """
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

        return await self._first(owner, ("metadata", folder, alike(name)), places, ask)

    async def _first(
        self,
        owner: str,
        key: tuple[str, ...],
        places: Sequence[ModelPlace],
        ask: Callable[[ModelPlace], Awaitable[bytes | None]],
    ) -> bytes | None:
        """Return the first answer about a file, and remember it."""
        if (kept := self._kept.get(key)) is not None:
            return kept.value
        try:
            async with self._turns.of(owner):
                if (kept := self._kept.get(key)) is not None:  # another request has asked meanwhile
                    return kept.value
                return await self._asked(key, places, ask)
        except NoTurn:
            raise Busy(
                "many questions about model files wait already: ask for fewer at a time", retry_after_s=2
            ) from None

    async def _asked(
        self,
        key: tuple[str, ...],
        places: Sequence[ModelPlace],
        ask: Callable[[ModelPlace], Awaitable[bytes | None]],
    ) -> bytes | None:
        answered = False
        found: bytes | None = None
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
            self._kept.put(key, found, keep_s=_NOTHING_KEPT_S if found is None else _KEPT_S)
        return found
