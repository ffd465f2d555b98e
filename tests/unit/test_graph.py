"""Graphs: what is refused, what is found, and what a run gets."""

import copy
import json
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from comfy_fleet.domain.errors import InvalidWorkflow, MissingAsset, WorkflowFormatUi
from comfy_fleet.domain.graphs import graph as g

SMALL: dict[str, Any] = {
    "1": {
        "class_type": "LoadImage",
        "inputs": {"image": "photo.png"},
        "_meta": {"title": "x"},
        "is_changed": [None],
    },
    "2": {"class_type": "ImageInvert", "inputs": {"image": ["1", 0]}},
    "3": {"class_type": "SaveImage", "inputs": {"images": ["2", 0], "filename_prefix": "out"}},
}


def reasons(graph: object) -> dict[str, list[tuple[str, str]]]:
    with pytest.raises(InvalidWorkflow) as caught:
        g.check(graph)
    errors = caught.value.details["node_errors"]
    assert all(defect["message"] for defects in errors.values() for defect in defects)
    return {node: [(d["field"], d["reason"]) for d in defects] for node, defects in errors.items()}


def test_a_sound_graph_passes_with_its_extra_keys() -> None:
    assert g.check(SMALL) is SMALL


@pytest.mark.parametrize("graph", [None, [], "x", 3, True, {}])
def test_what_is_no_graph_at_all(graph: object) -> None:
    assert reasons(graph) == {}


@pytest.mark.parametrize(
    "graph",
    [
        {"nodes": [], "links": []},
        {"last_node_id": 3, "nodes": [{"id": 1, "type": "KSampler"}], "version": 0.4},
        {"workflow": {"nodes": [], "links": [], "version": 0.4}},
        {"prompt": SMALL, "extra": {"nodes": [], "links": []}},
        {"nodes": [{"id": 1, "type": "KSampler"}]},
    ],
)
def test_the_editors_format_is_told_apart(graph: object) -> None:
    with pytest.raises(WorkflowFormatUi, match=r"Export \(API\)"):
        g.check(graph)


def test_nodes_may_be_called_nodes_and_links() -> None:
    graph = {"nodes": SMALL["1"], "links": {"class_type": "ImageInvert", "inputs": {"image": ["nodes", 0]}}}
    assert g.check(graph) == graph


def test_a_wrapped_graph_is_explained() -> None:
    with pytest.raises(InvalidWorkflow, match="wrapped in 'prompt'"):
        g.check({"prompt": SMALL, "client_id": "x"})


@pytest.mark.parametrize(
    ("node", "expected"),
    [
        (5, [("", "not_an_object")]),
        ({"inputs": {}}, [("class_type", "missing_class_type")]),
        ({"class_type": 7, "inputs": {}}, [("class_type", "missing_class_type")]),
        ({"class_type": "", "inputs": {}}, [("class_type", "missing_class_type")]),
        ({"class_type": "A"}, [("inputs", "missing_inputs")]),
        ({"class_type": "A", "inputs": []}, [("inputs", "not_an_object")]),
        ({"class_type": "A", "inputs": {"x": ["9", 0]}}, [("x", "unknown_node")]),
        ({"class_type": "A", "inputs": {"x": ["2", -1]}}, [("x", "bad_link")]),
        ({"class_type": "A", "inputs": {"x": ["2", 0.5]}}, [("x", "bad_link")]),
        ({"class_type": "A", "inputs": {"x": ["2", True]}}, [("x", "bad_link")]),
        ({"class_type": "A", "inputs": {"x": ["2", None]}}, [("x", "bad_link")]),
        ({"class_type": "A", "inputs": {"x": [2, 0]}}, [("x", "bad_link")]),
        ({"class_type": "A", "inputs": {"x": float("nan")}}, [("x", "bad_value")]),
        ({"class_type": "A", "inputs": {"x": {"y": [float("inf")]}}}, [("x", "bad_value")]),
        ({"class_type": "A", "inputs": {"x": 2**64}}, [("x", "bad_value")]),
        ({"class_type": "A", "inputs": {"x": "\ud800"}}, [("x", "bad_value")]),
        ({"class_type": "A", "inputs": {}, "_meta": {"title": "\udfff"}}, [("_meta", "bad_value")]),
        ({"class_type": "A", "inputs": {"x": ["1", 0]}}, [("x", "cycle")]),
    ],
)
def test_each_defect_names_node_field_and_reason(node: object, expected: list[tuple[str, str]]) -> None:
    graph = {"1": node, "2": {"class_type": "B", "inputs": {}}}
    assert reasons(graph) == {"1": expected}


def test_all_defects_are_reported_at_once() -> None:
    graph = {"1": 5, "2": {"class_type": "A", "inputs": {"x": ["9", 0], "y": ["8", 0]}}}
    assert reasons(graph) == {
        "1": [("", "not_an_object")],
        "2": [("x", "unknown_node"), ("y", "unknown_node")],
    }


def test_a_ring_is_reported_without_what_leads_to_it() -> None:
    link = {
        name: {"class_type": "A", "inputs": {"x": [to, 0]}}
        for name, to in (("0", "1"), ("1", "2"), ("2", "1"))
    }
    assert reasons(link) == {"1": [("x", "cycle")], "2": [("x", "cycle")]}


def test_a_diamond_is_no_ring() -> None:
    a = {"class_type": "A", "inputs": {}}
    b = {"class_type": "B", "inputs": {"x": ["a", 0]}}
    assert g.check(
        {"d": {"class_type": "C", "inputs": {"x": ["b", 0], "y": ["c", 0]}}, "b": b, "c": b, "a": a}
    )


def test_long_chains_and_deep_values_neither_recurse_nor_pass() -> None:
    chain = {
        str(i): {"class_type": "A", "inputs": {"x": [str(i + 1), 0]} if i < 5000 else {}} for i in range(5001)
    }
    assert g.check(chain)
    deep: Any = 1
    for _ in range(100_000):
        deep = [deep]
    assert reasons({"1": {"class_type": "A", "inputs": {"x": deep}}}) == {"1": [("x", "bad_value")]}


def test_the_number_of_nodes_is_limited() -> None:
    graph = {str(i): {"class_type": "A", "inputs": {}} for i in range(4)}
    assert g.check(graph, max_nodes=4)
    with pytest.raises(InvalidWorkflow, match="at most 3"):
        g.check(graph, max_nodes=3)


def test_asset_references_are_found_at_any_depth() -> None:
    ref = g.asset_reference
    graph = {
        "1": {"class_type": "LoadImage", "inputs": {"image": ref("a"), "n": 1}},
        "2": {
            "class_type": "X",
            "inputs": {"images": [ref("b"), {"inner": ref("c")}], "plain": {"__type": "other"}},
        },
    }
    found = g.asset_references(g.check(graph))
    assert [(r.node_id, r.input, r.path, r.asset_id) for r in found] == [
        ("1", "image", ("image",), "a"),
        ("2", "images", ("images", 0), "b"),
        ("2", "images", ("images", 1, "inner"), "c"),
    ]


@pytest.mark.parametrize("info", [None, "x", {}, {"id": 5}, {"id": ""}, {"hash": "blake3:00"}])
def test_a_malformed_asset_reference_names_its_place(info: object) -> None:
    graph = {"7": {"class_type": "LoadImage", "inputs": {"image": {"__type": "core/ASSET", "info": info}}}}
    with pytest.raises(MissingAsset, match="node 7, input image") as caught:
        g.asset_references(g.check(graph))
    assert caught.value.details["node_id"] == "7"


def test_what_is_recorded_of_assets_leads_back_to_their_places() -> None:
    graph = g.check(
        {
            "1": {"class_type": "LoadImage", "inputs": {"image": g.asset_reference("a"), "n": 1}},
            "2": {"class_type": "X", "inputs": {"files": [g.asset_reference("b"), {"inner": "mesh.glb"}]}},
            "3": {"class_type": "LoadImage", "inputs": {"image": "face.png", "other": "face.png"}},
        }
    )
    places: dict[g.Place, str] = {
        ("1", ("image",)): "a",
        ("2", ("files", 0)): "b",
        ("2", ("files", 1, "inner")): "c",
        ("3", ("image",)): "d",
    }
    recorded = g.place_names(places)
    assert recorded == {"1/image": "a", "2/files/0": "b", "2/files/1/inner": "c", "3/image": "d"}
    assert g.asset_places(graph, recorded) == places
    assert g.asset_places(graph, {}) == {("1", ("image",)): "a", ("2", ("files", 0)): "b"}


def run(graph: Any, **options: Any) -> g.Graph:
    return g.for_run(g.check(graph), job_id="J", run_id="R", **options)


def test_a_run_gets_its_own_graph_and_the_original_stays() -> None:
    graph = copy.deepcopy(SMALL)
    graph["1"]["inputs"]["extra"] = {"deep": [g.asset_reference("a")]}
    before = copy.deepcopy(graph)
    made = run(
        graph,
        replacements={("1", ("image",)): "fleet/J/p.png", ("1", ("extra", "deep", 0)): "fleet/J/a.png"},
        rerun_nodes=frozenset({"2"}),
    )
    assert graph == before
    assert made["1"]["inputs"] == {"image": "fleet/J/p.png", "extra": {"deep": ["fleet/J/a.png"]}}
    assert made["1"]["_meta"] == {"title": "x"}
    assert made["2"]["inputs"] == {"image": ["1", 0], "fleet_run": "R"}
    assert made["3"]["inputs"] == {"images": ["2", 0], "filename_prefix": "fleet/J/R/out"}
    made["1"]["inputs"]["extra"]["deep"].append(1)
    made["2"]["inputs"]["image"].append(1)
    assert graph == before


@pytest.mark.parametrize(
    ("prefix", "expected"),
    [
        ("ComfyUI", "ComfyUI"),
        ("cats/night/one", "cats/night/one"),
        ("%date:yyyy-MM-dd%/shot_%width%x%height%", "_date_yyyy-MM-dd_/shot_%width%x%height%"),
        ("%Empty Latent.width%", "_Empty Latent.width_"),
        ("../../etc/passwd", "etc/passwd"),
        ("/abs/olute", "abs/olute"),
        ("C:\\Users\\x", "C_/Users/x"),
        ("a\\..\\b", "a/b"),
        ("a/. ./.../b", "a/b"),
        ("", "output"),
        ("///", "output"),
        ("nul\0\nline", "nul__line"),
        ("tail/ ", "tail"),
        ("50% off", "50_ off"),
        ("x" * 100, "x" * 80),
        ("/".join(("a" * 70, "b" * 70, "c" * 70)), "/".join(("b" * 70, "c" * 70))),
        ("/".join(("a" * 80, "b" * 80)), "b" * 80),  # 161 characters
        ("/".join(("a" * 79, "b" * 80)), "/".join(("a" * 79, "b" * 80))),
        ("\N{EURO SIGN}" * 80, "\N{EURO SIGN}" * 53),  # 159 bytes
        ("wait... what/v1..2", "wait_ what/v1_2"),
        ("%a..b%", "_a_b_"),
        (7, "7"),
        (0.5, "0.5"),
        (None, "output"),
        ({"__value__": "a/b"}, "a/b"),
        ({"__value__": ["a"]}, "output"),
    ],
)
def test_prefixes_stay_below_the_runs_folder(prefix: object, expected: str) -> None:
    graph = {"1": {"class_type": "SaveImage", "inputs": {"filename_prefix": prefix}}}
    assert run(graph)["1"]["inputs"]["filename_prefix"] == f"fleet/J/R/{expected}"


@given(st.text(max_size=400))
def test_no_prefix_at_all_leaves_the_runs_folder(prefix: str) -> None:
    graph: g.Graph = {"1": {"class_type": "SaveImage", "inputs": {"filename_prefix": prefix}}}
    made = g.for_run(graph, job_id="J", run_id="R", replacements={})["1"]["inputs"]["filename_prefix"]
    parts = made.split("/")
    assert parts[:3] == ["fleet", "J", "R"]
    assert len(parts) > 3
    assert all(part.strip(". ") and not set(part) & set('\\\0\n<>"|?*') for part in parts[3:])
    assert len(made) <= 10 + 160
    assert ".." not in made
    assert max(len(part.encode()) for part in parts) <= 160
    json.dumps(made).encode()


def test_a_linked_prefix_becomes_a_text_of_the_run() -> None:
    made = run(
        {
            "1": {"class_type": "PrimitiveString", "inputs": {"value": "series/a"}},
            "2": {"class_type": "StringConcatenate", "inputs": {"string_a": "a", "string_b": "b"}},
            "3": {"class_type": "SaveImage", "inputs": {"filename_prefix": ["1", 0]}},
            "4": {"class_type": "SaveVideo", "inputs": {"format.filename_prefix": ["2", 0]}},
            "5": {"class_type": "PrimitiveString", "inputs": {"value": {"__value__": "b"}}},
            "6": {"class_type": "SaveImage", "inputs": {"filename_prefix": ["5", 0]}},
        }
    )
    assert made["6"]["inputs"]["filename_prefix"] == "fleet/J/R/b"
    assert made["3"]["inputs"]["filename_prefix"] == "fleet/J/R/series/a"
    assert made["4"]["inputs"]["format.filename_prefix"] == "fleet/J/R/output"


def test_a_folder_of_its_own_is_the_runs_and_its_prefix_a_plain_name() -> None:
    made = run(
        {
            "1": {
                "class_type": "SaveImageDataSetToFolder",
                "inputs": {"folder_name": "../../ds", "filename_prefix": "../a/b", "mode": "overwrite"},
            },
            "2": {"class_type": "SaveImageTextDataSetToFolder", "inputs": {"filename_prefix": "x"}},
            "3": {"class_type": "SaveLoRA", "inputs": {"prefix": ["4", 0]}},
            "4": {"class_type": "PrimitiveString", "inputs": {"value": "/etc/passwd"}},
            "5": {"class_type": "Other", "inputs": {"folder_name": "kept", "prefix": "kept"}},
        }
    )
    assert made["1"]["inputs"] == {"folder_name": "fleet/J/R/ds", "filename_prefix": "b", "mode": "overwrite"}
    assert made["2"]["inputs"] == {"folder_name": "fleet/J/R/output", "filename_prefix": "x"}
    assert made["3"]["inputs"] == {"prefix": "fleet/J/R/etc/passwd"}
    assert made["5"]["inputs"] == {"folder_name": "kept", "prefix": "kept"}


@pytest.mark.parametrize(("job", "run_id"), [("a/b", "r"), ("j", ".."), ("", "r")])
def test_ids_that_could_lead_elsewhere_are_refused(job: str, run_id: str) -> None:
    with pytest.raises(ValueError, match="job_id and run_id"):
        g.for_run(SMALL, job_id=job, run_id=run_id)


def test_the_profile_follows_classes_and_cost_but_not_content() -> None:
    def sampler(**inputs: object) -> g.Graph:
        return {"1": {"class_type": "KSampler", "inputs": {"steps": 20, "seed": 1, **inputs}}}

    assert g.profile(sampler()) == g.profile({"9": sampler(seed=2)["1"]})
    assert g.profile(sampler()) != g.profile(sampler(steps=21))
    assert g.profile(sampler()) != g.profile({**sampler(), "2": sampler()["1"]})
    other = {"class_type": "VAEDecode", "inputs": {}}
    assert g.profile({**sampler(), "2": other}) == g.profile({"0": other, **sampler()})
    assert g.profile(sampler()).startswith("graph:")


def test_classes() -> None:
    assert g.classes(SMALL) == {"LoadImage", "ImageInvert", "SaveImage"}


def test_another_model_is_another_profile_and_another_lora_is_not() -> None:
    def loaded(model: str, lora: str) -> g.Graph:
        return {
            "1": {"class_type": "UNETLoader", "inputs": {"unet_name": model}},
            "2": {"class_type": "LoraLoader", "inputs": {"model": ["1", 0], "lora_name": lora}},
        }

    assert g.profile(loaded("a.sft", "x.sft")) != g.profile(loaded("b.sft", "x.sft"))
    assert g.profile(loaded("a.sft", "x.sft")) == g.profile(loaded("a.sft", "y.sft"))


# -- what nobody reads, and what nobody needs ----------------------------------------------------------


def test_links_of_nodes_that_no_output_reads_are_not_looked_at() -> None:
    lost = {"class_type": "ImageInvert", "inputs": {"image": ["77", 0]}}
    ring = {"class_type": "ImageInvert", "inputs": {"image": ["8", 0]}}
    graph = {**SMALL, "7": lost, "8": ring}
    assert reasons(graph) == {"7": [("image", "unknown_node")]}
    assert reasons({**SMALL, "8": ring}) == {"8": [("image", "cycle")]}
    assert g.check(graph, read=lambda _: SMALL) is graph
    with pytest.raises(InvalidWorkflow, match="links to node '77'"):
        g.check(graph, read=lambda _: [*SMALL, "7"])
    with pytest.raises(InvalidWorkflow, match="circle"):
        g.check(graph, read=lambda _: [*SMALL, "8"])
    # A node without inputs kills a server's prompt thread, read or not.
    with pytest.raises(InvalidWorkflow, match="inputs is missing"):
        g.check({**SMALL, "9": {"class_type": "X"}}, read=lambda _: SMALL)


@pytest.mark.parametrize(
    "value", [[float("nan")], float("inf"), {"a": [float("-inf")]}, 2**70, "\udfff", {"\udfff": 1}]
)
@pytest.mark.parametrize("key", ["is_changed", "widgets", "_meta"])
def test_what_json_can_not_carry_beside_the_inputs_is_left_out(key: str, value: object) -> None:
    graph = {**SMALL, "1": {**SMALL["1"], key: value}}
    checked = g.check(graph)
    assert checked == {**SMALL, "1": {name: found for name, found in SMALL["1"].items() if name != key}}
    assert g.check(checked) is checked
    assert reasons({"1": {"class_type": "A", "inputs": {key: value}}})["1"][0][1] == "bad_value"


def test_a_title_is_kept_when_something_beside_it_is_left_out() -> None:
    node = {"class_type": "A", "inputs": {}, "_meta": {"title": "$prompt", "x": float("nan")}}
    assert g.check({"1": node}) == {"1": {**node, "_meta": {"title": "$prompt"}}}


@pytest.mark.parametrize("meta", [None, "x", {"title": "y"}])
def test_what_is_posted_has_the_object_that_a_server_copies_on_replacing_a_class(meta: object) -> None:
    node = {"class_type": "A", "inputs": {}} | ({} if meta is None else {"_meta": meta})
    made = g.for_run({"1": node}, job_id="j", run_id="r")
    assert made["1"]["_meta"] == (meta if isinstance(meta, dict) else {})


NAMED: dict[str, Any] = {
    "1": {"class_type": "KSampler", "inputs": {"seed": 7, "cfg": 8.0, "model": ["2", 0], "on": True}},
    "2": {"class_type": "Load", "inputs": {"name": "a/b:c.png"}, "_meta": {"title": "My loader"}},
    "3": {"class_type": "Load", "inputs": {"name": "second"}, "_meta": {"title": "KSampler"}},
}


@pytest.mark.parametrize(
    ("prefix", "expected"),
    [
        ("%date:yyyy-MM-dd%/%date:hhmmss%_x", "2031-02-03/040506_x"),
        ("%date:yyyy/MM/dd%/x", "2031/02/03/x"),
        ("%date:d.M.yy h:m:s%", "3"),  # the editor stops at the first dot
        ("%date:d-M-yy h:m:s%", "3-2-31 4_5_6"),
        ("%date:yyy dddd%", "yyy 0303"),
        ("%date:MM.dd%", "_date_MM.dd_"),  # the editor takes it for a node and its input
        ("%date%x", "_date_x"),
        ("%year%-%month%-%day%/%hour%%minute%%second%_%width%x%height%_%batch_num%", None),
        ("%WIDTH%_%other%_100%", "_WIDTH___other__100_"),
        ("%KSampler.seed%_%KSampler.cfg%_%KSampler.on%", "7_8_true"),
        ("%Load.name%_%My loader.name%", "a_b_c.png_a_b_c.png"),
        (
            "%KSampler.model%_%KSampler.nothing%_%Nobody.seed%",
            "_KSampler.model___KSampler.nothing___Nobody.seed_",
        ),
        ("con/NUL.txt/com1/lpt9.x/conx/aux", "_con/_NUL.txt/_com1/_lpt9.x/conx/_aux"),
        ("a%b", "a_b"),
    ],
)
def test_names_are_filled_in_as_the_editor_does_and_fit_every_file_system(
    prefix: str, expected: str | None
) -> None:
    save = {"class_type": "SaveImage", "inputs": {"filename_prefix": prefix}}
    made = g.for_run(
        {**NAMED, "9": save}, job_id="J", run_id="R", at=datetime(2031, 2, 3, 4, 5, 6, tzinfo=UTC)
    )
    assert made["9"]["inputs"]["filename_prefix"] == f"fleet/J/R/{expected or prefix}"


def test_filling_in_names_takes_no_time_whatever_they_hold() -> None:
    graph = {str(i): {"class_type": "A", "inputs": {"x": "y" * 1000}} for i in range(2000)}
    for prefix in ("%A.x%" * 1_000_000, "%B.x%" * 190):
        save = {"class_type": "SaveImage", "inputs": {"filename_prefix": prefix}}
        made = g.for_run({**graph, "s": save}, job_id="J", run_id="R", at=datetime(2031, 2, 3, tzinfo=UTC))
        assert len(made["s"]["inputs"]["filename_prefix"]) <= 200


def test_a_nodes_id_has_a_limit() -> None:
    node = {"class_type": "A", "inputs": {}}
    nested = ":".join(["12345"] * 60)
    assert g.check({nested: node}) == {nested: node}
    with pytest.raises(InvalidWorkflow, match="at most 1000 are taken"):
        g.check({"7" * 1001: node})
