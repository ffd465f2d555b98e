"""Write files that HAProxy has accepted: ``.new``, ``haproxy -c``, rename; a refused file is kept."""

import logging
import subprocess
from pathlib import Path

from comfy_fleet.adapters.haproxy.certificates import write_private
from comfy_fleet.adapters.haproxy.config_render import ConfigFiles, Rendered
from comfy_fleet.adapters.system.folders import private_folder
from comfy_fleet.domain.errors import ConfigError

logger = logging.getLogger(__name__)

_CHECK_TIMEOUT_S = 30
_VALID = "Configuration file is valid"


def check(program: str, path: Path) -> str:
    """Have HAProxy check a configuration; return its warnings, empty if there are none.

    Raises:
        ConfigError: HAProxy refuses it (the message says why), or HAProxy is missing.
    """
    try:
        done = subprocess.run(
            [program, "-c", "-f", str(path)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=_CHECK_TIMEOUT_S,
            check=False,
        )
    except FileNotFoundError:
        raise ConfigError(
            f"HAProxy's program {program!r} is missing: `apt-get install haproxy`, or set FLEET_HAPROXY_BIN"
        ) from None
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ConfigError(f"`{program} -c` did not run: {error}") from error
    output = done.stdout.decode(errors="replace").replace(_VALID, "").strip()
    if done.returncode != 0:
        raise ConfigError(
            f"HAProxy refuses {path.name}: {output or f'exit status {done.returncode}'}",
            details={"path": str(path), "status": done.returncode},
        )
    return output


def apply(rendered: Rendered, places: ConfigFiles, *, program: str) -> frozenset[str]:
    """Write the changed files, once HAProxy has accepted them; all or nothing.

    Args:
        rendered: The texts.
        places: Their paths.
        program: HAProxy, for the check.

    Returns:
        The names of the files that changed: ``broker.cfg``, ``edge.cfg``, ``pools.map``, ``nodes.map``,
        ``no-editors.map``, ``broker-secrets.map``.

    Raises:
        ConfigError: HAProxy refused one. It is kept beside the good one as ``.rejected``; nothing was
            replaced.
    """
    private_folder(places.folder)
    maps = {
        places.pools: rendered.pools,
        places.vias: rendered.vias,
        places.no_editors: rendered.no_editors,
        places.secrets: rendered.secrets,
    }
    for path, text in maps.items():
        # From a process that was killed; it may contain passwords of removed nodes.
        _beside(path).unlink(missing_ok=True)
        if not path.exists():
            _write(path, text)  # the broker's configuration refers to it
    for name, pem in rendered.certificates.items():
        if not (place := places.folder / name).exists():  # named by its content
            write_private(_beside(place), pem)
            _beside(place).replace(place)
    texts = {
        **maps,
        places.broker: rendered.broker,
        places.edge: rendered.edge,
    }
    changed = [path for path, text in texts.items() if not path.exists() or path.read_text() != text]
    ready: list[tuple[Path, Path]] = []
    for path in changed:
        new = _beside(path)
        _write(new, texts[path])
        if path not in maps:
            try:
                warnings = check(program, new)
            except ConfigError as error:
                rejected = path.with_name(path.name + ".rejected")
                new.replace(rejected)
                logger.error("configuration rejected", extra={"file": str(rejected), "reason": error.message})
                for left, _ in ready:
                    left.unlink()
                raise
            if warnings:
                logger.warning("configuration has warnings", extra={"file": str(path), "reason": warnings})
        ready.append((new, path))
    for new, path in ready:
        new.replace(path)
        logger.info("configuration written", extra={"file": str(path)})
    for old in places.folder.glob("tls-*.pem*"):  # a worker keeps in memory what it has read
        if old.name not in rendered.certificates:
            old.unlink(missing_ok=True)
    return frozenset(path.name for path in changed)


def _beside(path: Path) -> Path:
    return path.with_name(path.name + ".new")


def _write(path: Path, text: str) -> None:
    """Write a file that only this user can ever read: a map contains passwords."""
    write_private(path, text.encode())
