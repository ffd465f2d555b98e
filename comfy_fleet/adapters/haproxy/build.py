"""Checks that an HAProxy has the right version and parts."""

import re
import subprocess
from dataclasses import dataclass

from comfy_fleet.domain.errors import ConfigError

OLDEST = (2, 6)
_VERSION = re.compile(r"HA-?Proxy version (\d+)\.(\d+)(?:\.(\d+))?")
_LUA = re.compile(r"\+LUA\b|USE_LUA=1")
_EXPORTER = re.compile(r"prometheus-exporter|\+PROMEX\b")
_PATIENCE_S = 10.0


@dataclass(frozen=True, kw_only=True)
class Build:
    """What ``haproxy -vv`` says.

    Attributes:
        version: Major, minor and patch; empty if not given.
        lua: Whether Lua is built in; it chooses among the able nodes.
        exporter: Whether the Prometheus exporter is built in; the configuration uses it.
    """

    version: tuple[int, ...]
    lua: bool
    exporter: bool

    @classmethod
    def read(cls, text: str) -> "Build":
        """Read the output of ``haproxy -vv``."""
        found = _VERSION.search(text)
        return cls(
            version=tuple(int(part) for part in found.groups() if part is not None) if found else (),
            lua=bool(_LUA.search(text)),
            exporter=bool(_EXPORTER.search(text)),
        )

    @property
    def words(self) -> str:
        """The version as people write it."""
        return ".".join(map(str, self.version))

    def faults(self) -> dict[str, tuple[str, str]]:
        """Return each problem, by the part that was checked: its description, and what to do.

        A version that is too old is the only problem reported: missing parts follow from it.
        """
        if not self.version:
            return {"HAProxy": ("it does not say its version", "set FLEET_HAPROXY_BIN to HAProxy's program")}
        if self.version[:2] < OLDEST:
            needed = ".".join(map(str, OLDEST))
            return {"HAProxy": (f"HAProxy {self.words} is too old", f"install HAProxy {needed} or newer")}
        faults = {}
        if not self.lua:
            faults["HAProxy Lua"] = (
                "this build has no Lua, which chooses among the able nodes",
                "use the distribution's package, or build with USE_LUA=1",
            )
        if not self.exporter:
            faults["HAProxy metrics"] = (
                "this build has no Prometheus exporter, which the configuration uses",
                "use the distribution's package, or build with USE_PROMEX=1",
            )
        return faults


def look(program: str) -> Build:
    """Ask a program for its version and parts.

    Raises:
        ConfigError: It can't be run.
    """
    try:
        told = subprocess.run(
            [program, "-vv"],
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_PATIENCE_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ConfigError(
            f"HAProxy: can't run {program!r}: {getattr(error, 'strerror', None) or error}; "
            "install it or set FLEET_HAPROXY_BIN to its program",
            details={"program": program},
        ) from error
    return Build.read(told.stdout + told.stderr)


def require(program: str) -> None:
    """Check an HAProxy before it fails with an unclear message.

    Raises:
        ConfigError: It is too old, lacks a part, or can't be run.
    """
    for found, do in look(program).faults().values():
        raise ConfigError(f"{program}: {found}; {do}", details={"program": program})
