"""The simulated GPU's memory."""

from collections import OrderedDict
from collections.abc import Container


class OutOfMemory(Exception):
    """The GPU has no room, even with every other model unloaded."""


class Vram:
    """Accounts for model files and activations, all in bytes.

    Within a prompt, models stay loaded until room is needed, and the least recently used goes first. A prompt
    that does not load them drops them (:meth:`keep_only`), as ComfyUI does.

    Attributes:
        total: The GPU's memory.
        foreign: Memory that other processes hold.
        loads: How often a file was read, and how many bytes that were.
    """

    def __init__(self, total: int, foreign: int = 0) -> None:
        self.total = total
        self.foreign = foreign
        self._loaded: OrderedDict[str, int] = OrderedDict()
        self.loads = (0, 0)
        self._activations = 0  # kept by the allocator after use, given back when a model needs it

    @property
    def models(self) -> dict[str, int]:
        """What is loaded, least recently used first."""
        return dict(self._loaded)

    @property
    def free(self) -> int:
        """What ComfyUI reports as free: its own cached blocks count as free."""
        return max(0, self.total - self.foreign - sum(self._loaded.values()))

    @property
    def reserved(self) -> int:
        """What the process has taken from the driver."""
        return sum(self._loaded.values()) + self._activations

    @property
    def cached(self) -> int:
        """Part of it that is not in use."""
        return self._activations

    def load(self, model: str, size: int, working: int = 0) -> int:
        """Make a model ready and return how many bytes had to be read for it.

        Args:
            model: The file.
            size: Its size.
            working: Room that is needed beside it.

        Raises:
            OutOfMemory: There is no room; everything is unloaded then.
        """
        if model in self._loaded:
            self._loaded.move_to_end(model)
            self.reserve(working, keep=model)
            return 0
        self.reserve(size + working)
        self._activations = working
        self._loaded[model] = size
        count, read = self.loads
        self.loads = count + 1, read + size
        return size

    def reserve(self, size: int, keep: str | None = None) -> None:
        """Make room for activations, unloading other models as needed.

        Raises:
            OutOfMemory: There is no room; everything is unloaded then.
        """
        kept = self._loaded.get(keep, 0) if keep else 0
        available = self.total - self.foreign
        if size + kept > available:
            message = (
                f"Allocation on device 0 failed: {size / 2**30:.2f} GiB wanted,"
                f" {max(0, available - kept) / 2**30:.2f} GiB of {self.total / 2**30:.2f} GiB"
                f" could be freed, {self.foreign / 2**30:.2f} GiB belong to other processes."
            )
            self.unload()
            raise OutOfMemory(message)
        while sum(self._loaded.values()) + size > available:
            self._loaded.pop(next(name for name in self._loaded if name != keep))
        self._activations = size

    def keep_only(self, models: Container[str]) -> None:
        """Drop all other models: nothing in ComfyUI's cache refers to them any more."""
        for name in [name for name in self._loaded if name not in models]:
            del self._loaded[name]

    def unload(self) -> None:
        """Drop every model and cached block."""
        self._loaded.clear()
        self._activations = 0
