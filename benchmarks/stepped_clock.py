"""A clock that is set forward and back under a program, as an operator or NTP would."""

import shutil
import struct
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from benchmarks.stage import BenchError
from comfy_fleet.settings import SOURCE

_SOURCE = SOURCE / "tests" / "native" / "stepped_clock.c"


@dataclass(frozen=True, kw_only=True)
class SteppedClock:
    """The time of day of every program that is started with its environment; monotonic clocks are left alone.

    Attributes:
        env: What such a program needs.
        file: How far its time is ahead of the real one.
    """

    env: Mapping[str, str]
    file: Path

    @classmethod
    def make(cls, folder: Path) -> "SteppedClock":
        """Compile it into a folder; it shows the real time at first.

        Raises:
            BenchError: There is no C compiler.
        """
        compiler = shutil.which("cc")
        if compiler is None:
            raise BenchError("no C compiler: install cc for the clock that is stepped")
        library, file = folder / "clock.so", folder / "ahead"
        flags = ["-std=gnu11", "-Wall", "-Wextra", "-Werror", "-O1", "-shared", "-fPIC"]
        subprocess.run([compiler, *flags, "-o", library, _SOURCE], check=True, timeout=60)
        file.write_bytes(struct.pack("q", 0))
        return cls(env={"LD_PRELOAD": str(library), "STEPPED_CLOCK": str(file)}, file=file)

    def step(self, seconds: int) -> None:
        """Set it so many seconds ahead of the real time."""
        with self.file.open("r+b") as file:  # in place: it is mapped
            file.write(struct.pack("q", seconds))
