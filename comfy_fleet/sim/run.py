"""What a node class can do while it runs: wait as long as a GPU would, report, load models, save."""

import asyncio
import functools
import os
import random
import string
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from PIL import Image

from comfy_fleet.sim.catalogue import NodeClass
from comfy_fleet.sim.files import SimFiles
from comfy_fleet.sim.memory import Vram
from comfy_fleet.sim.options import Models, SimTiming
from comfy_fleet.sim.pictures import Painter, caption, jpeg, png
from comfy_fleet.sim.values import Model

T = TypeVar("T")
INLINE_AREA = 1 << 16  # pictures up to this many pixels are worked on without a thread
ACTIVATION_BYTES_PER_PIXEL = 1_600  # a sampler's working memory, about right for a 12 GB model
JOB_SHARE = 0.9  # part of a fixed job time that its samplers spread over


class Interrupted(Exception):
    """Somebody asked to stop the prompt."""


class DependencyCycle(Exception):
    """Nodes that a node was replaced by wait for one another."""


def temporary_suffix() -> str:
    """Return what makes names of temporary files differ."""
    return "_temp_" + "".join(random.choices(string.ascii_lowercase, k=5))


@dataclass(frozen=True, kw_only=True)
class Machine:
    """The parts of a node that running needs.

    ``preview_suffix`` is what makes the names of temporary files differ between two starts.
    """

    name: str
    files: SimFiles
    vram: Vram
    painter: Painter
    timing: SimTiming
    models: Models
    previews: bool
    preview_suffix: str


@dataclass(frozen=True, kw_only=True)
class Result:
    """What a node class made.

    Attributes:
        outputs: One value per output.
        ui: What the client is told and the history keeps; None for a node that only computes.
    """

    outputs: tuple[Any, ...] = ()
    ui: dict[str, Any] | None = None


@dataclass(frozen=True, kw_only=True)
class Call:
    """One node that runs.

    Attributes:
        id: Its id in the graph.
        info: Its class.
        inputs: Its inputs' values, links followed.
    """

    id: str
    info: NodeClass
    inputs: Mapping[str, Any]


class Reporter(Protocol):
    """Takes progress of the running node to the client."""

    async def __call__(
        self, call: Call, value: float, maximum: float, image: tuple[str, bytes] | None
    ) -> None:
        """Report a step, with a picture (``PNG`` or ``JPEG`` and its bytes) if there is one."""


class Expander(Protocol):
    """Tells the client of nodes that take a running node's place."""

    def __call__(self, call: Call, part: str, *, finished: bool) -> None:
        """Report that the part with this id has begun, or that it is finished."""


class Clock:
    """Waits until points in time that follow from the modelled durations alone.

    The real work in between is taken off the next wait, and what the event loop oversleeps is taken
    off the next step, so that the durations are kept however slow this machine is.
    """

    def __init__(self, start: float) -> None:
        self.start = start
        self.due = start
        self._stop = False
        self._waiting: asyncio.Future[None] | None = None

    def interrupt(self) -> None:
        """Make the current or the next wait raise :class:`Interrupted`."""
        self._stop = True
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_result(None)

    def check(self) -> None:
        """Raise when an interrupt was asked for.

        Raises:
            Interrupted: It was.
        """
        if self._stop:
            raise Interrupted

    async def spend(self, seconds: float) -> None:
        """Let this much modelled time pass."""
        await self.until(self.due + seconds)

    async def until(self, due: float) -> None:
        """Wait until a point in the loop's time.

        Raises:
            Interrupted: Somebody asked to stop meanwhile.
        """
        self.check()
        self.due = due
        loop = asyncio.get_running_loop()
        if due > loop.time():
            self._waiting = loop.create_future()
            timer = loop.call_at(due, _wake, self._waiting)
            try:
                await self._waiting
            finally:
                timer.cancel()
                self._waiting = None
            self.check()


def _wake(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


class PromptRun:
    """One prompt that runs.

    Args:
        machine: Where.
        clock: Its time.
        graph: As posted.
        extra_data: As posted.
        report: Takes progress to the client.
        expand: Tells the client of parts of a running node.
        samplers: How many samplers will run; they share a fixed job time.
    """

    def __init__(
        self,
        machine: Machine,
        clock: Clock,
        graph: Mapping[str, Any],
        extra_data: Mapping[str, Any],
        report: Reporter,
        expand: Expander,
        samplers: int,
    ) -> None:
        self.machine = machine
        self.clock = clock
        self.graph = graph
        self._extra_data = extra_data
        self._report = report
        self.expand = expand
        self.preview_prefix = "ComfyUI" + machine.preview_suffix
        self._samplers = max(1, samplers)

    async def spend(self, seconds: float) -> None:
        """Let modelled seconds pass, unless the job's time is fixed."""
        timing = self.machine.timing
        await self.clock.spend(0.0 if timing.job_s is not None else seconds * timing.scale)

    async def progress(
        self, call: Call, value: float, maximum: float, image: tuple[str, bytes] | None = None
    ) -> None:
        """Report a step of the running node."""
        self.clock.check()
        await self._report(call, value, maximum, image)

    async def steps(
        self, call: Call, count: int, megapixels: float, preview: Callable[[], Image.Image] | None = None
    ) -> None:
        """Pass a sampler's steps, each reported when it is over."""
        timing = self.machine.timing
        if timing.job_s is None:
            each = timing.step_s * megapixels * timing.scale
        else:
            each = timing.job_s * JOB_SHARE / self._samplers / count
        for step in range(1, count + 1):
            await self.clock.spend(each)
            image = None
            if preview is not None and self.machine.previews:
                image = ("JPEG", await self.compute(1 << 20, _preview, preview))
            await self.progress(call, step, count, image)

    async def load(self, model: Model, working: int = 0) -> None:
        """Bring a model file into VRAM, in the time that takes.

        Raises:
            OutOfMemory: There is no room.
        """
        read = self.machine.vram.load(model.file, model.size, working)
        await self.spend(read / 1e9 / self.machine.timing.load_gb_per_s)

    async def compute(self, area: int, function: Callable[..., T], *args: Any) -> T:
        """Call a function that takes real time: in a thread when it has many pixels to work on."""
        if area <= INLINE_AREA:
            return function(*args)
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(None, functools.partial(function, *args))

    def fresh_prefix(self, first: str = "ComfyUI") -> str:
        """Return a prefix for temporary files that no other call gets."""
        return first + temporary_suffix()

    async def save(
        self, pictures: Any, prefix: str, kind: str = "output", *, level: int = 4, bare: bool = False
    ) -> list[dict[str, str]]:
        """Write pictures as PNG under the next free numbers and return how ComfyUI names them.

        Args:
            pictures: The batch.
            prefix: What their names begin with, subfolder included.
            kind: The folder, ``output`` or ``temp``.
            level: Effort of the compression.
            bare: Leave the graph out of the files.
        """
        width, height = pictures[0].size
        area = width * height * len(pictures)
        texts = {} if bare else self.texts
        return await self.compute(area, self._save, pictures, prefix, kind, level, texts)

    def _save(
        self, pictures: Any, prefix: str, kind: str, level: int, texts: Mapping[str, Any]
    ) -> list[dict[str, str]]:
        width, height = pictures[0].size
        folder, subfolder, first, number = self.machine.files.next_name(kind, prefix, width, height)
        saved = []
        for index, picture in enumerate(pictures):
            name = f"{first.replace('%batch_num%', str(index))}_{number + index:05}_.png"
            (folder / name).write_bytes(png(self.marked(picture), texts, level=level))
            saved.append({"filename": name, "subfolder": subfolder, "type": kind})
        return saved

    def marked(self, picture: Image.Image) -> Image.Image:
        """Return a picture as it may leave the node: saying that it is simulated."""
        return self.machine.painter.mark(picture, caption(self.graph))

    @property
    def texts(self) -> dict[str, Any]:
        """What a saved file carries: the graph and what the client sent beside it."""
        return {"prompt": self.graph, **(self._extra_data.get("extra_pnginfo") or {})}

    async def save_file(self, prefix: str, suffix: str, data: bytes, *, end: str = "_") -> dict[str, str]:
        """Write one other file under the next free number, which some classes end with an underscore."""
        folder, subfolder, first, number = self.machine.files.next_name("output", prefix)
        name = f"{first}_{number:05}{end}{suffix}"
        await self.compute(len(data), (folder / name).write_bytes, data)
        return {"filename": name, "subfolder": os.fspath(subfolder), "type": "output"}

    def model(self, folder: str, file: str) -> Model:
        """Return a model file of this node."""
        return Model(file=file, size=self.machine.models.get(folder, {}).get(file, 0))


def _preview(draw: Callable[[], Image.Image]) -> bytes:

    return jpeg(draw())
