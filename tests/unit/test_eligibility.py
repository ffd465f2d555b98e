"""Needs and who meets them."""

from typing import Any

import pytest

from comfy_fleet.domain.graphs import graph_problems, inventory
from comfy_fleet.domain.graphs.graph import check
from comfy_fleet.domain.graphs.inventory import Inventory
from comfy_fleet.domain.jobs.job import ANY_POOL, Placement
from comfy_fleet.domain.nodes.eligibility import (
    GIB,
    Candidate,
    PlacementRequest,
    Requirements,
    able,
    file_place,
    gib,
    needs_of,
    sentences,
    why_not,
)
from comfy_fleet.domain.nodes.node import Node

GRAPH = check(
    {
        "1": {"class_type": "UnetLoaderGGUF", "inputs": {"unet_name": "flux/dev.gguf"}},
        "2": {"class_type": "VAELoader", "inputs": {"vae_name": "ae.safetensors"}},
        "3": {"class_type": "LoadImage", "inputs": {"image": "mine.png"}},
        "4": {"class_type": "KSampler", "inputs": {"model": ["1", 0], "vae": ["2", 0], "image": ["3", 0],
                                                   "sampler_name": "euler", "steps": 20}},
    }
)  # fmt: skip


def node_inventory(
    *, unets: list[str] | None = None, vaes: list[str] | None = None, samplers: tuple[str, ...] = ("euler",)
) -> Inventory:
    info: dict[str, Any] = {
        "VAELoader": {"input": {"required": {"vae_name": [vaes or []]}}},
        "LoadImage": {"input": {"required": {"image": [["other.png"], {"image_upload": True}]}}},
        "KSampler": {
            "input": {
                "required": {"sampler_name": ["COMBO", {"options": list(samplers)}], "steps": ["INT", {}]}
            },
            "output_node": True,
        },
    }
    if unets is not None:
        info["UnetLoaderGGUF"] = {"input": {"required": {"unet_name": [unets]}}}
    return inventory.parse(info)


FULL = node_inventory(unets=["flux\\dev.gguf"], vaes=["ae.safetensors"])
NO_CLASS = node_inventory(vaes=["ae.safetensors"])
NO_VAE = node_inventory(unets=["flux/dev.gguf"])


def candidate(name: str, known: Inventory | None = None, **fields: Any) -> Candidate:
    own = {key: fields.pop(key) for key in ("pool", "zone", "labels") if key in fields}
    return Candidate(node=Node(name=name, url="http://h:1", **own), inventory=known, **fields)


def test_what_every_node_has_is_no_need() -> None:
    assert needs_of(GRAPH, PlacementRequest(), [FULL, FULL]) == Requirements()
    assert Requirements().key == ""
    assert needs_of(GRAPH, PlacementRequest(), []) == Requirements()


def test_needs_name_what_tells_nodes_apart() -> None:
    needs = needs_of(GRAPH, PlacementRequest(), [FULL, NO_CLASS, NO_VAE])
    assert needs.classes == {"UnetLoaderGGUF"}
    assert needs.choices == {("VAELoader", "vae_name", "ae.safetensors")}
    assert Requirements.from_json(needs.to_json()) == needs
    assert len(needs.key) == 16 and needs.key == Requirements.from_json(needs.to_json()).key


def test_what_no_node_has_is_a_need() -> None:
    needs = needs_of(GRAPH, PlacementRequest(), [NO_VAE, NO_VAE])
    assert needs.choices == {("VAELoader", "vae_name", "ae.safetensors")}


def test_needs_name_files_with_slashes_whoever_wrote_them() -> None:
    graph = check({**GRAPH, "1": {"class_type": "UnetLoaderGGUF", "inputs": {"unet_name": "sub\\gone.gguf"}}})
    needs = needs_of(graph, PlacementRequest(), [FULL])
    assert needs.choices == {("UnetLoaderGGUF", "unet_name", "sub/gone.gguf")}


def test_what_was_declared_is_a_need_on_alike_nodes_too() -> None:
    wish = PlacementRequest(zone="a", labels={"rack": "7", "gpu": "h100"}, comfyui=">=0.4", vram_bytes=GIB)
    assert needs_of(GRAPH, wish, [FULL]) == Requirements(
        zone="a", labels=(("gpu", "h100"), ("rack", "7")), comfyui=">=0.4", vram_bytes=GIB
    )


@pytest.mark.parametrize("more", [{"image_upload": True}, {"remote": {"route": "/x"}}, {"multiselect": True}])
def test_open_values_tell_no_nodes_apart(more: dict[str, Any]) -> None:
    known = inventory.parse({"X": {"input": {"required": {"v": [["a"], more]}}, "output_node": True}})
    graph = check({"1": {"class_type": "X", "inputs": {"v": "b"}}})
    assert needs_of(graph, PlacementRequest(), [known]) == Requirements()
    assert why_not(Requirements(choices=frozenset({("X", "v", "b")})), candidate("a", known)) == []


def test_what_another_value_of_a_group_brings_along_is_no_need() -> None:
    branches = {
        "area": {"required": {"crop": ["COMBO", {"options": ["no", "center"]}]}},
        "factor": {"required": {"by": ["FLOAT", {}]}},
    }
    options = [{"key": key, "inputs": brought} for key, brought in branches.items()]
    group = ["COMFY_DYNAMICCOMBO_V3", {"options": options}]
    known = inventory.parse({"X": {"input": {"required": {"size": group}}, "output_node": True}})
    left_over = {"size": "factor", "size.by": 2.0, "size.crop": "gone"}
    assert (
        needs_of(check({"1": {"class_type": "X", "inputs": left_over}}), PlacementRequest(), [known])
        == Requirements()
    )
    read = {"size": "area", "size.crop": "gone"}
    needs = needs_of(check({"1": {"class_type": "X", "inputs": read}}), PlacementRequest(), [known])
    assert needs.choices == {("X", "size.crop", "gone")}


def test_reasons_name_the_node_s_lack() -> None:
    needs = needs_of(GRAPH, PlacementRequest(), [FULL, NO_CLASS, NO_VAE])
    assert why_not(needs, candidate("a", FULL)) == []
    assert why_not(needs, candidate("b", NO_CLASS)) == ["has no class `UnetLoaderGGUF`"]
    assert why_not(needs, candidate("c", NO_VAE)) == ["`vae/ae.safetensors` missing"]
    assert why_not(needs, candidate("d")) == []  # decides by itself
    four = [candidate("a", FULL), candidate("b", NO_CLASS), candidate("c", NO_VAE), candidate("d")]
    assert able(Placement(), needs, four) == {"a", "d"}


def test_sentences_tell_each_lack_once() -> None:
    twice = check({**GRAPH, "5": {"class_type": "UnetLoaderGGUF", "inputs": {"unet_name": "flux/dev.gguf"}}})
    assert sentences(graph_problems.problems(twice, NO_CLASS)) == ["has no class `UnetLoaderGGUF`"]
    assert "`vae/ae.safetensors` missing" in sentences(graph_problems.problems(GRAPH, NO_VAE))


@pytest.mark.parametrize(
    ("class_type", "field", "place"),
    [
        ("VAELoader", "vae_name", "vae/a.pt"),
        ("CLIPVisionLoader", "clip_name", "clip_vision/a.pt"),  # not where texts' encoders are
        ("CLIPLoader", "clip_name", "text_encoders/a.pt"),
        ("Odd", "thing", "Odd.thing/a.pt"),
    ],
)
def test_a_file_is_told_with_its_folder(class_type: str, field: str, place: str) -> None:
    assert file_place(class_type, field, "a.pt") == place


@pytest.mark.parametrize(
    ("needs", "fields", "reason"),
    [
        (Requirements(zone="a"), {"zone": "b"}, "is in zone b, not a"),
        (Requirements(zone="a"), {"zone": "a"}, None),
        (Requirements(labels=(("gpu", "h100"),)), {"labels": {"gpu": "a100"}}, "has no label gpu=h100"),
        (Requirements(comfyui=">=0.4"), {"comfyui": "0.3.64"}, "has ComfyUI 0.3.64, not >=0.4"),
        (Requirements(comfyui=">=0.4"), {"comfyui": ""}, None),
        (Requirements(vram_bytes=24 * GIB), {"vram_bytes": 12 * GIB}, "has 12 GiB of VRAM, not 24 GiB"),
        (Requirements(vram_bytes=24 * GIB), {"vram_bytes": 25_438_126_080}, None),  # a 24 GB card
        (Requirements(vram_bytes=24 * GIB), {"vram_bytes": 0}, None),
    ],
)
def test_declared_needs(needs: Requirements, fields: dict[str, Any], reason: str | None) -> None:
    assert why_not(needs, candidate("g", FULL, **fields)) == ([reason] if reason else [])


def test_cards_that_were_too_small_are_left_out_while_a_larger_one_is_there() -> None:
    cards = [candidate(f"g{size}", vram_bytes=size * GIB) for size in (12, 16, 24)]
    unknown = candidate("new")
    assert able(Placement(above=12 * GIB), Requirements(), cards) == {"g16", "g24"}
    assert able(Placement(above=16 * GIB), Requirements(), [*cards, unknown]) == {"g24", "new"}
    assert able(Placement(above=24 * GIB), Requirements(), cards) == {"g24"}  # the largest may try
    assert able(Placement(above=24 * GIB, without=frozenset({"g24"})), Requirements(), cards) == {"g16"}


def test_pools_in_their_order() -> None:
    nodes = [candidate("a", pool="big"), candidate("b", pool="small"), candidate("c", pool="other")]
    assert able(Placement(pool="big"), Requirements(), nodes) == {"a"}
    assert able(Placement(pool="big", spill=("small",)), Requirements(), nodes) == {"a", "b"}
    assert able(Placement(pool="big", spill=(ANY_POOL,)), Requirements(), nodes) == {"a", "b", "c"}
    preferring = Placement(pool="big", spill=("small", ANY_POOL))
    assert preferring.pools(["other", "big", "small"]) == ("big", "small", "other")


@pytest.mark.parametrize(
    "placement",
    [
        Placement(),
        Placement(pool="big", spill=("default", ANY_POOL)),
        Placement(nodes=frozenset({"a", "b"}), without=frozenset({"c"})),
        Placement(pool="p", needs="0123abcd", above=12 * GIB),
        Placement(pool="p", spill=("q",), without=frozenset({"x"}), needs="0123abcd"),
        Placement(above=5),
    ],
)
def test_keys_are_read_back(placement: Placement) -> None:
    assert Placement.parse(placement.key) == placement


def test_keys_of_plain_placements_stay_short() -> None:
    assert Placement().key == "default"
    assert Placement(pool="p", without=frozenset({"b", "a"})).key == "p::a b"


def test_bytes_are_told_as_people_speak_of_cards() -> None:
    assert [gib(24 * GIB), gib(25_438_126_080), gib(12_878_086_144)] == ["24 GiB", "23.7 GiB", "12 GiB"]
