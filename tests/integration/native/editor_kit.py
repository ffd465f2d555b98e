"""Nodes with editors, played: what each answers to calls that are passed on."""

import json
from typing import Any

from comfy_fleet.ports.comfyui import RawAnswer
from tests.fleet import until
from tests.integration.api_kit import Api, object_info

CLASSES = {"SaveImage": object_info()["SaveImage"], "EmptyImage": object_info()["EmptyImage"]}
EDITOR = {"X-Fleet-Origin": "editor"}
"""What the edge says of requests to the public port."""


def answer(body: bytes | str, kind: str = "text/html", *, status: int = 200, **headers: str) -> RawAnswer:
    """Return a node's answer."""
    body = body.encode() if isinstance(body, str) else body
    return RawAnswer(status=status, headers={"content-type": kind, **headers}, body=body)


def told(value: Any) -> RawAnswer:
    """Return a node's answer in JSON."""
    return answer(json.dumps(value), "application/json; charset=utf-8")


async def add_editor(
    api: Api,
    name: str,
    *,
    packages: dict[str, dict[str, str]] | None = None,
    simulated: bool = False,
    editor: bool | None = None,
    comfyui: str = "0.33.0",
) -> None:
    """Register a node with an editor, and wait until it is known; ``packages`` has files by name."""
    files = {
        f"/extensions/{package}/{file}": answer(text, "text/javascript")
        for package, its in (packages or {}).items()
        for file, text in its.items()
    }
    scripts = [path for path in files if path.endswith(".js")]
    api.info.raws[name] = {
        "/": answer(f"<!doctype html><title>editor of {name}</title>"),
        "/i18n": told({"en": {"of": name}}),
        "/workflow_templates": told({"Pack": [name]}),
        "/global_subgraphs": told({f"id-{name}": {"source": "templates", "name": name, "info": {}}}),
        f"/global_subgraphs/id-{name}": told({"name": name, "data": "{}"}),
        **files,
    }
    api.info.listings[name] = {"/extensions": scripts}
    api.info.serve(name, CLASSES, comfyui=comfyui)
    await api.add_node(name, info=False, simulated=simulated, editor=editor)
    await until(lambda: name in api.deps.inventories.known, what=f"{name} is known")
