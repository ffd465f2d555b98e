"""Reads the files in ``docker/`` as Compose and the image builder would, as far as tests need."""

import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from dockerfile_parse import DockerfileParser

ROOT = Path(__file__).parents[1]
DOCKER = ROOT / "docker"
COMPOSE = DOCKER / "compose.yaml"
FLEET = DOCKER / "compose.fleet.yaml"
STACK = DOCKER / "stack.yaml"
MONITORING = DOCKER / "compose.monitoring.yaml"
"""An override of the first two."""
IMAGES = {"fleet": DOCKER / "Dockerfile", "comfyui": DOCKER / "comfyui" / "Dockerfile"}

_VARIABLE = re.compile(r"\$(?:\$|\{(?P<name>[A-Z0-9_]+)(?::-(?P<default>[^}]*))?\})")


_yaml = cache(yaml.safe_load)  # by the text; what it returns is copied before anybody changes it


def interpolate(value: Any, variables: Mapping[str, str]) -> Any:
    """Put variables in, everywhere below a value: ``${NAME:-DEFAULT}``, and ``$$`` for a dollar sign."""

    def put(match: re.Match[str]) -> str:
        if match["name"] is None:
            return "$"
        return variables.get(match["name"]) or match["default"] or ""

    match value:
        case str():
            return _VARIABLE.sub(put, value)
        case dict():
            return {key: interpolate(below, variables) for key, below in value.items()}
        case list():
            return [interpolate(below, variables) for below in value]
    return value


def load(path: Path, variables: Mapping[str, str] | None = None) -> dict[str, Any]:
    """Return a Compose file with its merges and variables resolved."""
    found: dict[str, Any] = interpolate(_yaml(path.read_text()), variables or {})
    return found


def services(path: Path, variables: Mapping[str, str] | None = None) -> dict[str, dict[str, Any]]:
    """Return the services of a Compose file, what they extend included (as far as these files use it)."""
    found: dict[str, dict[str, Any]] = {}
    for name, service in load(path, variables)["services"].items():
        base = service.pop("extends", None)
        if base is not None:
            parent = services(path.parent / base["file"], variables)[base["service"]]
            for key, value in service.items():
                if isinstance(value, dict) and isinstance(parent.get(key), dict):
                    parent[key] = {**parent[key], **value}
                elif isinstance(value, list) and isinstance(parent.get(key), list):
                    parent[key] = [*parent[key], *value]
                else:
                    parent[key] = value
            service = parent
        found[name] = service
    return found


def variables_in(path: Path) -> dict[str, set[str]]:
    """Return the variables that a file asks for, with the defaults that it gives."""
    found: dict[str, set[str]] = {}
    for match in _VARIABLE.finditer(path.read_text()):
        if match["name"]:
            found.setdefault(match["name"], set()).add(match["default"] or "")
    return found


def example() -> dict[str, str]:
    """Return what ``.env.example`` sets."""
    lines = (DOCKER / ".env.example").read_text().splitlines()
    return dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))


def stages(path: Path) -> dict[str, list[tuple[str, str]]]:
    """Return an image file's stages: instructions with their values, those of the stage below included."""
    found: dict[str, list[tuple[str, str]]] = {}
    current = ""
    for step in DockerfileParser(path=str(path)).structure:
        name, value = step["instruction"], step["value"]
        if name == "FROM":
            words = value.split()
            current = words[2] if len(words) == 3 else words[0]
            found[current] = [*found.get(words[0], []), (name, value)]
        elif current and name != "COMMENT":
            found[current].append((name, value))
    return found


def last(steps: list[tuple[str, str]], instruction: str) -> str | None:
    """Return the value that holds in the end."""
    return next((value for name, value in reversed(steps) if name == instruction), None)
