"""Which files a graph may name: attacks that are refused, and ordinary graphs that are not."""

import gzip
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from comfy_fleet.domain.errors import BadInput, InvalidWorkflow
from comfy_fleet.domain.graphs import file_check
from comfy_fleet.domain.graphs import graph as g
from comfy_fleet.domain.graphs.file_access import Use
from comfy_fleet.domain.graphs.file_check import OPEN, Declared, FilePolicy, reruns, saves
from comfy_fleet.domain.graphs.inputs import InputSpec
from comfy_fleet.domain.graphs.inventory import Inventory, parse
from comfy_fleet.domain.graphs.workflow import Workflow
from comfy_fleet.services.workflow_check import check_workflow

DATA = Path(__file__).parent.parent / "data"
UUID = "0b9f6a4e-2f6c-4c55-9d67-0d7f5f6f9a11"


def classes_of(version: str) -> dict[str, Any]:
    """Return the core's classes, with a file ``marker.*`` of each kind in each of the server's folders."""
    found: dict[str, Any] = json.loads(
        gzip.decompress((DATA / f"all_classes_{version}.json.gz").read_bytes())
    )
    return found


def check(graph: g.Graph, known: Sequence[Inventory], **options: Any) -> None:
    file_check.check(graph, Declared(known), **options)


CUSTOM = {
    "PathLoader": {
        "input": {
            "required": {
                "directory": ["STRING", {}],
                "image_path": ["STRING", {"multiline": True}],
                "caption": ["STRING", {}],
                "kind": [["a", "b/c"], {}],
                "state": ["THEIR_WIDGET", {}],
                "group": [
                    "COMFY_DYNAMICCOMBO_V3",
                    {
                        "options": [
                            {"key": "a", "inputs": {"required": {"prompt": ["STRING", {"multiline": True}]}}},
                            {"key": "b", "inputs": {"required": {"file": ["STRING", {}]}}},
                        ]
                    },
                ],
                "grows": [
                    "COMFY_AUTOGROW_V3",
                    {"template": {"input": {"required": {"text": ["STRING", {"multiline": True}]}}}},
                ],
            }
        }
    },
    "PathSaver": {
        "output_node": True,
        "input": {"required": {"output_dir": ["STRING", {}], "filename_prefix": ["STRING", {}]}},
    },
}
OLD = parse({**classes_of("0.3.64"), **CUSTOM})
NEW = parse({**classes_of("0.33.0"), **CUSTOM})
BOTH: Sequence[Inventory] = (OLD, NEW)
KNOWN_OF = {"0.3.64": [OLD], "0.33.0": [NEW], "both": BOTH, "unread": []}


def one(class_type: str, **inputs: object) -> g.Graph:
    return g.check(
        {
            "text": {"class_type": "PrimitiveString", "inputs": {"value": "x"}},
            "n": {"class_type": class_type, "inputs": inputs},
        }
    )


def refused(
    graph: g.Graph, known: Sequence[Inventory] = BOTH, policy: FilePolicy = OPEN
) -> list[tuple[str, str]]:
    with pytest.raises(InvalidWorkflow) as caught:
        check(graph, known, policy=policy)
    return [(d["field"], d["reason"]) for d in caught.value.details["node_errors"]["n"]]


FOREIGN = [
    "../secret.png",
    "a/../../secret.png",
    "..",
    ".. /x.png",
    "../output/fleet/x.png [input]",
    "..\\secret.png [output]",
    "a\\..\\..\\b.png",
    "/etc/motd.png",
    "\\\\host\\share.png",
    "C:\\x.png",
    "c:x.png [temp]",
    "file:///etc/motd.png",
    "~/x.png",
    "x.png_[temp]",
    "x.png[output]",
    "x.png [temp] [input]",
    "fleet/job/run/x.png [output]",
    "fleet",
    "fleet/",
    "./fleet/x",
    "FLEET\\x",
    "fleet./x",
    f"fleet/{UUID}/{UUID}/x.png",
    "a\0.png",
    "a\n.png",
]
NO_SUCH = ["x.png [temp]", "x.png [output]", "s/x.png [output]", "~x.png  [temp]"]
READERS = [
    ("LoadImage", "image", "both"),
    ("LoadImageMask", "image", "both"),
    ("LoadImageOutput", "image", "both"),
    ("LoadAudio", "audio", "both"),
    ("LoadVideo", "file", "both"),
    ("LoadLatent", "latent", "both"),
    ("WebcamCapture", "image", "both"),
    ("RecordAudio", "audio", "both"),
    ("Painter", "mask", "both"),
    ("GeminiInputFiles", "file", "both"),
    ("Load3D", "model_file", "both"),
    ("LoadImageSetFromFolderNode", "folder", "0.3.64"),
    ("LoadImageTextDataSetFromFolder", "folder", "0.33.0"),
    ("LoadVideoDataSetFromFolder", "folder", "0.33.0"),
    ("LoadTrainingDataset", "folder_name", "0.33.0"),
    ("PathLoader", "directory", "both"),
    ("PathLoader", "image_path", "both"),
    ("PathLoader", "group.file", "both"),
    ("LoadImage", "image", "unread"),
    ("LoadImageTextDataSetFromFolder", "folder", "unread"),
    ("NeverSeen", "video_path", "unread"),
]


@pytest.mark.parametrize(("class_type", "name", "known"), READERS)
def test_no_input_that_names_files_leads_to_somebody_elses(class_type: str, name: str, known: str) -> None:
    for value in FOREIGN:
        for form in (value, {"__value__": value}, ["a.png", value, "b.png"], {"deep": [{"x": value}]}):
            assert refused(one(class_type, **{name: form}), KNOWN_OF[known]) == [(name, "bad_path")], form


@pytest.mark.parametrize(("class_type", "name", "known"), READERS)
def test_an_output_is_named_by_its_owner_alone(class_type: str, name: str, known: str) -> None:
    use = Declared(KNOWN_OF[known]).input(class_type, name).use
    for value in NO_SUCH:
        for form in (value, {"__value__": value}, {"deep": [{"x": value}]}):
            if use is Use.FILE:
                assert refused(one(class_type, **{name: form}), KNOWN_OF[known]) == [
                    (name, "custom_validation_failed")
                ], form
            else:
                assert refused(one(class_type, **{name: form}), KNOWN_OF[known]) == [(name, "bad_path")], form
        if use is Use.FILE:
            check(
                one(class_type, **{name: value}), KNOWN_OF[known], policy=OPEN, assets={("n", (name,)): "id"}
            )


@pytest.mark.parametrize(
    ("class_type", "name", "text", "words"),
    [
        ("LoadImage", "image", "s/x.png [output]", "Invalid image file: s/x.png [output]"),
        ("LoadImageOutput", "image", "x.png [output]", "Invalid image file: x.png [output]"),
        ("LoadAudio", "audio", "x.flac [temp]", "Invalid audio file: x.flac [temp]"),
        ("LoadVideo", "file", "x.mp4 [output]", "Invalid video file: x.mp4 [output]"),
        ("LoadLatent", "latent", "x.latent [output]", "Invalid latent file: x.latent [output]"),
        ("Load3D", "model_file", "x.glb [output]", "Invalid 3D model file: x.glb [output]"),
    ],
)
def test_an_unknown_file_is_told_in_comfyuis_words(class_type: str, name: str, text: str, words: str) -> None:
    graph = one(class_type, **{name: text})
    expected = {"field": name, "reason": "custom_validation_failed", "message": words, "value": text}
    with pytest.raises(InvalidWorkflow) as caught:
        check(graph, BOTH, policy=OPEN)
    assert caught.value.details["node_errors"] == {"n": [expected]}
    files = file_check.named_files(graph, Declared(BOTH))
    assert file_check.unknown_files(graph, files).details["node_errors"] == {"n": [expected]}


def test_a_plain_name_is_refused_only_where_every_node_lists_its_files_and_none_has_it() -> None:
    def unlisted(class_type: str, name: str, value: object, known: Sequence[Inventory] = BOTH) -> bool:
        graph, declared = one(class_type, **{name: value}), Declared(known)
        files = file_check.listable(graph, file_check.named_files(graph, declared), OPEN)
        return bool(file_check.unlisted(graph, declared, files))

    assert unlisted("LoadImage", "image", "nobody.png")
    assert unlisted("LoadImage", "image", "nobody.png [input]")
    assert unlisted("LoadVideo", "file", "nobody.mp4")
    for class_type, name, value in (
        ("LoadImage", "image", "marker.png"),
        ("LoadImage", "image", "marker.png [input]"),
        ("LoadImage", "image", "sub/nobody.png"),
        ("LoadImage", "image", "sub\\nobody.png"),
        ("LoadImage", "image", ["nobody.png"]),
        ("LoadImageOutput", "image", "nobody.png"),
        ("Painter", "mask", "nobody.png"),
        ("Load3D", "model_file", "none"),
        ("Load3D", "image", {"image": "nobody.png"}),
        ("NeverSeen", "image", "nobody.png"),
    ):
        assert not unlisted(class_type, name, value), (class_type, value)
    assert not unlisted("LoadImage", "image", "nobody.png", [])
    free = FilePolicy(free=frozenset({"LoadImage.image"}))
    graph, declared = one("LoadImage", image="nobody.png"), Declared(BOTH)
    assert not file_check.listable(graph, file_check.named_files(graph, declared), free)


@pytest.mark.parametrize(("class_type", "name", "known"), READERS)
def test_no_such_input_takes_its_value_from_another_node(class_type: str, name: str, known: str) -> None:
    for value in (["text", 0], {"__value__": ["text", 0]}, {"image": [["text", 0]]}):
        assert refused(one(class_type, **{name: value}), KNOWN_OF[known]) == [(name, "linked_path")]


def test_objects_of_the_editors_widgets_are_looked_into() -> None:
    scene = {"image": "scene.png", "mask": "m.png", "recording": "", "camera_info": {"type": "perspective"}}
    check(one("Load3D", model_file="none", image=scene), [NEW], policy=OPEN)
    for key in ("image", "mask", "normal", "lineart", "recording"):
        for inventory in BOTH:
            bad = {**scene, key: "ComfyUI_temp_abcde_00001_.png [temp]"}
            assert refused(one("Load3D", model_file="none", image=bad), [inventory]) == [
                ("image", "custom_validation_failed")
            ]
    assert refused(one("PathLoader", state={"file": ["/etc/passwd"]})) == [("state", "bad_path")]


def test_choices_that_nobody_offers_are_no_way_out() -> None:
    for value in ("../x", "/etc/passwd", "x.safetensors [output]", "fleet"):
        assert refused(one("CheckpointLoaderSimple", ckpt_name=value)) == [("ckpt_name", "bad_path")]
        assert refused(one("CustomCombo", choice=value)) == [("choice", "bad_path")]


def test_what_only_names_a_runs_file_is_refused_in_any_line() -> None:
    for value in ("x.png [temp]", f"fleet/{UUID}/x.png", f"./fleet//{UUID}"):
        assert refused(one("PathLoader", caption=value)) == [("caption", "bad_path")]
        assert refused(one("NeverSeen", anything=[{"a": value}])) == [("anything", "bad_path")]


def test_a_shown_file_may_be_linked_and_leads_nowhere() -> None:
    check(one("Preview3D", model_file=["text", 0]), BOTH, policy=OPEN)
    check(one("Preview3D", model_file=""), BOTH, policy=OPEN)
    assert refused(one("Preview3D", model_file=f"fleet/{UUID}/{UUID}/x.glb")) == [("model_file", "bad_path")]


@pytest.mark.parametrize("known", ["0.3.64", "0.33.0", "both"])
@pytest.mark.parametrize(
    ("class_type", "inputs"),
    [
        ("CLIPTextEncode", {"text": "/imagine a cat, ../.. and [output]"}),
        ("CLIPTextEncode", {"text": "C:\\ is a drive\nphoto.png [temp]"}),
        ("CLIPTextEncode", {"text": ["text", 0]}),
        ("PrimitiveString", {"value": "/imagine a fleet of ships"}),
        ("PrimitiveStringMultiline", {"value": "photo.png [temp]"}),
        ("StringConcatenate", {"string_a": "/", "string_b": "..", "delimiter": "/"}),
        ("SaveImage", {"filename_prefix": "../../x"}),
        ("SaveImage", {"filename_prefix": ["text", 0]}),
        ("SaveImage", {"filename_prefix": "/%date:yyyy-MM-dd%/[temp]"}),
        ("KSampler", {"sampler_name": "euler", "seed": 3, "model": ["text", 0]}),
        ("SetUnionControlNetType", {"type": "hed/pidi/scribble/ted"}),
        ("CheckpointLoaderSimple", {"ckpt_name": "sub/dir/m.safetensors"}),
        ("CheckpointLoaderSimple", {"ckpt_name": "fleets\\m.safetensors"}),
        ("LoraLoader", {"lora_name": "v1..2/x.safetensors"}),
        ("LoadImage", {"image": "marker.png"}),
        ("LoadImage", {"image": "sub/a..b [1].png [input]"}),
        ("LoadImage", {"image": g.asset_reference("x")}),
        ("LoadImage", {"image": ""}),
        ("LoadImageOutput", {"image": g.asset_reference("x")}),
        ("PathLoader", {"kind": "b/c", "caption": "/slash", "group.prompt": "/a", "grows.text0": "/b\n.."}),
        ("PathLoader", {"state": "#ff0000", "directory": "my/set", "image_path": g.asset_reference("x")}),
        ("PathSaver", {"output_dir": "/tmp", "filename_prefix": "../x"}),
        ("PreviewAny", {"source": "/what"}),
        ("FluxProUltraImageNode", {"aspect_ratio": "16:9", "prompt": "/x"}),
    ],
)
def test_ordinary_values_pass(class_type: str, inputs: dict[str, Any], known: str) -> None:
    check(one(class_type, **inputs), KNOWN_OF[known], policy=FilePolicy())


def test_folders_that_the_operator_filled_are_choices_and_ours_are_not() -> None:
    for inventory, class_type in ((OLD, "LoadImageSetFromFolderNode"), (NEW, "LoadImageDataSetFromFolder")):
        check(one(class_type, folder="markdir/deep"), [inventory], policy=OPEN)
        spec = inventory.classes[class_type].required["folder"]
        assert spec.options == ("3d", "3d/sub", "markdir", "markdir/deep")
    info = classes_of("0.33.0")
    before = parse(info)
    info["LoadImageDataSetFromFolder"]["input"]["required"]["folder"][1]["options"] += [f"fleet/{UUID}"]
    info["LoraLoader"]["input"]["required"]["lora_name"][0].append("fleet/x.safetensors")
    after = parse(info)
    assert before.classes["LoadImageDataSetFromFolder"] == after.classes["LoadImageDataSetFromFolder"]
    assert after.classes["LoraLoader"].required["lora_name"].options == ("fleet/x.safetensors",)
    check(one("LoraLoader", lora_name="fleet/x.safetensors"), [after], policy=OPEN)


def test_own_uploads_are_found_at_any_depth() -> None:
    graph = g.check(
        {
            "1": {"class_type": "LoadImage", "inputs": {"image": "a b.png"}},
            "2": {"class_type": "LoadImage", "inputs": {"image": "sub/b.png  [input]"}},
            "3": {"class_type": "LoadImage", "inputs": {"image": ["1", 0]}},
            "4": {"class_type": "LoadImage", "inputs": {"image": g.asset_reference("x")}},
            "5": {"class_type": "Other", "inputs": {"image": "e.png"}},
            "6": {"class_type": "LoadImage", "inputs": {"image": ""}},
            "7": {"class_type": "LoadImage", "inputs": {"image": "strange [1]"}},
            "8": {"class_type": "LoadLatent", "inputs": {"latent": " l.latent "}},
            "9": {
                "class_type": "Load3D",
                "inputs": {"model_file": "m.glb", "image": {"image": "s.png", "camera": {"type": "free"}}},
            },
            "10": {"class_type": "WebcamCapture", "inputs": {"image": {"__value__": "w.png [temp]"}}},
            "11": {"class_type": "LoadImageOutput", "inputs": {"image": "s/o.png [output]"}},
            "12": {
                "class_type": "Load3D",
                "inputs": {"image": {"image": "t/s.png [temp]", "mask": "x [temp]"}},
            },
            "13": {
                "class_type": "NeverSeen",
                "inputs": {"a": "o.png [output]", "b": "o.png", "c": "no [output]"},
            },
            "14": {"class_type": "LoadImage", "inputs": {"image": "a.png[output]"}},
            "15": {"class_type": "CLIPTextEncode", "inputs": {"text": "a.png [output]"}},
            "16": {"class_type": "VHS_LoadVideo", "inputs": {"video": "v.mp4 [output]"}},
        }
    )
    for known in ([], BOTH):
        named = file_check.named_files(graph, Declared(known))
        assert [(u.node_id, u.path, u.folder, u.name) for u in named if u.node_id != "15"] == [
            ("1", ("image",), "input", "a b.png"),
            ("2", ("image",), "input", "sub/b.png"),
            ("7", ("image",), "input", "strange [1]"),
            ("8", ("latent",), "input", " l.latent "),
            ("9", ("model_file",), "input", "m.glb"),
            ("9", ("image", "image"), "input", "s.png"),
            ("10", ("image", "__value__"), "temp", "w.png"),
            ("11", ("image",), "output", "s/o.png"),
            ("12", ("image", "image"), "temp", "t/s.png"),
            ("13", ("a",), "output", "o.png"),
            ("14", ("image",), "input", "a.png[output]"),
            ("16", ("video",), "output", "v.mp4"),
        ]
    assert "15" not in {u.node_id for u in file_check.named_files(graph, Declared(BOTH))}
    other = parse({"Other": {"input": {"required": {"image": [["x.png"], {"image_upload": True}]}}}})
    assert "5" in {u.node_id for u in file_check.named_files(graph, Declared([other]))}
    # What is replaced by the owner's own file may be called as the owner likes.
    mine = one("LoadImage", image="fleet/x.png")
    check(mine, BOTH, policy=OPEN, assets={("n", ("image",)): "id"})


@pytest.mark.parametrize("value", [5, 1.5, True, {"__type": "core/OTHER", "info": {"id": "x"}}])
def test_an_upload_is_a_name_or_an_asset(value: object) -> None:
    with pytest.raises(InvalidWorkflow, match=r"node n: image .* or a core/ASSET object"):
        check(one("LoadImage", image=value), BOTH, policy=OPEN)


def test_every_defect_is_reported_at_once_and_names_the_way_out() -> None:
    graph = one("LoadImage", image="../x")
    graph["m"] = {"class_type": "LoadLatent", "inputs": {"latent": ["text", 0]}}
    with pytest.raises(InvalidWorkflow, match=r"\(and 1 more\)") as caught:
        check(graph, BOTH, policy=OPEN)
    errors = caught.value.details["node_errors"]
    assert [errors[node][0]["reason"] for node in ("n", "m")] == ["bad_path", "linked_path"]
    assert all("FLEET_FREE_PATHS=" in errors[node][0]["message"] for node in ("n", "m"))


def test_operators_deny_classes_and_free_inputs() -> None:
    shipped = FilePolicy.parse("", "")
    assert refused(one("SaveTrainingDataset"), policy=shipped) == [("class_type", "class_denied")]
    own = FilePolicy.parse(" Bad, -SaveTrainingDataset ,", "PathLoader.directory")
    assert refused(one("Bad"), policy=own) == [("class_type", "class_denied")]
    check(one("SaveTrainingDataset", folder_name="x"), BOTH, policy=own)
    check(one("PathLoader", directory="/data/in"), BOTH, policy=own)
    assert refused(one("PathLoader", image_path="/data/in"), policy=own) == [("image_path", "bad_path")]
    with pytest.raises(BadInput, match=r"must look like CLASS\.input"):
        FilePolicy.parse("", "PathLoader")


def test_a_class_that_the_node_replaces_names_what_the_new_one_names() -> None:
    def entry(new: str, **names: str) -> list[dict[str, Any]]:
        mapping = [{"new_id": new_id, "old_id": old_id} for new_id, old_id in names.items()]
        return [{"new_node_id": new, "input_mapping": mapping}]

    replacements = {
        "OldLoader": entry("LoadImage", image="picture"),
        "OldSaver": entry("SaveImage", images="x", filename_prefix="name"),
        "Unmapped": [
            {
                "new_node_id": "SaveImage",
                "input_mapping": [
                    {"new_id": "images", "old_id": "x"},
                    {"new_id": "filename_prefix", "set_value": "same/for/all"},
                ],
            }
        ],
    }
    known = parse(classes_of("0.33.0"), replacements=replacements)
    assert refused(one("OldLoader", picture="../x.png [temp]"), [known]) == [("picture", "bad_path")]
    assert refused(one("OldLoader", picture=["text", 0]), [known]) == [("picture", "linked_path")]
    check(one("OldLoader", picture="x.png"), [known], policy=OPEN)
    graph = one("OldSaver", x=["text", 0], name="../x")
    made = g.for_run(graph, job_id="J", run_id="R", saves=saves(graph, known))
    assert made["n"]["inputs"]["name"] == "fleet/J/R/x"
    assert "Unmapped" not in known.classes


def test_a_replaced_class_is_denied_with_the_one_that_takes_its_place() -> None:
    mapping: list[dict[str, Any]] = [
        {"new_id": name, "old_id": name} for name in ("latents", "conditioning", "folder_name")
    ]
    mapping.append({"new_id": "shard_size", "set_value": 10})
    replacements = {"OldSaver": [{"new_node_id": "SaveTrainingDataset", "input_mapping": mapping}]}
    known = parse(classes_of("0.33.0"), replacements=replacements)
    graph = one("OldSaver", latents=["text", 0], conditioning=["text", 0], folder_name="x")
    assert refused(graph, [known], FilePolicy.parse("", "")) == [("class_type", "class_denied")]
    check(graph, [known], policy=OPEN)


def test_a_value_that_the_class_in_its_place_checks_by_itself_is_doubtful() -> None:
    mapping = [{"new_id": "image", "old_id": "picture"}, {"new_id": "width", "set_value": 1}]
    replacements = {"OldLoader": [{"new_node_id": "WebcamCapture", "input_mapping": mapping}]}
    body = {
        "input": {"required": {"image": ["COMBO", {"options": ["a"]}], "width": ["INT", {}]}},
        "python_module": "nodes",
    }
    known = parse({"WebcamCapture": body}, replacements=replacements)
    old, new = known.classes["OldLoader"], known.classes["WebcamCapture"]
    for info, name in ((old, "picture"), (new, "image")):
        spec = info.input(name)
        assert spec is not None and info.may_take(name, spec, "b")
    assert not old.may_take("other", InputSpec(type="COMBO"), "b")
    # Under its old name a class may be one of those, too, on a node that has it.
    assert replace(old, name="LoadAudio").may_take("audio", InputSpec(type="COMBO"), "b")


def test_a_replaced_class_names_what_members_of_a_row_do() -> None:
    template = {"input": {"required": {"image": [["a.png"], {}]}}, "prefix": "image", "max": 3, "min": 1}
    new = {"input": {"required": {"images": ["COMFY_AUTOGROW_V3", {"template": template}]}}}
    mapping = [{"new_id": "images.image0", "old_id": "picture"}]
    replacements = {"Old": [{"new_node_id": "New", "input_mapping": mapping}]}
    known = [parse({"New": new}, replacements=replacements)]
    for class_type, name in (("Old", "picture"), ("New", "images.image0")):
        assert refused(one(class_type, **{name: ["text", 0]}), known) == [(name, "linked_path")]


@pytest.mark.parametrize("value", ["../x", "/etc/passwd", "x.png [output]", "fleet/a/b.png"])
@pytest.mark.parametrize(
    ("kind", "part", "name"),
    [
        ("COMFY_DYNAMICCOMBO_V3", "options", "g.file"),
        ("COMFY_DYNAMICSLOT_V3", "inputs", "g.file"),
        ("COMFY_AUTOGROW_V3", "template", "g.file0"),
    ],
)
@pytest.mark.parametrize("declared", [["STRING", {}], ["COMBO", {"options": ["a"]}]])
def test_no_input_inside_a_group_leads_to_somebody_elses(
    declared: list[Any], kind: str, part: str, name: str, value: str
) -> None:
    inner = {"required": {"file": declared}}
    extra = {
        "options": [{"key": "a", "inputs": inner}],
        "inputs": inner,
        "template": {"input": inner, "prefix": "file", "max": 3},
    }
    known = [parse({"Odd": {"input": {"required": {"g": [kind, {part: extra[part]}]}}}})]
    assert refused(one("Odd", g="a", **{name: value}), known) == [(name, "bad_path")]
    assert refused(one("Odd", g="a", **{name: ["text", 0]}), known) == [(name, "linked_path")]
    check(one("Odd", g="a", **{name: "a"}), known, policy=OPEN)


def test_what_a_row_saves_goes_below_the_runs_own_folder() -> None:
    template = {"input": {"required": {"output_dir": ["STRING", {}]}}, "prefix": "dir", "max": 3}
    body = {"input": {"required": {"g": ["COMFY_AUTOGROW_V3", {"template": template}]}}, "output_node": True}
    known = parse({"Saver": body})
    graph = one("Saver", **{"g.dir0": "../x"})
    made = g.for_run(graph, job_id="J", run_id="R", saves=saves(graph, known))
    assert made["n"]["inputs"]["g.dir0"] == "fleet/J/R/x"


@pytest.mark.parametrize(("first", "second"), [(0, 1), (1, 0)])
@pytest.mark.parametrize(
    ("declared", "value"), [(["COMBO", {"options": ["a", "../b"]}], "../b"), (["INT", {}], "../c")]
)
def test_a_text_is_free_only_where_each_node_takes_texts(
    declared: list[Any], value: str, first: int, second: int
) -> None:
    versions = [parse({"Odd": {"input": {"required": {"x": spec}}}}) for spec in (["STRING", {}], declared)]
    known = [versions[first], versions[second]]
    assert refused(one("Odd", x=value), known) == [("x", "bad_path")]
    check(one("Odd", x=value), [versions[0]], policy=OPEN)
    check(one("Odd", x="a"), known, policy=OPEN)


@pytest.mark.parametrize(("first", "second"), [(0, 1), (1, 0)])
@pytest.mark.parametrize("name", ["output_dir", "prefix"])
def test_where_nodes_differ_a_value_is_safe_on_each_of_them(name: str, first: int, second: int) -> None:
    versions = [
        parse({"Odd": {"output_node": saves_it, "input": {"required": {name: ["STRING", {}]}}}})
        for saves_it in (True, False)
    ]
    known = [versions[first], versions[second]]
    value = "/data/x" if name == "output_dir" else "x.png [temp]"
    assert refused(one("Odd", **{name: value}), known) == [(name, "bad_path")]
    check(one("Odd", **{name: "a/b"}), known, policy=OPEN)
    check(one("Odd", **{name: value}), versions[:1], policy=OPEN)


# -- what runs anew, and where it saves ------------------------------------------------------------------


def link(class_type: str, *sources: str, **inputs: object) -> dict[str, Any]:
    links = {f"in{index}": [source, 0] for index, source in enumerate(sources)}
    return {"class_type": class_type, "inputs": {**inputs, **links}}


def test_what_writes_the_graph_into_its_files_never_comes_from_an_earlier_job() -> None:
    graph = {
        "src": link("EmptyImage"),
        "preview": link("PreviewImage", "src"),
        "compare": link("ImageCompare", "src"),
        "layers": link("ImageCompositor", "src"),
        "text": link("PreviewAny", "src"),
        "save": link("SaveImage", "src", filename_prefix="x"),
        "loss": link("LossGraphNode", "src", filename_prefix="x"),
        "paid": link("TripoTextToModelNode"),
        "audio": link("PreviewAudio", "src"),
    }
    assert reruns(graph, NEW) == {"preview", "compare", "layers", "audio"}
    assert reruns(graph, None) == {"preview", "layers", "audio"}
    assert reruns(graph, OLD) == {"preview", "layers", "audio"}


def test_what_shows_files_on_its_way_runs_anew_where_nothing_costly_follows() -> None:
    graph = {
        "src": link("EmptyImage"),
        "crop": link("ImageCropV2", "src"),
        "paint": link("Painter", "crop"),
        "save": link("SaveImage", "paint", filename_prefix="x"),
        "crop2": link("ImageCropV2", "src"),
        "sampler": link("KSampler", "crop2"),
        "save2": link("SaveImage", "sampler", "crop2", filename_prefix="x"),
        "unread": link("ImageCropV2", "src"),
    }
    assert reruns(graph, NEW) == {"crop", "paint"}


def test_savers_with_a_folder_of_their_own_are_known_by_rule() -> None:
    graph = one("PathSaver", output_dir="/data", filename_prefix="a/b")
    made = g.for_run(graph, job_id="J", run_id="R", saves=saves(graph, NEW))["n"]["inputs"]
    assert made == {"output_dir": "fleet/J/R/data", "filename_prefix": "b"}


def test_a_free_input_is_sent_as_it_is() -> None:
    graph = one("PathSaver", output_dir="/data", filename_prefix="a/b")
    policy = FilePolicy.parse("", "PathSaver.output_dir, PathSaver.filename_prefix, Absent.x")
    made = g.for_run(graph, job_id="J", run_id="R", saves=saves(graph, NEW, policy))["n"]["inputs"]
    assert made == graph["n"]["inputs"]


def test_a_stored_workflow_is_told_what_a_submit_would_refuse() -> None:
    graph = one("LoadImage", image="x.png [temp]")
    graph |= {"d": {"class_type": "SaveTrainingDataset", "inputs": {"folder_name": "x"}}}
    flow = Workflow(name="w", version="1", graph=graph)
    kinds = {(found.node_id, str(found.kind)) for found in check_workflow(flow, NEW)}
    assert {("n", "custom_validation_failed"), ("d", "class_denied")} <= kinds
    free = FilePolicy.parse("-SaveTrainingDataset", "LoadImage.image")
    kinds = {(found.node_id, str(found.kind)) for found in check_workflow(flow, NEW, policy=free)}
    assert not {("n", "custom_validation_failed"), ("d", "class_denied")} & kinds
