"""Clients as PyPI and npm have them: installed into a folder of their own, and run there."""

import asyncio
import json
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from tests.clients.caller import Caller
from tests.clients.graphs import editor_format, loading, on_websocket, saving

HERE = Path(__file__).parent
DRIVERS = HERE / "drivers"
RUN_S = 45.0
SHOWN = 300  # characters of a line; some programs print all of theirs


@dataclass(frozen=True)
class Published:
    """A client and the program of ours that uses it.

    Attributes:
        name: What tables show.
        driver: A file in ``drivers``.
        argument: What the driver gets after the address, the key and the folder.
        relayed: Whether the client can't show a key, and needs a relay that does.
        saves: Whether the picture that it gets is a saved file, byte for byte.
        one_prompt: Whether it stops when its person has a second prompt at work.
    """

    name: str
    driver: str
    argument: str = ""
    relayed: bool = False
    saves: bool = True
    one_prompt: bool = False


PUBLISHED = (
    Published("comfy run (API format)", "use_comfy_cli.py", "graph.json", relayed=True),
    Published("comfy run (UI format)", "use_comfy_cli.py", "editor.json", relayed=True),
    Published("@artifyfun/comfy-ui-client", "use_artifyfun.mjs"),
    Published("@saintno/comfyui-sdk", "use_saintno.mjs"),
    Published("@stable-canvas/comfyui-client", "use_stable_canvas.mjs"),
    Published("comfy-api-simplified", "use_comfy_api_simplified.py"),
    Published("comfy-script", "use_comfy_script.py", saves=False),  # it decodes it
    Published("comfy-toolkit", "use_comfy_toolkit.py"),
    Published("comfy-ui-client", "use_comfy_ui_client.mjs"),
    Published("comfyapi", "use_comfyapi.py", relayed=True),
    Published("comfykit", "use_comfykit.py"),
    Published("comfyui-utils", "use_comfyui_utils.py", one_prompt=True),
    Published("comfyui-workflow-client", "use_comfyui_workflow_client.py", saves=False),
    Published("comfyui-xy", "use_comfyui_xy.py"),
    Published("pycomfy", "use_pycomfy.py", relayed=True, saves=False),
)


def examples(home: Path) -> tuple[Published, ...]:
    """Return ComfyUI's own script examples."""
    found = sorted((home / "script_examples").glob("*.py"))
    return tuple(
        Published(f"ComfyUI: {one.stem}", "comfyui_example.py", str(one), saves="ws_images" not in one.stem)
        for one in found
    )


def packages() -> dict[str, str]:
    """Return the version of each package that is installed."""
    return {name: version for _, name, version in _wanted()}


def install(folder: Path) -> None:
    """Install the clients into a folder, unless it has them already."""
    made_for = folder / "made-for"
    wanted = (HERE / "packages.txt").read_text()
    if made_for.exists() and made_for.read_text() == wanted:
        return
    shutil.rmtree(folder / "tools", ignore_errors=True)
    shutil.rmtree(folder / "npm", ignore_errors=True)
    subprocess.run([sys.executable, "-m", "venv", folder / "tools"], check=True)
    python = [f"{name}=={version}" for registry, name, version in _wanted() if registry == "pypi"]
    pip = [str(folder / "tools/bin/pip"), "install", "-q", "--disable-pip-version-check"]
    subprocess.run([*pip, *python], check=True)
    (folder / "npm").mkdir()
    node = [f"{name}@{version}" for registry, name, version in _wanted() if registry == "npm"]
    npm = ["npm", "install", "--prefix", ".", "--silent", "--no-audit", "--no-fund", "--no-save"]
    subprocess.run([*npm, *node], cwd=folder / "npm", check=True)
    made_for.write_text(wanted)


async def picture(client: Published, me: Caller, color: int, *, installed: Path, job: Path) -> bytes:
    """Let a client make a picture of a color; returns what it got.

    Raises:
        AssertionError: The client failed; the message ends with what it said.
    """
    job.mkdir(parents=True)  # noqa: ASYNC240
    for name, graph in (
        ("graph.json", saving(color)),
        ("websocket.json", on_websocket(color)),
        ("editor.json", editor_format(color)),
        ("loading.json", loading("to be uploaded")),
    ):
        (job / name).write_text(json.dumps(graph))
    driver = DRIVERS / client.driver
    if driver.suffix == ".mjs":
        shutil.copy(driver, installed / "npm")  # node looks for packages beside the program
        program = ["node", str(installed / "npm" / driver.name)]
    else:
        program = [str(installed / "tools/bin/python"), str(driver)]
    arguments = [me.url, me.key, str(job), *([client.argument] if client.argument else [])]
    with (job / "log").open("wb") as log:
        process = await asyncio.create_subprocess_exec(*program, *arguments, cwd=job, stdout=log, stderr=log)
        try:
            async with asyncio.timeout(RUN_S):
                code = await process.wait()
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
    if code != 0:
        lines = (job / "log").read_text(errors="replace").strip().splitlines()
        said = "\n".join(line[:SHOWN] for line in lines[-8:])
        raise AssertionError(f"{driver.name} ended with {code}:\n{said}")
    return (job / "picture").read_bytes()


def _wanted() -> list[tuple[str, str, str]]:
    lines = (HERE / "packages.txt").read_text().splitlines()
    found = []
    for line in lines:
        if line and not line.startswith("#"):
            registry, name, version = line.split()
            found.append((registry, name, version))
    return found
