"""Reads all GPUs through NVML, in the calling thread; never raises."""

import contextlib
import ctypes
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from types import ModuleType
from typing import Any

from comfy_fleet.adapters.nvml.readings import (
    LOST,
    SESSION_OVER,
    maybe,
    read_held,
    read_instances,
    read_memory,
    text,
    with_health,
)
from comfy_fleet.domain.nodes.gpu import Gpu, Gpus, Nvml

_MAX_XIDS = 16

# By NVML's numbers (nvml.h), so that they stand here even where the binding is missing.
_REASONS = {
    3: Nvml.NOT_SUPPORTED,
    4: Nvml.NO_PERMISSION,
    6: Nvml.NO_DEVICE,
    9: Nvml.NO_DRIVER,
    12: Nvml.NO_LIBRARY,
    13: Nvml.NOT_SUPPORTED,
    15: Nvml.LOST_DEVICE,
    16: Nvml.LOST_DEVICE,
    17: Nvml.NO_PERMISSION,
    18: Nvml.VERSION_MISMATCH,
    28: Nvml.NO_DEVICE,
}


@dataclass
class _Card:
    """A GPU in an open session.

    Attributes:
        handle: NVML's.
        gpu: The last values, for readings that are not taken each time.
        slow_at: When the slow readings are due.
    """

    handle: Any
    gpu: Gpu
    slow_at: float = float("-inf")


@dataclass
class _Session:
    """State between initialisation and shutdown."""

    driver: str = ""
    cards: list[_Card] = field(default_factory=list)
    events: Any = None


class NvmlReader:
    """Reads all GPUs; not for two threads at once."""

    def __init__(
        self,
        *,
        slow_every_s: float = 1.0,
        retry_s: float = 1.0,
        lost_retry_s: float = 10.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Set up; nothing is opened before the first look.

        Args:
            slow_every_s: How often power, heat and faults are read.
            retry_s: Pause between two attempts to open NVML after a failure.
            lost_retry_s: Pause between two attempts to find a lost GPU again.
            clock: Seconds, monotonic.
        """
        self._slow_every_s = slow_every_s
        self._retry_s = retry_s
        self._lost_retry_s = lost_retry_s
        self._clock = clock
        self._session: _Session | None = None
        self._failed = Gpus(why=Nvml.UNKNOWN)
        self._open_after = float("-inf")
        self._whole_at = float("-inf")  # when the list of GPUs was last known to be complete
        self._xids: dict[str, list[int]] = {}  # by UUID, over sessions: a GPU stays broken until its reset
        self._known: dict[str, Gpu] = {}  # by UUID: a lost GPU vanishes from the driver's own list

    def read(self) -> Gpus:
        """Read all GPUs. Never raises."""
        started = time.perf_counter()
        try:
            import pynvml
        except ImportError:
            return Gpus(why=Nvml.NO_BINDING)
        try:
            found = self._read(pynvml)
        except Exception as error:  # noqa: BLE001 - drivers fail in many ways; each is a result
            lost = tuple(gpu for gpu in self._known.values() if gpu.lost)
            self._failed = Gpus(why=reason(error), error=str(error) or type(error).__name__, gpus=lost)
            self.close()
            if getattr(error, "value", 0) in SESSION_OVER:
                self._xids.clear()  # the driver was unloaded, which ended its faults
            self._open_after = self._clock() + self._retry_s
            found = self._failed
        return replace(found, took_s=time.perf_counter() - started)

    def close(self) -> None:
        """Release the driver. The next look opens it again."""
        session, self._session = self._session, None
        if session is None:
            return
        import pynvml

        if session.events is not None:
            with contextlib.suppress(pynvml.NVMLError):
                pynvml.nvmlEventSetFree(session.events)
        with contextlib.suppress(pynvml.NVMLError):
            pynvml.nvmlShutdown()

    def _read(self, nvml: ModuleType) -> Gpus:
        now = self._clock()
        if self._session is None:
            if now < self._open_after:
                return self._failed
            self._session = _open(nvml)
        session = self._session
        self._hear(nvml, session)
        gpus = []
        for card in session.cards:
            before = self._known.get(card.gpu.uuid)
            try:
                card.gpu = self._look(nvml, session, card, now)
                if before is not None and before.lost:
                    self._xids.pop(before.uuid, None)  # it was reset
            except nvml.NVMLError as error:
                if error.value not in LOST:
                    raise
                card.gpu = _lost(card.gpu)
            gpus.append(card.gpu)
        listed = {gpu.uuid for gpu in gpus}
        gpus += [_lost(gpu) for uuid, gpu in self._known.items() if uuid not in listed]
        self._known |= {gpu.uuid: gpu for gpu in gpus if gpu.uuid}
        why = Nvml.OK if gpus else Nvml.NO_DEVICE
        if gpus and all(gpu.lost for gpu in gpus):
            why = Nvml.LOST_DEVICE
        if gpus and not any(gpu.lost for gpu in gpus):
            self._whole_at = now
        elif now >= self._whole_at + self._lost_retry_s:
            # The driver makes its list when NVML is opened: only that finds a GPU that was reset or added.
            self._whole_at = now
            self.close()
        return Gpus(why=why, gpus=tuple(sorted(gpus, key=lambda gpu: gpu.index)), driver=session.driver)

    def _look(self, nvml: ModuleType, session: _Session, card: _Card, now: float) -> Gpu:
        if now >= card.slow_at:
            card.gpu = with_health(nvml, card.handle, card.gpu)
            card.slow_at = now + self._slow_every_s
        gpu = card.gpu
        if session.events is not None:
            gpu = replace(gpu, xids=tuple(self._xids.get(gpu.uuid, ())))
        if gpu.mig:
            parts = read_instances(nvml, card.handle, gpu)
            return replace(gpu, memory=read_memory(nvml, card.handle), processes=None, instances=parts)
        memory, processes = read_held(nvml, card.handle)
        return replace(gpu, memory=memory, processes=processes, instances=(), lost=False)

    def _hear(self, nvml: ModuleType, session: _Session) -> None:
        """Note the Xids since the last look."""
        if session.events is None:
            return
        places = {_address(card.handle): card.gpu.uuid for card in session.cards if card.handle is not None}
        for _ in range(_MAX_XIDS):
            try:
                event = nvml.nvmlEventSetWait_v2(session.events, 0)
            except nvml.NVMLError as error:
                if error.value in SESSION_OVER:
                    raise
                return  # usually a timeout: nothing happened
            uuid = places.get(_address(event.device))
            if uuid is not None and event.eventType & nvml.nvmlEventTypeXidCriticalError:
                heard = self._xids.setdefault(uuid, [])
                if event.eventData not in heard:
                    heard.append(int(event.eventData))
                    del heard[:-_MAX_XIDS]


def _lost(gpu: Gpu) -> Gpu:
    """Return what is known of a GPU that does not answer: its identity, and its earlier faults."""
    return Gpu(index=gpu.index, uuid=gpu.uuid, name=gpu.name, xids=gpu.xids, mig=gpu.mig, lost=True)


def reason(error: Exception) -> Nvml:
    """Return why NVML can't be read, by its error."""
    return _REASONS.get(getattr(error, "value", 0), Nvml.UNKNOWN)


def _open(nvml: ModuleType) -> _Session:
    nvml.nvmlInit()
    session = _Session()
    try:
        session.driver = text(maybe(nvml, nvml.nvmlSystemGetDriverVersion) or "")
        session.cards = _cards(nvml)
        session.events = _listen(nvml, session.cards)
    except Exception:
        with contextlib.suppress(nvml.NVMLError):
            nvml.nvmlShutdown()
        raise
    return session


def _cards(nvml: ModuleType) -> list[_Card]:
    cards = []
    refused: Exception | None = None
    for index in range(nvml.nvmlDeviceGetCount()):
        try:
            handle = nvml.nvmlDeviceGetHandleByIndex(index)
            uuid = text(maybe(nvml, nvml.nvmlDeviceGetUUID, handle) or "")
            name = text(maybe(nvml, nvml.nvmlDeviceGetName, handle) or "")
        except nvml.NVMLError as error:
            if error.value in SESSION_OVER:
                raise
            if error.value in LOST:
                cards.append(_Card(handle=None, gpu=Gpu(index=index, lost=True)))
            else:  # a GPU that this container may not use although the driver counts it
                refused = error
        else:
            cards.append(_Card(handle=handle, gpu=Gpu(index=index, uuid=uuid, name=name)))
    if refused is not None and not cards:
        raise refused
    return cards


def _listen(nvml: ModuleType, cards: list[_Card]) -> Any:
    """Return an event set for Xids; None where there are no events (Windows, some containers)."""
    events = maybe(nvml, nvml.nvmlEventSetCreate) if cards else None
    if events is None:
        return None
    for card in cards:
        if card.handle is not None:
            with contextlib.suppress(nvml.NVMLError):
                nvml.nvmlDeviceRegisterEvents(card.handle, nvml.nvmlEventTypeXidCriticalError, events)
    return events


def _address(handle: Any) -> int:
    return ctypes.cast(handle, ctypes.c_void_p).value or 0
