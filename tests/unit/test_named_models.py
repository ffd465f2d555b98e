"""Which model files a graph names, on real ComfyUIs' classes and on any others."""

import gzip
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import orjson
import pytest

from comfy_fleet.domain.graphs.graph import check
from comfy_fleet.domain.graphs.inventory import Inventory, parse
from comfy_fleet.domain.graphs.named_models import named_models
from comfy_fleet.domain.nodes.model_sizes import ModelSizes

DATA = Path(__file__).parents[1] / "data"


def files(*names: str) -> list[Any]:
    return [list(names), {}]


OWN: Mapping[str, Any] = {
    "StackLoras": {
        "input": {"required": {"lora_1": ["LORA_SLOT"], "lora_2": ["LORA_SLOT"], "note": ["STRING", {}]}},
        "output": ["MODEL"],
        "output_node": False,
    },
    "PickModel": {
        "input": {"required": {"model_name": files("wan/high.safetensors", "wan/low.safetensors")}},
        "output": ["MODEL"],
        "output_node": False,
    },
    "LoadFile": {
        "input": {"required": {"file": files("listed.safetensors", "cat.png")}},
        "output": ["MODEL"],
        "output_node": True,
    },
    "Show": {"input": {"required": {"any": ["*"]}}, "output": [], "output_node": True},
}
"""Classes of a node pack."""


@pytest.fixture(params=["0.3.64", "0.33.0"])
def core(request: pytest.FixtureRequest) -> Inventory:
    """The classes of a real ComfyUI, and those of a node pack."""
    listed = orjson.loads(gzip.decompress((DATA / f"all_classes_{request.param}.json.gz").read_bytes()))
    return parse({**listed, **OWN})


def named(graph: dict[str, Any], *known: Inventory, listed: str = "") -> set[str]:
    """Return files as CLASS.INPUT=NAME."""
    found = named_models(check(graph), known, lambda name: name in listed.split())
    return {f"{one.class_type}.{one.input}={one.name}" for one in found}


def node(class_type: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": class_type, "inputs": inputs}


def test_loaders_and_loras_of_core_classes(core: Inventory) -> None:
    graph = {
        "1": node("UNETLoader", unet_name="flux\\dev.safetensors", weight_dtype="default"),
        "2": node("DualCLIPLoader", clip_name1="t5.safetensors", clip_name2="l.safetensors", type="flux"),
        "3": node("VAELoader", vae_name="ae.safetensors"),
        "4:1": node("LoraLoaderModelOnly", model=["1", 0], lora_name="style.safetensors", strength_model=1.0),
        "4:2:7": node("LoraLoaderModelOnly", model=["4:1", 0], lora_name="a.safetensors", strength_model=1.0),
        "5": node("CLIPTextEncode", clip=["2", 0], text="made with ae.safetensors"),
        "6": node("LoadImage", image="cat.safetensors"),
        "7": node("SaveImage", images=["6", 0], filename_prefix="a.safetensors"),
    }
    assert named(graph, core) == {
        "UNETLoader.unet_name=flux/dev.safetensors",
        "DualCLIPLoader.clip_name1=t5.safetensors",
        "DualCLIPLoader.clip_name2=l.safetensors",
        "VAELoader.vae_name=ae.safetensors",
        "LoraLoaderModelOnly.lora_name=style.safetensors",
        "LoraLoaderModelOnly.lora_name=a.safetensors",
    }


def test_a_setting_in_a_folder_of_models_is_no_model(core: Inventory) -> None:
    graph = {"1": node("CheckpointLoader", config_name="v1-inference.yaml", ckpt_name="a.ckpt")}
    assert named(graph, core) == {"CheckpointLoader.ckpt_name=a.ckpt"}


def test_a_name_that_comes_through_a_link(core: Inventory) -> None:
    """ComfyUI does not compare it with its list: any class may hand over a file's name."""
    graph = {
        "1": node("PickName", text="one.safetensors"),
        "2": node("PickModel", model_name=["3", 0]),
        "3": node("PrimitiveString", value="wan/low.safetensors"),
        "4": node("Show", any=["2", 0]),
    }
    assert named(graph, core) == {
        "PickName.text=one.safetensors",
        "PickModel.model_name=wan/low.safetensors",
    }


def test_a_text_counts_only_if_it_is_a_files_name(core: Inventory) -> None:
    graph = {
        "1": node("PrimitiveString", value="dream.safetensors"),
        "2": node("PrimitiveString", value="listed.safetensors"),
        "3": node("PrimitiveStringMultiline", value="a cat\nlisted.safetensors"),
        "4": node("LoadFile", file="listed.safetensors"),
        "5": node("LoadFile", file="upload.safetensors"),
    }
    assert named(graph, core, listed="listed.safetensors") == {
        "PrimitiveString.value=listed.safetensors",
        "LoadFile.file=listed.safetensors",
    }


def test_stacks_of_a_node_pack(core: Inventory) -> None:
    graph = {
        "1": node(
            "StackLoras",
            lora_1={"on": True, "lora": "on.safetensors", "strength": 1.0},
            lora_2={"on": False, "lora": "off.safetensors", "strength": 1.0},
            note="",
        )
    }
    assert named(graph, core, listed="on.safetensors off.safetensors") == {"StackLoras.lora_1=on.safetensors"}
    unknown = {"1": {**graph["1"], "class_type": "AnotherStack"}}
    assert named(unknown, core) == {"AnotherStack.lora_1=on.safetensors"}


def test_values_of_unknown_classes_that_look_like_models() -> None:
    graph = {
        "1": node(
            "Odd",
            unet="x.gguf",
            picture="a.png",
            many=["b.SFT"],
            filename_prefix="c.pt",
            text="y" * 400 + ".pt",
            lines="two\nlines.pt",
            number=3,
        )
    }
    assert named(graph) == {"Odd.unet=x.gguf", "Odd.many=b.SFT"}


def test_members_of_groups(core: Inventory) -> None:
    grouped = {
        "Grouped": {
            "input": {
                "required": {
                    "how": [
                        "COMFY_DYNAMICCOMBO_V3",
                        {
                            "options": [
                                {"key": "one", "inputs": {"required": {"model": files("g.safetensors")}}},
                                {"key": "none", "inputs": {"required": {}}},
                            ]
                        },
                    ]
                }
            },
            "output": [],
            "output_node": True,
        }
    }
    graph = {"1": node("Grouped", how="one", **{"how.model": "g.safetensors"})}
    assert named(graph, parse(grouped), core) == {"Grouped.how.model=g.safetensors"}


def test_folders_and_sizes(core: Inventory) -> None:
    sizes = ModelSizes(
        folders={
            "checkpoints": {"a.safetensors": 7, "same.safetensors": 5},
            "diffusion_models": {"wan/low.safetensors": 14, "wan/high.safetensors": 15, "u.safetensors": 1},
            "loras": {"a.safetensors": 1, "same.safetensors": 2, "s.safetensors": 3},
        }
    )

    def of(graph: dict[str, Any]) -> dict[str, int]:
        return dict(sizes.of(named_models(check(graph), [core], sizes.lists)))

    loaders = {
        "1": node("CheckpointLoaderSimple", ckpt_name="a.safetensors"),
        "2": node("LoraLoaderModelOnly", model=["1", 0], lora_name="a.safetensors", strength_model=1.0),
        "3": node("PickModel", model_name="wan\\low.safetensors"),
        "4": node("PrimitiveString", value="loras/s.safetensors"),
    }
    assert of(loaders) == {
        "checkpoints/a.safetensors": 7,
        "loras/a.safetensors": 1,
        "diffusion_models/wan/low.safetensors": 14,
        "loras/s.safetensors": 3,
    }
    # The same file by another loader is the same file.
    assert of({"1": node("Odd", ckpt_1="same.safetensors")}) == {"checkpoints/same.safetensors": 5}
    assert of({"1": node("Odd", lora_7="same.safetensors")}) == {"loras/same.safetensors": 2}
    # What nobody tells is guessed.
    gib = 2**30
    assert of({"1": node("Odd", unet_name="q.gguf", lora_1="z.pt", x="w.bin")}) == {
        "diffusion_models/q.gguf": 2 * gib,
        "loras/z.pt": gib // 5,
        "models/w.bin": gib // 5,
    }
