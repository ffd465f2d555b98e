"""What the figures were measured on."""

import os
import platform
import re
import subprocess
from importlib.metadata import version
from pathlib import Path

from comfy_fleet.adapters.system.redis_program import program


def describe(bench_python: Path, haproxy: str) -> dict[str, str]:
    """Return the machine and the versions that matter, ready for a table.

    Args:
        bench_python: The Python that has comfy-api-proxy.
        haproxy: HAProxy's program.
    """
    facts = {
        "CPU": f"{_cpu()}, {os.cpu_count()} cores visible",
        "Memory": _memory(),
        "Kernel": f"{platform.system()} {platform.release()}",
        "Python": platform.python_version(),
        "HAProxy": _first(r"version (\S+)", [haproxy, "-v"]),
        "Redis": _first(r"v=(\S+)", [program(), "--version"]),
        "Libraries": ", ".join(
            f"{name} {version(name)}" for name in ("rq", "redis", "httpx", "websockets", "uvicorn", "uvloop")
        ),
    }
    ask = "from importlib.metadata import version; print('v=' + version('comfy-api-proxy'))"
    facts["comfy-api-proxy"] = _first(r"v=(\S+)", [str(bench_python), "-c", ask])
    return facts


def load_average() -> str:
    """Return the load of the last minute: how much else the machine was doing."""
    return f"{os.getloadavg()[0]:.1f}"


def _cpu() -> str:
    text = Path("/proc/cpuinfo").read_text()
    found = re.search(r"^model name\s*: (.+)$", text, re.MULTILINE)
    return found[1] if found else platform.machine()


def _memory() -> str:
    found = re.search(r"^MemTotal:\s+(\d+) kB", Path("/proc/meminfo").read_text(), re.MULTILINE)
    return f"{int(found[1]) / 2**20:.0f} GiB" if found else "unknown"


def _first(pattern: str, command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    found = re.search(pattern, done.stdout + done.stderr)
    return found[1].strip(",") if found else "unknown"
