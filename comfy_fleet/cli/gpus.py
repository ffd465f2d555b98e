"""Which GPUs this machine has, or why that can't be told."""

from dataclasses import dataclass
from enum import StrEnum


class Nvml(StrEnum):
    """What NVML, NVIDIA's management library, has to say."""

    OK = "ok"
    NO_BINDING = "the Python package nvidia-ml-py is missing"
    NO_LIBRARY = "no NVIDIA driver is installed"
    NO_DRIVER = "the NVIDIA driver is not loaded"
    MISMATCH = "driver and library have different versions"
    NO_PERMISSION = "this user may not ask the driver"
    NO_GPU = "the driver sees no GPU"
    GPU_LOST = "a GPU has fallen off the bus"
    UNKNOWN = "NVML failed in an unexpected way"


WHAT_TO_DO = {
    Nvml.NO_BINDING: "pip install nvidia-ml-py",
    Nvml.NO_LIBRARY: "fine on a machine without NVIDIA GPUs; else install the driver",
    Nvml.NO_DRIVER: "modprobe nvidia, or reboot after the driver's installation",
    Nvml.MISMATCH: "reboot: the driver was upgraded under a running kernel module",
    Nvml.NO_PERMISSION: "add the user to the group that owns /dev/nvidia*",
    Nvml.NO_GPU: "in a container: start it with --gpus all",
    Nvml.GPU_LOST: "look into `dmesg` for Xid errors; the machine needs a reset",
    Nvml.UNKNOWN: "see what nvidia-smi says",
}


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """One GPU."""

    index: int
    name: str
    vram_bytes: int


@dataclass(frozen=True, kw_only=True)
class Gpus:
    """The GPUs, and why there are none if there are none."""

    why: Nvml
    gpus: tuple[Gpu, ...] = ()
    driver: str = ""
    error: str = ""


def probe() -> Gpus:
    """Ask NVML. Never raises."""
    try:
        import pynvml
    except ImportError:
        return Gpus(why=Nvml.NO_BINDING)
    reasons = {
        pynvml.NVML_ERROR_LIBRARY_NOT_FOUND: Nvml.NO_LIBRARY,
        pynvml.NVML_ERROR_DRIVER_NOT_LOADED: Nvml.NO_DRIVER,
        pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH: Nvml.MISMATCH,
        pynvml.NVML_ERROR_NO_PERMISSION: Nvml.NO_PERMISSION,
        pynvml.NVML_ERROR_GPU_IS_LOST: Nvml.GPU_LOST,
    }
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        return Gpus(why=reasons.get(error.value, Nvml.UNKNOWN), error=str(error))
    try:
        gpus = tuple(
            Gpu(index=index, name=_text(pynvml.nvmlDeviceGetName(handle)), vram_bytes=_vram(handle))
            for index in range(pynvml.nvmlDeviceGetCount())
            for handle in [pynvml.nvmlDeviceGetHandleByIndex(index)]
        )
        driver = _text(pynvml.nvmlSystemGetDriverVersion())
    except pynvml.NVMLError as error:
        return Gpus(why=reasons.get(error.value, Nvml.UNKNOWN), error=str(error))
    finally:
        pynvml.nvmlShutdown()
    return Gpus(why=Nvml.OK if gpus else Nvml.NO_GPU, gpus=gpus, driver=driver)


def _vram(handle: object) -> int:
    import pynvml

    return int(pynvml.nvmlDeviceGetMemoryInfo(handle).total)


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value
