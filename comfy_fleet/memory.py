"""How a process asks the system for memory, and gives it back."""

import contextlib
import ctypes

COLLECT_AFTER = (20_000, 20, 50)
"""The garbage collector's thresholds where nearly everything is freed without it, or is never freed."""
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # from glibc's malloc.h


def give_memory_back() -> None:
    """Give large blocks back to the system once they are free.

    glibc stops doing so after the first one: once a block of up to 32 MiB was freed, it keeps all later ones
    up to that size, and copies them as they grow. Other C libraries are left alone.
    """
    with contextlib.suppress(OSError, AttributeError):  # no glibc
        libc = ctypes.CDLL(None)
        libc.mallopt(_M_MMAP_THRESHOLD, 1024 * 1024)
        libc.mallopt(_M_TRIM_THRESHOLD, 8 * 1024 * 1024)
