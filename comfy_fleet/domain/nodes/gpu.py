"""What a probe saw of a machine's GPUs, as plain values.

Any reading except the index may be missing: drivers, cards and containers differ in what they report. None
means "not reported", never "zero".
"""

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum


class Nvml(StrEnum):
    """Whether NVML, NVIDIA's management library, can be read, and if not, why."""

    OK = "ok"
    NO_BINDING = "the Python package nvidia-ml-py is missing"
    NO_LIBRARY = "no NVIDIA driver is installed"
    NO_DRIVER = "the NVIDIA driver is not loaded"
    VERSION_MISMATCH = "driver and library have different versions"
    NO_PERMISSION = "this user may not ask the driver"
    NO_DEVICE = "the driver sees no GPU"
    LOST_DEVICE = "a GPU has fallen off the bus"
    NOT_SUPPORTED = "this driver does not support NVML here"
    SILENT = "the driver does not answer"
    UNKNOWN = "NVML failed in an unexpected way"

    @property
    def what_to_do(self) -> str:
        """Advice for the operator; empty if there is nothing to do."""
        return _WHAT_TO_DO[self]


_WHAT_TO_DO = {
    Nvml.OK: "",
    Nvml.NO_BINDING: "pip install nvidia-ml-py",
    Nvml.NO_LIBRARY: "fine on a machine without NVIDIA GPUs; else install the driver",
    Nvml.NO_DRIVER: "modprobe nvidia, or reboot after the driver's installation",
    Nvml.VERSION_MISMATCH: "reboot: the driver was upgraded under a running kernel module",
    Nvml.NO_PERMISSION: "add the user to the group that owns /dev/nvidia*",
    Nvml.NO_DEVICE: "in a container: start it with --gpus all",
    Nvml.LOST_DEVICE: "look into `dmesg` for Xid errors; the GPU or the machine needs a reset",
    Nvml.NOT_SUPPORTED: "upgrade the driver; until then memory is read from ComfyUI",
    Nvml.SILENT: "look into `dmesg` for Xid errors; a driver that hangs mostly needs a reboot",
    Nvml.UNKNOWN: "see what nvidia-smi says",
}


class Throttle(StrEnum):
    """Why a GPU runs slower than it could. Power caps are left out: most cards reach theirs all day."""

    SOFT_THERMAL = "software thermal slowdown"
    HARD_THERMAL = "hardware thermal slowdown"
    HARD = "hardware slowdown"
    POWER_BRAKE = "external power brake"


class Recovery(StrEnum):
    """What the driver itself says must be done before the GPU works properly again."""

    NONE = ""
    RESET = "a GPU reset"
    REBOOT = "a reboot"
    DRAIN = "an empty GPU and then a reset"


@dataclass(frozen=True, kw_only=True)
class Memory:
    """A GPU's memory in bytes.

    Attributes:
        total: All of it, the driver's own part included.
        used: What processes hold.
        free: What is neither used nor reserved.
        reserved: The driver's own part, never available; None where the driver counts it as used.
    """

    total: int
    used: int
    free: int
    reserved: int | None = None


@dataclass(frozen=True, kw_only=True)
class GpuProcess:
    """A process on a GPU.

    Attributes:
        pid: The driver's number for it: usually the host's, even inside a container.
        used: Bytes of GPU memory; None where the driver hides it (Windows).
        name: The program, if it is known.
    """

    pid: int
    used: int | None = None
    name: str = ""


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """One GPU, or one MIG instance of a GPU.

    Attributes:
        index: Its place in NVML's order; a MIG instance's place on its GPU.
        uuid: ``GPU-...`` or ``MIG-...``: what ``CUDA_VISIBLE_DEVICES`` takes.
        memory: Its memory.
        processes: Its processes; None if the driver does not list them at all.
        utilisation: Percent of the time in which a kernel ran.
        temperature_c: Degrees Celsius.
        power_w: Watts.
        ecc_uncorrected: Memory errors beyond correction since the driver was loaded.
        throttles: Why it runs slower than it could.
        reset_pending: Whether bad memory was found that needs a reset to be taken out of use.
        remap_failed: Whether spare memory rows have run out: the card is worn.
        recovery: What the driver demands.
        xids: Xid numbers that the driver reported since the probe was opened.
        lost: Whether it was there and no longer answers.
        mig: Whether it is divided into instances; then only these can be used.
        instances: Its MIG instances.
        parent: UUID of the GPU that a MIG instance is a part of.
    """

    index: int
    uuid: str = ""
    name: str = ""
    memory: Memory | None = None
    processes: tuple[GpuProcess, ...] | None = None
    utilisation: int | None = None
    temperature_c: int | None = None
    power_w: float | None = None
    ecc_uncorrected: int | None = None
    throttles: frozenset[Throttle] | None = None
    reset_pending: bool | None = None
    remap_failed: bool | None = None
    recovery: Recovery | None = None
    xids: tuple[int, ...] | None = None
    lost: bool = False
    mig: bool = False
    instances: tuple["Gpu", ...] = ()
    parent: str = ""


@dataclass(frozen=True, kw_only=True)
class Gpus:
    """One look at all GPUs of a machine.

    Attributes:
        why: OK, or why nothing could be read.
        gpus: The GPUs in NVML's order, lost ones included.
        driver: The driver's version.
        error: The driver's own message, if something failed.
        took_s: Seconds that the look took.
    """

    why: Nvml
    gpus: tuple[Gpu, ...] = ()
    driver: str = ""
    error: str = ""
    took_s: float = 0.0

    def usable(self) -> Iterator[Gpu]:
        """Yield the devices that a process can use: GPUs, and in place of a divided GPU its instances."""
        for gpu in self.gpus:
            if gpu.mig:
                yield from gpu.instances
            else:
                yield gpu

    def find(self, key: str) -> Gpu | None:
        """Return the GPU or instance that a value of ``CUDA_VISIBLE_DEVICES`` names: an index or a UUID.

        A UUID may be shortened, as in CUDA, as long as it is unique. A number counts in NVML's order,
        which is CUDA's only under ``CUDA_DEVICE_ORDER=PCI_BUS_ID``; of a divided GPU, CUDA takes the first
        instance.
        """
        if key.isdecimal():
            gpu = next((gpu for gpu in self.gpus if gpu.index == int(key)), None)
            return gpu.instances[0] if gpu is not None and gpu.mig and gpu.instances else gpu
        everything = [one for gpu in self.gpus for one in (gpu, *gpu.instances)]
        found = [one for one in everything if key and one.uuid.startswith(key)]
        return found[0] if len(found) == 1 else None
