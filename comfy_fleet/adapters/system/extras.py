"""How to add what is installed on request only."""

import sys
from pathlib import Path


def command(extra: str) -> str:
    """Return the command that adds an extra to the environment that this runs in."""
    pip, parts = "pip", Path(sys.prefix).parts
    if parts[-3:-1] == ("pipx", "venvs"):
        pip = f"pipx runpip {parts[-1]}"
    return f"{pip} install 'comfy-fleet[{extra}]'"
