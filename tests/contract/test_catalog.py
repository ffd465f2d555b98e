"""The folder of stored workflows, edited while it is served."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from comfy_fleet.adapters.workflows.catalog import WorkflowCatalog, load
from comfy_fleet.domain.errors import ConfigError, NotFound, WorkflowBroken
from comfy_fleet.domain.graphs.binding import bind

GRAPH: dict[str, Any] = {
    "1": {
        "class_type": "CLIPTextEncode",
        "inputs": {"text": "a", "clip": ["4", 1]},
        "_meta": {"title": "$prompt"},
    },
    "2": {
        "class_type": "CLIPTextEncode",
        "inputs": {"text": "b", "clip": ["4", 1]},
        "_meta": {"title": "No"},
    },
    "3": {
        "class_type": "KSampler",
        "inputs": {"seed": 1, "steps": 20, "cfg": 4, "model": ["5", 0], "positive": ["1", 0]},
        "_meta": {"title": "KSampler"},
    },
    "4": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "x.ckpt"}},
    "5": {
        "class_type": "LoraLoader",
        "inputs": {"lora_name": "l", "model": ["4", 0]},
        "_meta": {"title": "LoRA"},
    },
}


def write(folder: Path, name: str, graph: Any = GRAPH, manifest: str | None = None) -> Path:
    target = folder / name
    target.mkdir(exist_ok=True)
    (target / "workflow.json").write_text(graph if isinstance(graph, str) else json.dumps(graph), "utf-8")
    if manifest is not None:
        (target / "workflow.toml").write_text(manifest, "utf-8")
    return target


def refused(tmp_path: Path, manifest: str, graph: Any = GRAPH) -> str:
    with pytest.raises(ConfigError) as caught:
        load(write(tmp_path, "bad", graph, manifest))
    assert str(caught.value).startswith("bad/workflow.")
    return str(caught.value)


def test_workflows_are_listed_by_name(tmp_path: Path) -> None:
    for name in ("b", "a"):
        write(tmp_path, name)
    (tmp_path / "no-graph").mkdir()
    (tmp_path / "README.md").write_text("x")
    catalog = WorkflowCatalog(tmp_path)
    assert catalog.names() == ["a", "b"]
    assert [workflow.name for workflow in catalog.list()] == ["a", "b"]
    assert catalog.errors() == {}


def test_what_was_meant_as_a_workflow_is_not_passed_over_in_silence(tmp_path: Path) -> None:
    write(tmp_path, "good")
    write(tmp_path, "My Workflow")
    write(tmp_path, "ÄÖ")
    (tmp_path / "portrait.json").write_text("{}")
    (tmp_path / "half").mkdir()
    (tmp_path / "half" / "workflow.toml").write_text("")
    (tmp_path / "notes").mkdir()
    catalog = WorkflowCatalog(tmp_path)
    assert catalog.names() == ["good"]
    told = {name: str(error) for name, error in catalog.errors().items()}
    assert set(told) == {"My Workflow", "ÄÖ", "portrait.json", "half"}
    assert "a-z 0-9 _ . -" in told["My Workflow"] and "my_workflow" in told["My Workflow"]
    assert "move it to portrait/workflow.json" in told["portrait.json"]
    assert "there is no workflow.json" in told["half"]


def test_a_bad_title_is_told_of_its_own_file_and_alone(tmp_path: Path) -> None:
    graph = json.loads(json.dumps(GRAPH))
    node = next(iter(graph.values()))
    node["_meta"] = {"title": "$Prompt"}
    manifest = '[parameters.steps]\ndescription = "x"\n'
    told = refused(tmp_path, manifest, graph)
    assert told.startswith("bad/workflow.json: title '$Prompt' of node")
    assert "steps" not in told


def test_a_title_alone_makes_a_parameter(tmp_path: Path) -> None:
    write(tmp_path, "w")
    (prompt,) = WorkflowCatalog(tmp_path).get("w").parameters
    assert (prompt.name, prompt.default, prompt.targets[0].node_id) == ("prompt", "a", "1")


@pytest.mark.parametrize("name", ["nope", "../w", "w/../w", "/etc", "", ".", "..", "W", "w\0", "a" * 500])
def test_what_is_not_there_is_not_found(tmp_path: Path, name: str) -> None:
    write(tmp_path, "w")
    with pytest.raises(NotFound) as caught:
        WorkflowCatalog(tmp_path).get(name)
    assert caught.value.details["workflows"] == ["w"]


def test_an_edit_is_picked_up_and_a_broken_one_is_not(tmp_path: Path) -> None:
    write(tmp_path, "w", manifest="title = 'One'")
    catalog = WorkflowCatalog(tmp_path)
    first = catalog.get("w")
    assert catalog.get("w") is first

    write(tmp_path, "w", manifest="title = 'Two!'")
    second = catalog.get("w")
    assert (second.title, second.version != first.version) == ("Two!", True)

    write(tmp_path, "w", graph="{ half a fi")
    assert catalog.get("w") is second
    assert "w/workflow.json is not JSON" in str(catalog.errors()["w"])
    assert catalog.names() == ["w"]

    write(tmp_path, "w")
    assert catalog.errors() == {}
    assert catalog.get("w").version == second.version


def test_a_workflow_that_never_worked_says_why_and_one_that_is_gone_is_gone(tmp_path: Path) -> None:
    folder = write(tmp_path, "w", graph="[]")
    catalog = WorkflowCatalog(tmp_path)
    assert catalog.names() == []
    with pytest.raises(WorkflowBroken, match=r"workflow w can't be used: w/workflow\.json"):
        catalog.get("w")
    (folder / "workflow.json").unlink()
    with pytest.raises(NotFound):
        catalog.get("w")
    assert catalog.errors() == {}


def test_a_replaced_file_counts_even_with_the_same_time_and_size(tmp_path: Path) -> None:
    folder = write(tmp_path, "w", manifest="title = 'One'")
    catalog = WorkflowCatalog(tmp_path)
    assert catalog.get("w").title == "One"
    old = (folder / "workflow.toml").stat()
    new = folder / "workflow.toml.new"
    new.write_text("title = 'Two'")
    os.utime(new, ns=(old.st_atime_ns, old.st_mtime_ns))
    new.replace(folder / "workflow.toml")
    assert catalog.get("w").title == "Two"


def test_a_folder_that_is_not_there_says_what_to_set(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="FLEET_WORKFLOWS"):
        WorkflowCatalog(tmp_path / "missing").names()


def test_the_version_ignores_spelling(tmp_path: Path) -> None:
    a = load(write(tmp_path, "w", manifest="title = 'X'\n"))
    b = load(write(tmp_path, "w", graph=json.dumps(GRAPH, indent=3) + "\n", manifest="# note\ntitle='X'"))
    assert a.version == b.version


def test_a_byte_order_mark_does_no_harm(tmp_path: Path) -> None:
    folder = write(tmp_path, "w")
    (folder / "workflow.json").write_bytes(b"\xef\xbb\xbf" + json.dumps(GRAPH).encode())
    assert load(folder).parameters


FULL = """
title = "Everything"
description = "All that a manifest can say."

[parameters.prompt]
max_length = 10

[parameters.style]
type = "choice"
default = "plain"
[parameters.style.choices.plain]
[parameters.style.choices.toon]
label = "Toon"
wrap.prompt = "toon {}"
set = [{ class = "KSampler", input = "steps", value = 30 }]
bypass = [{ title = "LoRA", through = ["model"] }]

[parameters.steps]
min = 1
max = 50
target = { class = "KSampler", input = "steps" }

[parameters.cfg]
type = "number"
target = { title = "KSampler", class = "KSampler", input = "cfg" }

[parameters.mode]
type = "choice"
choices = ["x.ckpt", "y.ckpt"]
target = { class = "CheckpointLoaderSimple", input = "ckpt_name" }

[requires]
comfyui = ">=0.3.71"
vram_gb = 8
note = "Note."
[[requires.models]]
file = "x.ckpt"
folder = "checkpoints"
source = "Somewhere"
"""


def test_a_manifest_and_titles_make_one_workflow(tmp_path: Path) -> None:
    workflow = load(write(tmp_path, "w", manifest=FULL))
    assert [(p.name, p.type, p.default) for p in workflow.parameters] == [
        ("prompt", "string", "a"),
        ("style", "choice", "plain"),
        ("steps", "integer", 20),
        ("cfg", "number", 4),
        ("mode", "choice", "x.ckpt"),
    ]
    assert workflow.requires.vram_gb == 8
    assert workflow.requires.models[0].folder == "checkpoints"
    bound = bind(workflow, {"style": "toon", "prompt": "fox"}, draw_seed=lambda: 0)
    assert bound.graph["1"]["inputs"]["text"] == "toon fox"
    assert bound.graph["3"]["inputs"]["steps"] == 30
    assert bound.graph["3"]["inputs"]["model"] == ["4", 0]
    assert "5" not in bound.graph


def test_the_manifest_wins_over_titles(tmp_path: Path) -> None:
    manifest = '[parameters.prompt]\ndefault = "mine"\ntarget = { title = "No", input = "text" }'
    (prompt,) = load(write(tmp_path, "w", manifest=manifest)).parameters
    assert (prompt.default, prompt.targets[0].node_id) == ("mine", "2")


@pytest.mark.parametrize(
    ("manifest", "message"),
    [
        ("titel = 'x'", "titel: is unknown"),
        ("title = 5", "title: Input should be a valid string"),
        ("= broken", "is not TOML"),
        ("[parameters.x]\ntype = 'text'", "parameters.x.type"),
        ("[parameters.x]\nmaxx = 1", "parameters.x.maxx: is unknown"),
        ("[parameters.x]\ndefault = []", "parameters.x.default: must be text, a number, true or false"),
        ("[parameters.x]\ntype = 'string'", "parameters.x: it sets nothing"),
        ("[parameters.x]", "no node of the graph is titled .[$]x., and it has no target: title a node, give"),
        ("[parameters.'$x']\ntype = 'string'", "a name consists of"),
        ("[parameters.x]\ntarget = { input = 'text' }", "needs 'title', 'class' or both"),
        ("[parameters.x]\ntarget = { class = 'CLIPTextEncode', input = 'text' }", "2 nodes have class"),
        (
            "[parameters.x]\ntarget = { title = 'Nope', input = 'text' }",
            "parameters.x.target: no node has title",
        ),
        ("[parameters.x]\ntarget = { title = 'No', input = 'txt' }", "has no input 'txt'"),
        ("[parameters.x]\ntarget = { title = 'No', input = 'clip' }", "comes from node 4"),
        ("[parameters.x]\ntarget = { title = '$prompt', input = 'text' }", "belongs to parameter"),
        ("[parameters.prompt]\nrole = 'colour'", "parameters.prompt.role"),
        ("[parameters.prompt]\nmin = 1", "parameters.prompt.min: has no meaning for type 'string'"),
        ("[parameters.prompt]\ndefault = 5", "parameters.prompt.default: parameter 'prompt' must be text"),
        ("[parameters.prompt]\nmax_length = 3\ndefault = 'long'", "at most 3 characters"),
        ("[parameters.prompt]\ntype = 'choice'", "parameters.prompt.choices: a choice needs them"),
        ("[parameters.prompt]\nchoices = ['a']", "only for type 'choice'"),
        ("[parameters.n]\nmin=5\nmax=1\ntarget={class='KSampler',input='steps'}", "min 5 is above max 1"),
        (
            "[parameters.f]\ntype='boolean'\non.wrap.nope='x {}'",
            "wrap.nope names no text parameter",
        ),
        ("[parameters.f]\ntype='boolean'\non.wrap.prompt='x'", "must hold {} once"),
        (
            "[parameters.f]\ntype='boolean'\noff.bypass=[{title='LoRA',through=['lora_name']}]",
            "parameters.f.off.bypass: .*not a link",
        ),
        ("[requires]\ncomfyui = '0.3'", "requires.comfyui: .*must look like"),
        ("[[requires.models]]\nfile = 'x'", "requires.models.0.folder: Field required"),
    ],
)
def test_each_mistake_names_file_and_key(tmp_path: Path, manifest: str, message: str) -> None:
    import re

    assert re.search(message.replace("{}", r"\{\}"), refused(tmp_path, manifest))


def test_a_workflow_may_say_how_long_it_shows_no_progress(tmp_path: Path) -> None:
    assert load(write(tmp_path, "one", manifest="silence_s = 120\n")).silence_s == 120.0
    assert load(write(tmp_path, "two", manifest="")).silence_s is None
    for wrong in ("0", '"long"', "1e12"):
        assert "silence_s: " in refused(tmp_path, f"silence_s = {wrong}\n")


def test_all_mistakes_come_at_once(tmp_path: Path) -> None:
    text = refused(
        tmp_path,
        "[parameters.a]\ntarget={title='X',input='x'}\n[parameters.b]\ntarget={title='Y',input='y'}",
    )
    assert "parameters.a.target" in text
    assert "parameters.b.target" in text


def test_an_editor_export_is_named(tmp_path: Path) -> None:
    assert "Export (API)" in refused(tmp_path, "", graph={"nodes": [], "links": []})


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_graphs_as_people_have_them_are_read(tmp_path: Path, encoding: str) -> None:
    folder = write(tmp_path, "w")
    file = folder / "workflow.json"
    text = file.read_text("utf-8")
    graph = json.loads(text)
    node = next(iter(graph))
    graph[node]["is_changed"] = [float("nan")]
    file.write_bytes(json.dumps(graph).encode(encoding))
    read = WorkflowCatalog(tmp_path).get("w").graph
    assert read == json.loads(text)
    file.write_bytes(b"\x89PNG\r\n\x1a\n")
    says = WorkflowCatalog(tmp_path).errors()["w"]
    assert str(says).startswith("w/workflow.json is a PNG without a graph in it: export the graph")


HUGE = 2**70


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (f"max = {HUGE}", "max is a number of 71 bits"),
        (f"min = -{HUGE}", "min is a number of 71 bits"),
        (f"default = {HUGE}", "default is a number of 71 bits"),
        ("max = inf", "max is inf"),
        ("min = nan", "min is nan"),
        ("default = 2026-01-01", "default is a date"),
        ("default = 2026-01-01T00:00:00Z", "default is a date"),
        ("default = 10:00:00", "default is a date or a time"),
    ],
)
def test_what_no_answer_could_show_is_refused_by_file_and_key(
    tmp_path: Path, line: str, message: str
) -> None:
    manifest = f'[parameters.width]\ntype = "integer"\ntarget = "1.width"\n{line}\n'
    write(tmp_path, "one", manifest=manifest)
    error = str(WorkflowCatalog(tmp_path).errors()["one"])
    assert error.startswith("one/workflow.toml: parameters.width.") and message in error
