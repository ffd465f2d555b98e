"""Pictures are converted in threads: a few at once, within limits on pixels, bytes and time."""

import asyncio
from collections.abc import Callable
from contextlib import aclosing

from comfy_fleet.domain.errors import Busy
from comfy_fleet.domain.jobs.asset import Asset
from comfy_fleet.ports.assets import AssetStore
from comfy_fleet.services import picture_forms
from comfy_fleet.services.picture_forms import NoSuchForm, PictureForm
from comfy_fleet.timeouts import Timeout
from comfy_fleet.turns import NoTurn, Turns

AT_ONCE = 2
LINE = 48
WAIT_S = 10.0
WORK_S = 30.0


class PictureWork:
    """Converts pictures of assets.

    Args:
        assets: Where they are.
        most_pixels: Most pixels of one; a file may have four bytes for each.
    """

    def __init__(self, assets: AssetStore, *, most_pixels: int) -> None:
        self._assets = assets
        self._most_pixels = most_pixels
        self.most_bytes = 4 * most_pixels
        self._turns = Turns(AT_ONCE, wait_s=WAIT_S, line=LINE)
        self._works: set[asyncio.Task[bytes]] = set()

    async def formed(self, asset: Asset, form: PictureForm) -> bytes:
        """Return an asset's picture in another form.

        Raises:
            NoSuchForm: It is no picture, a broken one, or beyond a limit.
            Busy: Too many pictures wait.
            FileNotFoundError: Its bytes are gone.
            NoRoom: Its bytes can't be read.
        """
        self._check_size(asset)
        return await self._done(
            asset, lambda data: picture_forms.formed(data, form, most_pixels=self._most_pixels)
        )

    async def masked(self, original: Asset, mask: bytes, name: str) -> bytes:
        """Return a picture with the transparency of another one; ``name`` decides the format.

        Raises:
            As :meth:`formed`.
        """
        self._check_size(original)
        return await self._done(
            original,
            lambda data: picture_forms.masked(data, mask, name, most_pixels=self._most_pixels),
        )

    def _check_size(self, asset: Asset) -> None:
        if asset.size_bytes > self.most_bytes:
            raise NoSuchForm(
                f"the file has {asset.size_bytes} bytes; up to {self.most_bytes} are converted "
                "(four for each of FLEET_MAX_PICTURE_PIXELS)"
            )

    async def _done(self, asset: Asset, convert: Callable[[bytes], bytes]) -> bytes:
        try:
            await self._turns.take()
        except NoTurn:
            raise Busy("many pictures are being converted already: try again", retry_after_s=2) from None
        # A thread can't be stopped: it keeps its turn until it ends, also when nobody waits for it any more.
        work = asyncio.create_task(self._work(asset, convert))
        self._works.add(work)
        work.add_done_callback(self._ended)
        try:
            async with Timeout(WORK_S):
                return await asyncio.shield(work)
        except TimeoutError:
            raise NoSuchForm(f"converting the picture takes longer than {WORK_S:.0f} s") from None

    def _ended(self, work: asyncio.Task[bytes]) -> None:
        self._works.discard(work)
        self._turns.give()
        if not work.cancelled():
            work.exception()  # whoever waits has it; if nobody does, nobody needs it

    async def _work(self, asset: Asset, convert: Callable[[bytes], bytes]) -> bytes:
        async with aclosing(await self._assets.open(asset)) as chunks:
            data = b"".join([chunk async for chunk in chunks])
        return await asyncio.to_thread(convert, data)
