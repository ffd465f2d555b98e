"""``/object_info`` as nodes answer it, packed: whole, and the same for nodes that are alike."""

import copy
import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from comfy_fleet.adapters.comfyui.json_lenient import decode
from comfy_fleet.adapters.redis.inventories import pack
from comfy_fleet.domain.graphs import object_info
from comfy_fleet.domain.graphs.inventory import parse
from comfy_fleet.domain.graphs.object_info import ObjectInfo, Packer, unpack

DATA = Path(__file__).parents[1] / "data"
VERSIONS = ["0.3.64", "0.33.0"]


def classes_of(version: str) -> dict[str, Any]:
    found: dict[str, Any] = decode(gzip.decompress((DATA / f"all_classes_{version}.json.gz").read_bytes()))
    return found


def packed(info: dict[str, Any]) -> ObjectInfo | None:
    packer, parsed = Packer(), parse(info)
    for name, body in info.items():
        if name in parsed.classes:
            packer.add(name, body, parsed.classes[name])
    return packer.end()


def read(info: dict[str, Any]) -> dict[str, Any]:
    found = packed(info)
    assert found is not None
    return {name: json.loads(body) for name, body in unpack(found.packed).items()}


def digest(info: dict[str, Any]) -> str:
    found = packed(info)
    assert found is not None
    return found.digest


@pytest.mark.parametrize("version", VERSIONS)
def test_all_classes_of_a_real_server_are_kept_as_they_are(version: str) -> None:
    info = classes_of(version)
    kept = read(info)
    assert list(kept) == list(info)
    changed = {name for name in info if kept[name] != info[name]}
    uploads = {
        name for name, found in parse(info).classes.items() for _, spec in found.everything() if spec.upload
    }
    assert all("FromFolder" in name for name in changed - uploads)  # they list the folder of what jobs stage
    for name in changed:
        assert {**kept[name], "input": 0} == {**info[name], "input": 0}
    assert pack(parse(kept))[0] == pack(parse(info))[0]  # for jobs it says the same
    found = packed(info)
    assert found is not None and len(found.packed) < 100_000


def load_image(*files: str, new: bool = False) -> dict[str, Any]:
    image: list[Any] = [list(files), {"image_upload": True, "tooltip": "A picture."}]
    if new:
        image = ["COMBO", {"options": list(files), "image_upload": True, "tooltip": "A picture."}]
    return {"LoadImage": {"input": {"required": {"image": image}}, "output": ["IMAGE"], "category": "image"}}


@pytest.mark.parametrize("new", [False, True])
def test_uploaded_files_are_nobody_elses_business(new: bool) -> None:
    kept = read(load_image("mine.png", "yours.png", new=new))["LoadImage"]
    assert "mine.png" not in json.dumps(kept)
    kind, extra = kept["input"]["required"]["image"]
    assert (kind, extra.get("options")) == (("COMBO", []) if new else ([], None))
    assert (extra["tooltip"], kept["category"]) == ("A picture.", "image")
    assert digest(load_image("a.png", new=new)) == digest(load_image("b.png", "c.png", new=new))


def grouped(*options: str) -> dict[str, Any]:
    """A class whose lists stand in groups, in groups."""
    combo: list[Any] = ["COMBO", {"options": list(options)}]
    inner = {
        "required": {"file": combo, "n": ["INT", {"default": 1}]},
        "optional": {"also": [list(options), {}]},
    }
    slot = ["COMFY_DYNAMICSLOT_V3", {"inputs": inner, "slotType": "IMAGE"}]
    branch = [
        "COMFY_DYNAMICCOMBO_V3",
        {"options": [{"key": "a", "inputs": inner}, {"key": "b", "inputs": {}}]},
    ]
    template = {"input": {"required": {"x": combo}}, "prefix": "x", "min": 1, "max": 3}
    row = ["COMFY_AUTOGROW_V3", {"template": template}]
    return {"Odd": {"input": {"required": {"slot": slot, "branch": branch}, "optional": {"row": row}}}}


def test_what_a_job_has_staged_is_in_no_list() -> None:
    staged = "fleet/7f3d2c1b-9a8e-4d6f-b012-3c4d5e6f7a8b/x.png"
    assert parse(load_image("m.png", staged)).classes["LoadImage"].required["image"].options == ("m.png",)
    assert read(grouped("one", "two")) == grouped("one", "two")
    assert read(grouped("one", staged, "two")) == grouped("one", "two")
    assert digest(grouped("one", staged)) == digest(grouped("one"))


def test_the_order_of_classes_makes_no_difference_and_what_they_say_does() -> None:
    info = classes_of("0.3.64")
    turned = dict(reversed(info.items()))
    assert digest(turned) == digest(info)
    assert list(read(turned)) == list(turned)
    other = copy.deepcopy(info)
    other["KSampler"]["display_name"] = "Another"
    renamed = {("KSampler2" if name == "KSampler" else name): body for name, body in info.items()}
    assert len({digest(info), digest(other), digest(renamed)}) == 3


def nested(depth: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(depth):
        value = [value]
    return value


def test_one_odd_class_costs_no_other() -> None:
    many = {
        f"i{index}": ["INT", {}] for index in range(20_000)
    }  # more than any class has: nothing is read of it
    info = {"Deep": {"note": nested(100_000)}, "Wide": {"input": {"required": many}}, **load_image()}
    assert list(read(info)) == ["LoadImage"]


def test_what_is_too_large_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(object_info, "MAX_PACKED", 10_000)
    assert packed(classes_of("0.3.64")) is None
    assert packed(load_image()) is not None


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=True)
    | st.text(max_size=5)
    | st.sampled_from(
        ["COMBO", "COMFY_DYNAMICCOMBO_V3", "COMFY_DYNAMICSLOT_V3", "COMFY_AUTOGROW_V3", "LoadImage"]
    ),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(
                ["required", "optional", "options", "inputs", "input", "key", "template", "a", "image"]
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=20,
)


@settings(max_examples=300, deadline=None)
@given(
    st.dictionaries(st.sampled_from(["LoadImage", "a\tb\n", "é"]), st.dictionaries(st.just("input"), JSON))
)
def test_no_shape_raises(info: dict[str, Any]) -> None:
    assert set(read(info)) <= set(info)
