"""``fleet workflow``: stored workflows, their parameters, and a check that nodes can run them."""

import json
import re
from typing import Annotated, Any

import typer

from comfy_fleet.cli.exits import Exit
from comfy_fleet.cli.options import DEFAULT_API, Api, Json, Key
from comfy_fleet.cli.parameters import schema_of, warn_of_broken
from comfy_fleet.cli.paths import path_of

app = typer.Typer(help="List, show and check stored workflows.", no_args_is_help=True)

Name = Annotated[str, typer.Argument(help="The workflow's name.")]


@app.command("list", hidden=True)
@app.command("ls")
def list_(json_: Json = False, api: Api = DEFAULT_API, key: Key = None) -> None:
    """List the stored workflows."""
    from rich.markup import escape

    from comfy_fleet.cli.client import Client
    from comfy_fleet.cli.console import print_json, stderr, stdout, table

    with Client(api, key) as client:
        answer = client.get("/api/v1/workflows")
    if json_:
        print_json(answer)
        return
    rows = [
        (
            workflow["name"],
            ("folder" if workflow["folder"] else "store") if "folder" in workflow else None,
            workflow.get("title"),
            _first_sentence(workflow.get("description") or ""),
        )
        for workflow in answer["workflows"]
    ]
    broken: dict[str, str] = answer.get("broken") or {}
    if rows:
        stdout().print(table(["<Workflow", "<In", "Title", "Description"], rows))
    elif not broken:
        stderr().print("no workflows; add one: fleet workflow add FILE --name NAME")
    listed = {row[0] for row in rows}
    for name, why in broken.items():
        stderr().print(f"[bold red]broken:[/] {escape(name)}: {escape(why)}")
        if name in listed:
            stderr().print(f"  its last good version is served meanwhile: {escape(name)}")


@app.command()
def show(name: Name, json_: Json = False, api: Api = DEFAULT_API, key: Key = None) -> None:
    """Show a workflow's parameters and what it needs."""
    from comfy_fleet.cli.client import Client
    from comfy_fleet.cli.console import facts, print_json, stdout, table

    with Client(api, key) as client:
        workflow = client.get(path_of("workflow", name))
    if json_:
        print_json(workflow)
        return
    console = stdout()
    warn_of_broken(name, workflow)
    requires = workflow.get("requires") or {}
    console.print(
        facts(
            {
                "workflow": workflow.get("name", name),
                "title": workflow.get("title"),
                "about": " ".join((workflow.get("description") or "").split()),
                "version": workflow.get("version"),
                "needs": _needs(requires),
                "note": requires.get("note"),
            }
        )
    )
    schema = schema_of(workflow)
    required = set(schema.get("required") or [])
    rows = [
        (
            parameter,
            about.get("x-fleet-type") or about.get("type"),
            "required" if parameter in required else about.get("default"),
            _limits(about),
            about.get("description") or about.get("title"),
        )
        for parameter, about in (schema.get("properties") or {}).items()
    ]
    if rows:
        console.print()
        console.print(table(["<Parameter", "<Type", "Default", "Limits", "Description"], rows))
    else:
        console.print(
            "\nno parameters: title a node of the graph $prompt, for example, or name one in workflow.toml; "
            "see docs/howto/stored-workflows.md"
        )
    if models := requires.get("models"):
        console.print()
        files = [
            (f"{model.get('folder')}/{model.get('file')}", model.get("source") or "") for model in models
        ]
        console.print(table(["Model file", "Source"], files))


@app.command()
def check(
    name: Name,
    node: Annotated[str | None, typer.Option(help="Check only this node.", show_default="every node")] = None,
    strict: Annotated[
        bool, typer.Option("--strict", help="Exit with 1 even if only some choice of a parameter can't run.")
    ] = False,
    json_: Json = False,
    api: Api = DEFAULT_API,
    key: Key = None,
) -> None:
    """Check that live nodes can run a workflow, and show what is missing.

    Exits with 1 if no node can run it, or if the named node can't.
    """
    from comfy_fleet.cli.client import Client
    from comfy_fleet.cli.console import print_json, stdout, table

    with Client(api, key) as client:
        answer = client.get(path_of("workflow", name, "/check"), node=node)
    able = any(not found["problems"] if strict else found["ok"] for found in answer["nodes"])
    if json_:
        print_json(answer)
        raise typer.Exit(Exit.OK if able else Exit.FAILED)
    warn_of_broken(name, answer)
    alike: dict[str, list[dict[str, Any]]] = {}
    for found in answer["nodes"]:
        alike.setdefault(json.dumps([found.get("comfyui"), found["problems"]]), []).append(found)
    rows: list[tuple[Any, ...]] = []
    for nodes in alike.values():
        found = nodes[0]
        head = (", ".join(one["node"] for one in nodes), found.get("comfyui") or "")
        problems = found["problems"] or [{"kind": "ok", "message": "can run it"}]
        for index, problem in enumerate(problems):
            rows.append((*(head if index == 0 else ("", "")), problem["kind"], problem["message"]))
    stdout().print(table(["Node", "<ComfyUI", "<Finding", "Message"], rows))
    raise typer.Exit(Exit.OK if able else Exit.FAILED)


def _first_sentence(text: str) -> str:
    return re.split(r"(?<=\w[.:;])\s", " ".join(text.split()), maxsplit=1)[0].rstrip(".:;")


def _needs(requires: dict[str, Any]) -> str:
    parts = []
    if requires.get("comfyui"):
        parts.append(f"ComfyUI {requires['comfyui']}")
    if requires.get("vram_gb"):
        parts.append(f"{requires['vram_gb']:g} GiB of VRAM")
    if requires.get("models"):
        parts.append(f"{len(requires['models'])} model files")
    return ", ".join(parts)


def _limits(about: dict[str, Any]) -> str:
    if "enum" in about:
        return ", ".join(str(value) for value in about["enum"])
    low, high = about.get("minimum"), about.get("maximum")
    words = ""
    if low is not None:
        words = f"from {low}" if high is None else f"{low} to {high}"
    elif high is not None:
        words = f"up to {high}"
    if step := about.get("multipleOf"):
        words += f" step {step}"
    if longest := about.get("maxLength"):
        words += f" ≤ {longest} characters"
    return words.strip()
