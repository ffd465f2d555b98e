"""NVIDIA GPUs, read through NVML with ``nvidia-ml-py``.

:class:`NvmlReader` looks, in whatever thread calls it, and never raises: what can't be read is missing, and
when nothing can be read the answer says why. :class:`NvmlProbe` looks from an event loop without holding it
up, also when the driver hangs, as it does while a GPU falls off its bus.

Memory and processes are read at every look. What changes slowly, or costs more (power, heat, faults), is read
once in ``slow_every_s``. Names and UUIDs are read once. An open reader keeps the driver in use: a driver can
be unloaded, and a GPU be reset, only after :meth:`NvmlReader.close`.

What NVML's functions mean is in NVIDIA's "NVML API Reference Guide".
"""

import asyncio
import contextlib
import ctypes
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import ModuleType
from typing import Any

from comfy_fleet.domain.gpu import Gpu, Gpus, Memory, Nvml, Process, Recovery, Throttle

_HOST_PIDS = "pid:[4026531836]"  # the kernel's fixed name of the first process namespace (proc_ns.h)
_MAX_XIDS = 16
_MOMENT_S = 0.05

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
_LOST = (15, 16)  # GPU is lost; reset required
_SESSION_OVER = (1, 9, 18)  # uninitialized; driver not loaded; versions differ
_THROTTLES = {
    0x08: Throttle.HARD,
    0x20: Throttle.SOFT_THERMAL,
    0x40: Throttle.HARD_THERMAL,
    0x80: Throttle.POWER_BRAKE,
}
_RECOVERIES = {
    0: Recovery.NONE,
    1: Recovery.RESET,
    2: Recovery.REBOOT,
    3: Recovery.DRAIN,
    4: Recovery.DRAIN,
    6: Recovery.RESET,
    7: Recovery.REBOOT,
}


@dataclass
class _Seat:
    """A GPU in an open session.

    Attributes:
        handle: NVML's.
        gpu: What was last known, for readings that are not taken at every look.
        slow_at: When the slow readings are due.
    """

    handle: Any
    gpu: Gpu
    slow_at: float = float("-inf")


@dataclass
class _Session:
    """What lives between initialisation and shutdown."""

    driver: str = ""
    seats: list[_Seat] = field(default_factory=list)
    events: Any = None
    xids: dict[int, list[int]] = field(default_factory=dict)


class NvmlReader:
    """Looks at all GPUs; not for two threads at once."""

    def __init__(
        self,
        *,
        slow_every_s: float = 1.0,
        retry_s: float = 1.0,
        lost_retry_s: float = 10.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Describe the reader; nothing is opened before the first look.

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
        self._whole_at = float("-inf")  # when the list of GPUs was last known to be whole
        self._known: dict[str, Gpu] = {}  # by UUID: a GPU that is lost vanishes from the driver's own list

    def read(self) -> Gpus:
        """Look at all GPUs. Never raises."""
        started = time.perf_counter()
        try:
            import pynvml
        except ImportError:
            return Gpus(why=Nvml.NO_BINDING)
        try:
            found = self._read(pynvml)
        except Exception as error:
            lost = tuple(gpu for gpu in self._known.values() if gpu.lost)
            self._failed = Gpus(why=reason(error), error=str(error) or type(error).__name__, gpus=lost)
            self.close()
            self._open_after = self._clock() + self._retry_s
            found = self._failed
        return replace(found, took_s=time.perf_counter() - started)

    def close(self) -> None:
        """Let go of the driver. The next look opens it again."""
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
        _collect_xids(nvml, session)
        gpus = []
        for seat in session.seats:
            try:
                seat.gpu = self._look(nvml, session, seat, now)
            except nvml.NVMLError as error:
                if error.value not in _LOST:
                    raise
                seat.gpu = _lost(seat.gpu)
            gpus.append(seat.gpu)
        listed = {gpu.uuid for gpu in gpus}
        gpus += [_lost(gpu) for uuid, gpu in self._known.items() if uuid not in listed]
        self._known |= {gpu.uuid: gpu for gpu in gpus if gpu.uuid}
        why = Nvml.OK if gpus else Nvml.NO_DEVICE
        if gpus and all(gpu.lost for gpu in gpus):
            why = Nvml.LOST_DEVICE
        if gpus and not any(gpu.lost for gpu in gpus):
            self._whole_at = now
        elif now >= self._whole_at + self._lost_retry_s:
            # The driver draws its list up when NVML is opened: only that finds a GPU that was reset or added.
            self._whole_at = now
            self.close()
        return Gpus(why=why, gpus=tuple(sorted(gpus, key=lambda gpu: gpu.index)), driver=session.driver)

    def _look(self, nvml: ModuleType, session: _Session, seat: _Seat, now: float) -> Gpu:
        if now >= seat.slow_at:
            seat.gpu = _slow(nvml, seat.handle, seat.gpu)
            seat.slow_at = now + self._slow_every_s
        gpu = seat.gpu
        if session.events is not None:
            gpu = replace(gpu, xids=tuple(session.xids.get(gpu.index, ())))
        if gpu.mig:
            instances = tuple(_instances(nvml, seat.handle, gpu))
            return replace(gpu, memory=_memory(nvml, seat.handle), processes=None, instances=instances)
        before = _memory(nvml, seat.handle)
        processes = _processes(nvml, seat.handle)
        memory = _least_used(before, _memory(nvml, seat.handle))
        return replace(gpu, memory=memory, processes=processes, instances=(), lost=False)


class NvmlProbe:
    """Looks from an event loop, one thread at a time."""

    def __init__(self, reader: NvmlReader | None = None, *, timeout_s: float = 2.0) -> None:
        """Describe the probe; nothing is opened before the first look.

        Args:
            reader: The reader; the probe alone uses it from now on.
            timeout_s: After so long the driver counts as silent. A look that hangs is what the next ones wait
                for, though only for a moment: a thread inside of the driver can't be ended, but there is
                never a second one.
        """
        self._reader = reader or NvmlReader()
        self._timeout_s = timeout_s
        self._looking: asyncio.Future[Gpus] | None = None
        self._silent = False

    async def look(self) -> Gpus:
        """Look at all GPUs. Never raises."""
        if self._looking is None:
            self._looking = self._in_thread(self._reader.read)
        looking = self._looking
        try:
            # A cancelled caller must not cancel the look: another one would start beside it.
            patience_s = _MOMENT_S if self._silent else self._timeout_s
            found = await asyncio.wait_for(asyncio.shield(looking), patience_s)
        except TimeoutError:
            self._silent = True
            words = f"no answer in {self._timeout_s:g} s"
            return Gpus(why=Nvml.SILENT, error=words, took_s=self._timeout_s)
        self._silent = False
        if self._looking is looking:
            self._looking = None
        return found

    async def close(self) -> None:
        """Let go of the driver, unless it hangs."""
        looking, self._looking = self._looking, None
        if looking is not None:
            done, _ = await asyncio.wait({looking}, timeout=self._timeout_s)
            if not done:
                return
        self._reader.close()

    def _in_thread(self, work: Callable[[], Gpus]) -> "asyncio.Future[Gpus]":
        # Not the loop's executor: Python waits for its threads at exit, and this one may never come back.
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Gpus] = loop.create_future()

        def deliver(found: Gpus) -> None:
            if not future.done():
                future.set_result(found)

        def run() -> None:
            found = work()
            with contextlib.suppress(RuntimeError):  # the loop was closed meanwhile
                loop.call_soon_threadsafe(deliver, found)

        threading.Thread(target=run, name="nvml", daemon=True).start()
        return future


def _lost(gpu: Gpu) -> Gpu:
    """Return what is left to say of a GPU that does not answer: who it is, and what was wrong before."""
    return Gpu(index=gpu.index, uuid=gpu.uuid, name=gpu.name, xids=gpu.xids, mig=gpu.mig, lost=True)


def reason(error: Exception) -> Nvml:
    """Return why NVML can't be read, by its error."""
    return _REASONS.get(getattr(error, "value", 0), Nvml.UNKNOWN)


def _open(nvml: ModuleType) -> _Session:
    nvml.nvmlInit()
    session = _Session()
    try:
        session.driver = _text(_maybe(nvml, nvml.nvmlSystemGetDriverVersion) or "")
        session.seats = _seats(nvml)
        session.events = _listen(nvml, session.seats)
    except Exception:
        with contextlib.suppress(nvml.NVMLError):
            nvml.nvmlShutdown()
        raise
    return session


def _seats(nvml: ModuleType) -> list[_Seat]:
    seats = []
    refused: Exception | None = None
    for index in range(nvml.nvmlDeviceGetCount()):
        try:
            handle = nvml.nvmlDeviceGetHandleByIndex(index)
            uuid = _text(_maybe(nvml, nvml.nvmlDeviceGetUUID, handle) or "")
            name = _text(_maybe(nvml, nvml.nvmlDeviceGetName, handle) or "")
        except nvml.NVMLError as error:
            if error.value in _SESSION_OVER:
                raise
            if error.value in _LOST:
                seats.append(_Seat(handle=None, gpu=Gpu(index=index, lost=True)))
            else:  # one that a container may not touch although the driver counts it
                refused = error
        else:
            seats.append(_Seat(handle=handle, gpu=Gpu(index=index, uuid=uuid, name=name)))
    if refused is not None and not seats:
        raise refused
    return seats


def _listen(nvml: ModuleType, seats: list[_Seat]) -> Any:
    """Return an event set that hears of Xids; None where there are no events (Windows, some containers)."""
    events = _maybe(nvml, nvml.nvmlEventSetCreate) if seats else None
    if events is None:
        return None
    for seat in seats:
        if seat.handle is not None:
            with contextlib.suppress(nvml.NVMLError):
                nvml.nvmlDeviceRegisterEvents(seat.handle, nvml.nvmlEventTypeXidCriticalError, events)
    return events


def _collect_xids(nvml: ModuleType, session: _Session) -> None:
    if session.events is None:
        return
    places = {_address(seat.handle): seat.gpu.index for seat in session.seats if seat.handle is not None}
    for _ in range(_MAX_XIDS):
        try:
            event = nvml.nvmlEventSetWait_v2(session.events, 0)
        except nvml.NVMLError as error:
            if error.value in _SESSION_OVER:
                raise
            return  # mostly a timeout: nothing happened
        index = places.get(_address(event.device))
        if index is not None and event.eventType & nvml.nvmlEventTypeXidCriticalError:
            seen = session.xids.setdefault(index, [])
            if event.eventData not in seen:
                seen.append(int(event.eventData))
                del seen[:-_MAX_XIDS]


def _slow(nvml: ModuleType, handle: Any, gpu: Gpu) -> Gpu:
    if handle is None:
        raise nvml.NVMLError(nvml.NVML_ERROR_GPU_IS_LOST)
    load = _maybe(nvml, nvml.nvmlDeviceGetUtilizationRates, handle)
    power_mw = _maybe(nvml, nvml.nvmlDeviceGetPowerUsage, handle)
    reasons = _maybe(nvml, nvml.nvmlDeviceGetCurrentClocksThrottleReasons, handle)
    rows = _maybe(nvml, nvml.nvmlDeviceGetRemappedRows, handle)
    pages = _maybe(nvml, nvml.nvmlDeviceGetRetiredPagesPendingStatus, handle)
    mig = _maybe(nvml, nvml.nvmlDeviceGetMigMode, handle)
    pending = [bool(one) for one in (pages, None if rows is None else rows[2]) if one is not None]
    return replace(
        gpu,
        utilisation=None if load is None else int(load.gpu),
        temperature_c=_maybe(nvml, nvml.nvmlDeviceGetTemperature, handle, nvml.NVML_TEMPERATURE_GPU),
        power_w=None if power_mw is None else power_mw / 1000,
        ecc_uncorrected=_maybe(
            nvml,
            nvml.nvmlDeviceGetTotalEccErrors,
            handle,
            nvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED,
            nvml.NVML_VOLATILE_ECC,
        ),
        throttles=None
        if reasons is None
        else frozenset(name for bit, name in _THROTTLES.items() if reasons & bit),
        reset_pending=any(pending) if pending else None,
        remap_failed=None if rows is None else bool(rows[3]),
        recovery=_recovery(nvml, handle),
        mig=mig is not None and mig[0] == nvml.NVML_DEVICE_MIG_ENABLE,
    )


def _recovery(nvml: ModuleType, handle: Any) -> Recovery | None:
    values = _maybe(nvml, nvml.nvmlDeviceGetFieldValues, handle, [nvml.NVML_FI_DEV_GET_GPU_RECOVERY_ACTION])
    if values is None or values[0].nvmlReturn != nvml.NVML_SUCCESS:
        return None
    return _RECOVERIES.get(values[0].value.uiVal)


def _memory(nvml: ModuleType, handle: Any) -> Memory | None:
    # The first version counts the driver's own part as used; some drivers of that age lack the second.
    told = _maybe(nvml, nvml.nvmlDeviceGetMemoryInfo, handle, nvml.nvmlMemory_v2)
    if told is not None:
        return Memory(
            total=int(told.total), used=int(told.used), free=int(told.free), reserved=int(told.reserved)
        )
    told = _maybe(nvml, nvml.nvmlDeviceGetMemoryInfo, handle)
    if told is None:
        return None
    return Memory(total=int(told.total), used=int(told.used), free=int(told.free))


def _least_used(one: Memory | None, two: Memory | None) -> Memory | None:
    """Return the reading with less in use.

    The processes were read between the two. A model that was being loaded or freed meanwhile would else look
    like somebody else's memory; somebody else's will still be there at the next look.
    """
    if one is None or two is None:
        return two
    return min(one, two, key=lambda memory: memory.used)


def _processes(nvml: ModuleType, handle: Any) -> tuple[Process, ...] | None:
    """Return who holds memory, each process once; None if the driver does not tell."""
    found: dict[int, int | None] = {}
    told = False
    for kind in ("Compute", "Graphics", "MPSCompute"):
        rows = None
        for version in ("v3", "v2"):  # the second is what drivers before 510 have
            rows = _maybe(nvml, getattr(nvml, f"nvmlDeviceGet{kind}RunningProcesses_{version}"), handle)
            if rows is not None:
                break
        told = told or rows is not None
        for row in rows or ():
            # A process that computes and draws is in two lists, each with all that it holds.
            used = None if row.usedGpuMemory is None else int(row.usedGpuMemory)
            before = found.get(row.pid)
            found[row.pid] = used if before is None else max(before, used or 0)
    if not told:
        return None
    return tuple(Process(pid=pid, used=used, name=_name(pid)) for pid, used in sorted(found.items()))


def _instances(nvml: ModuleType, parent: Any, gpu: Gpu) -> "list[Gpu]":
    """Return the MIG instances: memory and processes are their own, heat and faults the whole GPU's."""
    found = []
    for index in range(_maybe(nvml, nvml.nvmlDeviceGetMaxMigDeviceCount, parent) or 0):
        handle = _maybe(nvml, nvml.nvmlDeviceGetMigDeviceHandleByIndex, parent, index)
        if handle is None:  # an empty place
            continue
        before = _memory(nvml, handle)
        processes = _processes(nvml, handle)
        found.append(
            replace(
                gpu,
                index=index,
                uuid=_text(_maybe(nvml, nvml.nvmlDeviceGetUUID, handle) or ""),
                name=_text(_maybe(nvml, nvml.nvmlDeviceGetName, handle) or gpu.name),
                memory=_least_used(before, _memory(nvml, handle)),
                processes=processes,
                utilisation=None,  # not told by instance
                mig=False,
                instances=(),
                parent=gpu.uuid,
            )
        )
    return found


def _maybe(nvml: ModuleType, call: Callable[..., Any], *arguments: Any) -> Any:
    """Call NVML; None if this one reading can't be had.

    Raises:
        NVMLError: The GPU or the session is gone: no other reading would work either.
    """
    try:
        return call(*arguments)
    except nvml.NVMLError as error:
        if error.value in _LOST or error.value in _SESSION_OVER:
            raise
        return None


def _name(pid: int) -> str:
    """Return a program's name; empty where process ids may be another namespace's."""
    try:
        if str(Path("/proc/self/ns/pid").readlink()) != _HOST_PIDS:
            return ""
        return Path(f"/proc/{pid}/comm").read_text(errors="replace").strip()
    except OSError:
        return ""


def _address(handle: Any) -> int:
    return ctypes.cast(handle, ctypes.c_void_p).value or 0


def _text(value: str | bytes) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else value
