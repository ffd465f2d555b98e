"""Single readings of a GPU through NVML; any of them may be missing."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

from comfy_fleet.domain.nodes.gpu import Gpu, GpuProcess, Memory, Recovery, Throttle

LOST = (15, 16)
"""NVML's errors for a GPU that is gone: lost; reset required."""

SESSION_OVER = (1, 9, 18)
"""NVML's errors that make all handles invalid: uninitialized; driver not loaded; versions differ."""

_HOST_PIDS = "pid:[4026531836]"  # the kernel's fixed name of the first process namespace (proc_ns.h)
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


def with_health(nvml: ModuleType, handle: Any, gpu: Gpu) -> Gpu:
    """Return a GPU with its slow or costly readings: load, heat, power, faults, division into instances.

    Raises:
        NVMLError: The GPU or the session is gone.
    """
    if handle is None:
        raise nvml.NVMLError(nvml.NVML_ERROR_GPU_IS_LOST)
    load = maybe(nvml, nvml.nvmlDeviceGetUtilizationRates, handle)
    power_mw = maybe(nvml, nvml.nvmlDeviceGetPowerUsage, handle)
    reasons = maybe(nvml, nvml.nvmlDeviceGetCurrentClocksThrottleReasons, handle)
    rows = maybe(nvml, nvml.nvmlDeviceGetRemappedRows, handle)
    pages = maybe(nvml, nvml.nvmlDeviceGetRetiredPagesPendingStatus, handle)
    mig = maybe(nvml, nvml.nvmlDeviceGetMigMode, handle)
    pending = [bool(one) for one in (pages, None if rows is None else rows[2]) if one is not None]
    return replace(
        gpu,
        utilisation=None if load is None else int(load.gpu),
        temperature_c=maybe(nvml, nvml.nvmlDeviceGetTemperature, handle, nvml.NVML_TEMPERATURE_GPU),
        power_w=None if power_mw is None else power_mw / 1000,
        ecc_uncorrected=maybe(
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
    values = maybe(nvml, nvml.nvmlDeviceGetFieldValues, handle, [nvml.NVML_FI_DEV_GET_GPU_RECOVERY_ACTION])
    if values is None or values[0].nvmlReturn != nvml.NVML_SUCCESS:
        return None
    return _RECOVERIES.get(values[0].value.uiVal)


def read_memory(nvml: ModuleType, handle: Any) -> Memory | None:
    """Return the memory; None if the driver does not report it."""
    # The first version counts the driver's own part as used; some old drivers lack the second.
    told = maybe(nvml, nvml.nvmlDeviceGetMemoryInfo, handle, nvml.nvmlMemory_v2)
    if told is not None:
        return Memory(
            total=int(told.total), used=int(told.used), free=int(told.free), reserved=int(told.reserved)
        )
    told = maybe(nvml, nvml.nvmlDeviceGetMemoryInfo, handle)
    if told is None:
        return None
    return Memory(total=int(told.total), used=int(told.used), free=int(told.free))


def read_held(nvml: ModuleType, handle: Any) -> tuple[Memory | None, tuple[GpuProcess, ...] | None]:
    """Return the memory and the processes that hold it.

    The memory is read before and after the processes, and the lower reading counts: otherwise a model that is
    loaded or freed meanwhile would look foreign. Memory that is really foreign will still be there next time.
    """
    before = read_memory(nvml, handle)
    processes = read_processes(nvml, handle)
    after = read_memory(nvml, handle)
    if before is None or after is None:
        return after, processes
    return min(before, after, key=lambda memory: memory.used), processes


def read_processes(nvml: ModuleType, handle: Any) -> tuple[GpuProcess, ...] | None:
    """Return the processes that hold memory, each once; None if the driver does not list them."""
    found: dict[int, int | None] = {}
    told = False
    for kind in ("Compute", "Graphics", "MPSCompute"):
        rows = None
        for version in ("v3", "v2"):  # drivers before 510 have only the second
            rows = maybe(nvml, getattr(nvml, f"nvmlDeviceGet{kind}RunningProcesses_{version}"), handle)
            if rows is not None:
                break
        told = told or rows is not None
        for row in rows or ():
            # A process that computes and draws is in both lists, each time with all of its memory.
            used = None if row.usedGpuMemory is None else int(row.usedGpuMemory)
            before = found.get(row.pid)
            found[row.pid] = used if before is None else max(before, used or 0)
    if not told:
        return None
    return tuple(GpuProcess(pid=pid, used=used, name=_name(pid)) for pid, used in sorted(found.items()))


def read_instances(nvml: ModuleType, parent: Any, gpu: Gpu) -> tuple[Gpu, ...]:
    """Return the MIG instances: memory and processes are their own, heat and faults are the whole GPU's."""
    found = []
    for index in range(maybe(nvml, nvml.nvmlDeviceGetMaxMigDeviceCount, parent) or 0):
        handle = maybe(nvml, nvml.nvmlDeviceGetMigDeviceHandleByIndex, parent, index)
        if handle is None:  # an unused slot
            continue
        memory, processes = read_held(nvml, handle)
        found.append(
            replace(
                gpu,
                index=index,
                uuid=text(maybe(nvml, nvml.nvmlDeviceGetUUID, handle) or ""),
                name=text(maybe(nvml, nvml.nvmlDeviceGetName, handle) or gpu.name),
                memory=memory,
                processes=processes,
                utilisation=None,  # not reported per instance
                mig=False,
                instances=(),
                parent=gpu.uuid,
            )
        )
    return tuple(found)


def maybe(nvml: ModuleType, call: Callable[..., Any], *arguments: Any) -> Any:
    """Call NVML; None if this reading is not available.

    Raises:
        NVMLError: The GPU or the session is gone: no other reading would work either.
    """
    try:
        return call(*arguments)
    except nvml.NVMLError as error:
        if error.value in LOST or error.value in SESSION_OVER:
            raise
        return None


def _name(pid: int) -> str:
    """Return a program's name; empty if process ids may be from another namespace."""
    try:
        if str(Path("/proc/self/ns/pid").readlink()) != _HOST_PIDS:
            return ""
        return Path(f"/proc/{pid}/comm").read_text(errors="replace").strip()
    except OSError:
        return ""


def text(value: str | bytes) -> str:
    """Return NVML's text as str; the binding may give bytes."""
    return value.decode(errors="replace") if isinstance(value, bytes) else value
