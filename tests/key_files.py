"""Keys files, as the fleet takes them."""

from pathlib import Path

from comfy_fleet.api.auth import Keys
from comfy_fleet.bootstrap import open_keys_file
from comfy_fleet.settings import Settings


def write_keys(path: Path, text: str) -> Path:
    """Write a file that only its owner can read, and return it."""
    path.touch(0o600)
    path.chmod(0o600)
    path.write_text(text)
    return path


def keys_of(path: Path | None) -> Keys:
    """Return the keys of a file, as the API has them before it has read its store."""
    settings = Settings(keys_file=path)
    return Keys.load(settings, open_keys_file(settings))
