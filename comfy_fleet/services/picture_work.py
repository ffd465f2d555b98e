"""Pictures are converted in threads: a few at once, within limits on pixels, bytes and time.

Owners take turns, and no owner has all places: whoever asks for many large pictures waits for them alone. The
same goes for the memory of those that were made, and that clients take at their own pace.
"""

import asyncio
from collections.abc import AsyncGenerator, Callable, Coroutine
from contextlib import aclosing
from dataclasses import dataclass
from functools import partial
from typing import Any

from comfy_fleet.domain.errors import Busy
from comfy_fleet.domain.jobs.asset import Asset
from comfy_fleet.ports.assets import AssetStore, Received
from comfy_fleet.ports.pictures import MadePictures
from comfy_fleet.services import output_forms, picture_forms
from comfy_fleet.services.output_forms import OutputForm
from comfy_fleet.services.picture_forms import NoSuchForm, PictureForm
from comfy_fleet.timeouts import Timeout
from comfy_fleet.turns import FairTurns, LineFull, NoTurn, SharedRoom

AT_ONCE, AT_ONCE_EACH = 3, 2
LINE_EACH = 48
"""Pictures of one owner that may wait."""
WAIT_S = 10.0
WORK_S = 30.0
SMALL = 1024 * 1024
"""Bytes of a picture that count nowhere while it is sent: as much of any file is sent in one piece."""


def _nothing() -> None:
    pass


@dataclass(frozen=True, kw_only=True)
class HeldPicture:
    """A picture that was made, and is in memory.

    Attributes:
        data: Its bytes.
        done: To be called once they are no longer needed.
    """

    data: bytes
    done: Callable[[], object]


class PictureWork:
    """Converts pictures of assets.

    Args:
        assets: Where they are.
        made: Keeps what was made.
        most_pixels: Most pixels of one; a file may have four bytes for each.
    """

    def __init__(self, assets: AssetStore, made: MadePictures, *, most_pixels: int) -> None:
        self._assets = assets
        self._made = made
        self._most_pixels = most_pixels
        self.most_bytes = 4 * most_pixels
        self._turns = FairTurns(AT_ONCE, each=AT_ONCE_EACH, line=LINE_EACH, wait_s=WAIT_S)
        self._works: set[asyncio.Task[bytes]] = set()
        self._room = SharedRoom(2 * self.most_bytes)

    async def formed(self, asset: Asset, form: PictureForm) -> HeldPicture:
        """Return an asset's picture in another form.

        Raises:
            NoSuchForm: It is no picture, a broken one, or beyond a limit.
            Busy: Its owner waits for many already, or it took long until its turn came, or too much is held.
            FileNotFoundError: Its bytes are gone.
            NoRoom: Its bytes can't be read.
        """
        self._check_size(asset)

        async def work() -> bytes:
            data = await _whole(await self._assets.open(asset))
            return await asyncio.to_thread(picture_forms.formed, data, form, most_pixels=self._most_pixels)

        return self._held(asset.owner, await self._done(asset.owner, work))

    async def rendered(self, asset: Asset, form: OutputForm, *, by: str) -> HeldPicture:
        """Return an asset's picture in a form; one that was made before is not made again.

        Args:
            asset: The asset.
            form: The form.
            by: Who asks: takes turns with others.

        Raises:
            As :meth:`formed`.
        """
        self._check_size(asset)
        name = f"{asset.hash.removeprefix('blake3:')}-{form.tag}"
        if (size := await self._made.size(name)) is not None:
            done = self._hold(by, size)  # before it is read
            kept = None
            try:
                kept = await self._made.get(name)
            finally:
                if kept is None:
                    done()
            if kept is not None:
                return HeldPicture(data=kept, done=done)

        async def work() -> bytes:
            if (kept := await self._made.get(name)) is not None:  # made while this waited for its turn
                return kept
            data = await _whole(await self._assets.open(asset))
            made = await asyncio.to_thread(output_forms.rendered, data, form, most_pixels=self._most_pixels)
            await self._made.put(name, made)
            return made

        return self._held(by, await self._done(by, work))

    async def masked(self, original: Asset, mask: Received, name: str) -> bytes:
        """Return a picture with the transparency of another one; ``name`` decides the format.

        Both are read once it is their turn: any number of masks may come at the same time.

        Raises:
            As :meth:`formed`.
        """
        self._check_size(original)

        async def work() -> bytes:
            data = await _whole(await self._assets.open(original))
            given = await _whole(await self._assets.open_received(mask))
            return await asyncio.to_thread(
                picture_forms.masked, data, given, name, most_pixels=self._most_pixels
            )

        return await self._done(original.owner, work)

    async def thumbnail(self, asset: Asset, *, side: int, most_bytes: int) -> bytes:
        """Return a small WebP of an asset's picture; see :func:`picture_forms.thumbnail`.

        Raises:
            As :meth:`formed`.
        """
        self._check_size(asset)

        async def work() -> bytes:
            data = await _whole(await self._assets.open(asset))
            return await asyncio.to_thread(
                picture_forms.thumbnail, data, side=side, most_bytes=most_bytes, most_pixels=self._most_pixels
            )

        return await self._done(asset.owner, work)

    def _held(self, by: str, data: bytes) -> HeldPicture:
        return HeldPicture(data=data, done=self._hold(by, len(data)))

    def _hold(self, by: str, size: int) -> Callable[[], object]:
        if size <= SMALL:
            return _nothing
        if not self._room.take(by, size):
            raise Busy(
                "large pictures that were converted are still being sent: ask for fewer at a time, or for "
                "smaller ones",
                retry_after_s=2,
            )
        return partial(self._room.give, by, size)

    def _check_size(self, asset: Asset) -> None:
        if asset.size_bytes > self.most_bytes:
            raise NoSuchForm(
                f"the file has {asset.size_bytes} bytes; up to {self.most_bytes} are converted "
                "(four for each of FLEET_MAX_PICTURE_PIXELS)"
            )

    async def _done(self, owner: str, work: Callable[[], Coroutine[Any, Any, bytes]]) -> bytes:
        try:
            await self._turns.take(owner)
        except LineFull:
            raise Busy(
                f"{LINE_EACH} of your pictures wait already to be converted: ask for fewer at a time",
                retry_after_s=2,
            ) from None
        except NoTurn:
            raise Busy("many pictures are being converted already: try again", retry_after_s=2) from None
        # A thread can't be stopped: it keeps its turn until it ends, also when nobody waits for it any more.
        task = asyncio.create_task(work())
        self._works.add(task)
        task.add_done_callback(partial(self._ended, owner))
        try:
            async with Timeout(WORK_S):
                return await asyncio.shield(task)
        except TimeoutError:
            raise NoSuchForm(f"converting the picture takes longer than {WORK_S:.0f} s") from None

    def _ended(self, owner: str, work: asyncio.Task[bytes]) -> None:
        self._works.discard(work)
        self._turns.give(owner)
        if not work.cancelled():
            work.exception()  # whoever waits has it; if nobody does, nobody needs it


async def _whole(content: AsyncGenerator[bytes, None]) -> bytes:
    async with aclosing(content) as chunks:
        parts = [chunk async for chunk in chunks]
    return parts[0] if len(parts) == 1 else await asyncio.to_thread(b"".join, parts)
