"""The workflows that are shipped: whole, and valid for a real ComfyUI as far as that can be asked.

``object_info_0.3.64.json.gz`` is what a ComfyUI 0.3.64 without any model says of the classes that they use.
"""

import gzip
import json
import time
import urllib.error
import urllib.request
from io import BytesIO
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from PIL import Image

from comfy_fleet.adapters.workflows.catalog import WorkflowCatalog
from comfy_fleet.domain.errors import InvalidParameter
from comfy_fleet.domain.graphs.binding import bind
from comfy_fleet.domain.graphs.graph import Graph, check, for_run
from comfy_fleet.domain.graphs.graph_problems import ProblemKind, problems
from comfy_fleet.domain.graphs.inventory import parse
from comfy_fleet.domain.graphs.workflow import ParameterType, Workflow, json_schema
from comfy_fleet.services.workflow_check import check_workflow
from comfy_fleet.settings import packaged
from tests.comfyui_server import ANSWER_S, ComfyServer

RECORDED = "0.3.64"
FIXTURE = Path(__file__).parent.parent / "data" / f"object_info_{RECORDED}.json.gz"
NAMES = ["image_card", "newbie_anime", "qwen_image_edit_face", "qwen_image_kids_animal", "z_image_turbo"]
ASSET = "00000000-0000-0000-0000-000000000000"
RUN_S = 60.0
XML = "<character_1><gender>1girl</gender></character_1><general_tags><count>1</count></general_tags>"


@pytest.fixture(scope="module")
def catalog() -> WorkflowCatalog:
    return WorkflowCatalog(packaged("workflows"))


@pytest.fixture(scope="module")
def object_info() -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads(gzip.decompress(FIXTURE.read_bytes()))
    return loaded


def needed(workflow: Workflow) -> dict[str, Any]:
    """Return values for what a workflow requires."""
    values: dict[str, Any] = {}
    for parameter in workflow.parameters:
        if parameter.required:
            is_file = parameter.type in (ParameterType.IMAGE, ParameterType.ASSET)
            values[parameter.name] = ASSET if is_file else XML if parameter.format == "xml" else "a fox"
    return values


def bound(workflow: Workflow, **values: Any) -> Graph:
    return bind(workflow, {**needed(workflow), **values}, draw_seed=lambda: 5).graph


def test_all_are_there_and_none_is_broken(catalog: WorkflowCatalog) -> None:
    assert catalog.errors() == {}
    assert catalog.names() == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_each_says_what_a_caller_has_to_know(catalog: WorkflowCatalog, name: str) -> None:
    workflow = catalog.get(name)
    assert workflow.title != name
    assert workflow.description
    assert workflow.requires.comfyui
    assert {"prompt", "width", "height", "seed"} <= {parameter.name for parameter in workflow.parameters}
    for parameter in workflow.parameters:
        if parameter.name != "seed":
            assert parameter.description or parameter.choices, parameter.name
    check(bound(workflow))
    json.dumps(json_schema(workflow))


@pytest.mark.parametrize("name", NAMES)
def test_classes_and_inputs_are_those_of_a_real_server(
    catalog: WorkflowCatalog, object_info: dict[str, Any], name: str
) -> None:
    workflow = catalog.get(name)
    found = check_workflow(workflow, parse(object_info, version=RECORDED))
    left = [problem for problem in found if problem.kind is not ProblemKind.FILE_MISSING]
    if name == "newbie_anime":
        assert [(str(p.kind), p.field) for p in left] == [
            ("comfyui_too_old", ""),
            ("value_not_in_list", "type"),
        ]
    elif name == "z_image_turbo":
        assert [str(p.kind) for p in left] == ["comfyui_too_old"]
    else:
        assert left == []
    # The manifest lists exactly the files that the graph loads, and which of them only some choice needs.
    files = {
        problem.value: bool(problem.only_with)
        for problem in found
        if problem.kind is ProblemKind.FILE_MISSING
    }
    assert files == {model.file: model.optional for model in workflow.requires.models}
    assert all("put it into models/" in p.message for p in found if p.kind is ProblemKind.FILE_MISSING)


@pytest.mark.parametrize("name", NAMES)
def test_no_value_in_the_graphs_is_undeclared(
    catalog: WorkflowCatalog, object_info: dict[str, Any], name: str
) -> None:
    # What only a later version declares, an earlier one leaves out of the call.
    later = json.loads(gzip.decompress(FIXTURE.with_name("all_classes_0.33.0.json.gz").read_bytes()))
    versions = [parse(object_info), parse(later)]
    for node_id, node in catalog.get(name).graph.items():
        for input_ in node["inputs"]:
            assert any(one.classes[node["class_type"]].input(input_) for one in versions), (node_id, input_)


def test_what_is_not_for_children_can_be_added_to_but_not_replaced(catalog: WorkflowCatalog) -> None:
    workflow = catalog.get("qwen_image_kids_animal")
    graph = bound(workflow, avoid="spiders", style="plush")
    negative = graph["11"]["inputs"]["negative"][0]
    join = graph[graph[negative]["inputs"]["text"][0]]
    assert join["inputs"]["string_b"] == "spiders"
    fixed = graph[join["inputs"]["string_a"][0]]["inputs"]["value"]
    assert {"violence", "weapon", "blood", "nudity"} <= set(fixed.split(", "))
    places = {(target.node_id, target.input) for p in workflow.parameters for target in p.targets}
    assert (join["inputs"]["string_a"][0], "value") not in places
    # A negative prompt does nothing at CFG 1.
    assert graph["11"]["inputs"]["cfg"] > 1
    assert ("11", "cfg") not in places
    assert graph["6"]["inputs"]["text"] == (
        "A cuddly plush toy: a fox. Soft fabric, visible stitches, studio light, pastel background."
    )


@pytest.mark.parametrize(
    ("upscale", "color", "chain"),
    [
        ("none", "none", ["VAEDecode"]),
        ("lanczos_2x", "none", ["ImageScaleBy", "VAEDecode"]),
        ("model_2x", "vivid", ["ImageBlend", "ImageScaleBy", "ImageUpscaleWithModel", "VAEDecode"]),
    ],
)
def test_upscaling_and_colour_are_optional(
    catalog: WorkflowCatalog, upscale: str, color: str, chain: list[str]
) -> None:
    graph = bound(catalog.get("qwen_image_kids_animal"), upscale=upscale, color=color)
    seen: list[str] = []
    node = next(node for node in graph.values() if node["class_type"] == "SaveImage")
    while node["class_type"] != "VAEDecode":
        inputs = node["inputs"]
        node = graph[next(inputs[name][0] for name in ("images", "image", "image1") if name in inputs)]
        seen.append(node["class_type"])
    assert seen == chain


def test_the_lora_is_optional(catalog: WorkflowCatalog) -> None:
    workflow = catalog.get("qwen_image_kids_animal")
    assert "LoraLoaderModelOnly" not in {n["class_type"] for n in bound(workflow, lora_strength=0.5).values()}
    with_lora = bound(workflow, lora="illustration", lora_strength=0.5)
    assert with_lora["4"]["inputs"]["strength_model"] == 0.5
    assert with_lora["5"]["inputs"]["model"] == ["4", 0]


def test_the_structured_prompt_is_checked_before_it_costs_anything(catalog: WorkflowCatalog) -> None:
    workflow = catalog.get("newbie_anime")
    for bad in ("<a>", "<!DOCTYPE a [<!ENTITY b 'c'>]><a>&b;</a>", "<a>" + "x" * 8000 + "</a>", "no xml"):
        with pytest.raises(InvalidParameter, match="prompt"):
            bound(workflow, prompt=bad)
    assert bound(workflow)["6"]["inputs"]["string_b"] == XML


def test_the_face_must_be_a_picture(catalog: WorkflowCatalog) -> None:
    workflow = catalog.get("qwen_image_edit_face")
    with pytest.raises(InvalidParameter, match="'image' is required"):
        bind(workflow, {"prompt": "x"}, draw_seed=lambda: 0)
    face = workflow.parameter("image")
    assert face
    assert "image/png" in face.accept
    assert face.max_bytes
    graph = bound(workflow, speed="fast")
    assert graph["8"]["inputs"]["image"]["info"]["id"] == ASSET
    assert (graph["13"]["inputs"]["steps"], graph["13"]["inputs"]["cfg"]) == (4, 1.0)


# --- on a real ComfyUI ------------------------------------------------------------------------------


class Comfy:
    """A few calls to a real server."""

    def __init__(self, url: str) -> None:
        self.url = url

    def get(self, path: str) -> Any:
        with urllib.request.urlopen(self.url + path, timeout=ANSWER_S) as answer:
            return json.load(answer)

    def bytes(self, path: str) -> bytes:
        with urllib.request.urlopen(self.url + path, timeout=ANSWER_S) as answer:
            return bytes(answer.read())

    def post(self, graph: Graph) -> tuple[int, dict[str, Any]]:
        body = json.dumps({"prompt": graph, "client_id": "t", "prompt_id": str(uuid4())}).encode()
        request = urllib.request.Request(
            self.url + "/prompt", body, {"Content-Type": "application/json"}, method="POST"
        )
        try:
            with urllib.request.urlopen(request, timeout=ANSWER_S) as answer:
                return answer.status, json.load(answer)
        except urllib.error.HTTPError as error:
            with error:
                return error.code, json.load(error)

    def run(self, graph: Graph) -> dict[str, Any]:
        status, answer = self.post(graph)
        assert (status, answer["node_errors"]) == (200, {})
        deadline = time.monotonic() + RUN_S
        while not (history := self.get(f"/history/{answer['prompt_id']}")):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        result: dict[str, Any] = history[answer["prompt_id"]]
        assert result["status"]["status_str"] == "success"
        return result

    def picture(self, graph: Graph) -> Image.Image:
        (outputs,) = self.run(graph)["outputs"].values()
        (file,) = outputs["images"]
        query = f"filename={file['filename']}&subfolder={file['subfolder']}&type={file['type']}"
        picture = Image.open(BytesIO(self.bytes(f"/view?{query}")))
        picture.load()
        return picture


@pytest.fixture
def comfy(comfyui_server: ComfyServer) -> Comfy:
    return Comfy(comfyui_server.url)


@pytest.mark.comfyui
@pytest.mark.timeout(240)
def test_the_recorded_facts_are_those_of_the_server(comfy: Comfy, object_info: dict[str, Any]) -> None:
    live, recorded = parse(comfy.get("/object_info")), parse(object_info)
    same = comfy.get("/system_stats")["system"]["comfyui_version"] == RECORDED
    for name, info in recorded.classes.items():
        there = live.classes[name]
        assert there.output_node == info.output_node
        # Output nodes of later versions hand on what they were given.
        assert there.outputs == info.outputs or (info.output_node and not info.outputs and not same)
        for input_, spec in {**info.required, **info.optional}.items():
            found = there.input(input_)
            assert found
            assert (found.type, found.upload) == (spec.type, spec.upload)
            if same:  # another version may have other limits
                assert (found.minimum, found.maximum) == (spec.minimum, spec.maximum)


@pytest.mark.comfyui
@pytest.mark.timeout(240)
@pytest.mark.parametrize("name", NAMES)
def test_the_server_finds_exactly_the_problems_that_we_foresee(
    comfy: Comfy, catalog: WorkflowCatalog, name: str
) -> None:
    workflow = catalog.get(name)
    inventory = parse(comfy.get("/object_info"))
    graph = for_run(bound(workflow), job_id="j", run_id="r")
    for node in graph.values():
        # A staged file of that name is not there; whether it is, is not for the inventory to say.
        if node["class_type"] == "LoadImage":
            node["class_type"], node["inputs"] = (
                "EmptyImage",
                {"width": 8, "height": 8, "batch_size": 1, "color": 0},
            )
    found = problems(graph, inventory)
    assert ProblemKind.MISSING_INPUT not in {problem.kind for problem in found}
    foreseen = {(problem.node_id, problem.field) for problem in found}
    status, answer = comfy.post(graph)
    named = {
        (node_id, error["extra_info"]["input_name"])
        for node_id, entry in (answer.get("node_errors") or {}).items()
        for error in entry["errors"]
    }
    assert named == foreseen
    assert status == (400 if foreseen else 200)


@pytest.mark.comfyui
@pytest.mark.timeout(240)
def test_the_card_shows_its_parameters(comfy: Comfy, catalog: WorkflowCatalog) -> None:
    workflow = catalog.get("image_card")

    def card(**values: Any) -> Image.Image:
        values = {"prompt": "a red fox", "seed": 1, **values}
        return comfy.picture(for_run(bound(workflow, **values), job_id="j", run_id=str(uuid4())))

    plain = card()
    assert plain.size == (512, 512)
    assert plain.tobytes() == card().tobytes()
    assert "a red fox" in plain.info["prompt"]
    assert card(width=320, height=200).size == (320, 200)
    variants = [
        card(**change)
        for change in (
            {"prompt": "a blue fox"},
            {"seed": 2},
            {"color": "red"},
            {"style": "clouds"},
            {"style": "silk"},
            {"style": "stripes"},
        )
    ]
    pictures = {picture.tobytes() for picture in (plain, *variants)}
    assert len(pictures) == 7
    # The ruler is as long as the prompt, wherever the pattern leaves off.
    assert all(plain.getpixel((x, 2)) == (255, 255, 255) for x in range(len("a red fox")))
    assert plain.getpixel((len("a red fox"), 2)) != (255, 255, 255)


@pytest.mark.comfyui
@pytest.mark.timeout(240)
def test_an_undeclared_input_makes_nodes_run_again(comfy: Comfy) -> None:
    color = uuid4().int % 2**24  # no test before this one has left its result in the server's cache
    inputs = {"width": 32, "height": 32, "batch_size": 1, "color": color}
    graph: Graph = {
        "1": {"class_type": "EmptyImage", "inputs": inputs},
        "2": {"class_type": "ImageQuantize", "inputs": {"image": ["1", 0], "colors": 4, "dither": "none"}},
        "3": {"class_type": "PreviewAny", "inputs": {"source": ["2", 0]}},
        "4": {"class_type": "PreviewImage", "inputs": {"images": ["2", 0]}},
    }

    def cached(made: Graph) -> list[str]:
        messages = comfy.run(made)["status"]["messages"]
        return sorted(next(data["nodes"] for kind, data in messages if kind == "execution_cached"))

    assert cached(for_run(graph, job_id="j", run_id="a")) == []
    assert cached(for_run(graph, job_id="j", run_id="b")) == ["1", "2", "3", "4"]
    # Old-style and new-style nodes alike (PreviewAny, ImageQuantize), and nothing above them.
    assert cached(for_run(graph, job_id="j", run_id="c", rerun_nodes=frozenset({"3"}))) == ["1", "2", "4"]
    assert cached(for_run(graph, job_id="j", run_id="d", rerun_nodes=frozenset({"2", "3"}))) == ["1"]
