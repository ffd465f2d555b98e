"""Graphs of several jobs as one prompt, and what each job sees of it."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from comfy_fleet.domain.graphs.graph import Graph, is_link
from comfy_fleet.domain.graphs.merging import (
    batch_size,
    batch_source,
    batched,
    merged,
    seed_place,
    without_seeds,
)
from comfy_fleet.domain.jobs.batch_part import BatchPart
from comfy_fleet.domain.jobs.frames import Picture, ProgressText, parse_binary, with_metadata
from comfy_fleet.domain.jobs.member_view import NOT_SPLIT, MemberView
from comfy_fleet.domain.jobs.run_messages import Binary, Frame

IDS = ["1", "2", "3:1", "m", "m1", "5.0.1", "a b"]


@st.composite
def variants(draw: st.DrawFn) -> list[Graph]:
    """Draw one graph in several variants, in which values, links and nodes differ here and there."""
    ids = draw(st.lists(st.sampled_from(IDS), min_size=1, max_size=len(IDS), unique=True))
    graphs = []
    for _ in range(draw(st.integers(1, 4))):
        kept = [id_ for id_ in ids if draw(st.integers(0, 9))] or ids[:1]
        graph: Graph = {}
        for at, node_id in enumerate(kept):
            inputs: dict[str, Any] = {"value": draw(st.integers(0, 1)), "list": ["1", "x"]}
            if at and draw(st.integers(0, 3)):
                inputs["in"] = [draw(st.sampled_from(kept[:at])), draw(st.integers(0, 1))]
            graph[node_id] = {"class_type": draw(st.sampled_from("AB")), "inputs": inputs, "_meta": {}}
        graphs.append(dict(draw(st.permutations(list(graph.items())))))
    return graphs


def meaning(graph: Graph, node_id: str) -> object:
    """Return what a node computes, whatever its id and those of the others are."""
    node = graph[node_id]
    return node["class_type"], tuple(
        (name, (meaning(graph, value[0]), value[1]) if is_link(value) else json.dumps(value))
        for name, value in sorted(node["inputs"].items())
    )


@given(variants())
def test_each_member_computes_what_it_would_alone(graphs: list[Graph]) -> None:
    """Every node of every graph is there, reads the same, and none is there that no graph has."""
    found = merged(graphs)
    for graph, ids in zip(graphs, found.members, strict=True):
        assert ids.keys() == graph.keys()
        assert len(set(ids.values())) == len(graph)
        for node_id, name in ids.items():
            assert meaning(found.graph, name) == meaning(graph, node_id)
    assert found.graph.keys() == {name for ids in found.members for name in ids.values()}
    assert found.members[0] == {node_id: node_id for node_id in graphs[0]}


@given(variants())
def test_equal_nodes_are_there_once_and_no_others(graphs: list[Graph]) -> None:
    """Two members share a node exactly if its id and all that it computes from are equal."""
    found = merged(graphs)
    for one, its in zip(graphs, found.members, strict=True):
        for other, others in zip(graphs, found.members, strict=True):
            for node_id in one.keys() & other.keys():
                equal = _content(one, node_id) == _content(other, node_id)
                assert (its[node_id] == others[node_id]) == equal


def _content(graph: Graph, node_id: str) -> object:
    node = graph[node_id]
    inputs = {
        name: [_content(graph, value[0]), value[1], value[0]] if is_link(value) else value
        for name, value in node["inputs"].items()
    }
    return json.dumps([node_id, node["class_type"], inputs], sort_keys=True)


@given(variants(), st.integers(0, 3))
def test_what_a_node_tells_goes_to_those_that_have_it_under_their_own_id(
    graphs: list[Graph], part: int
) -> None:
    """Also of nodes that grew during the run; and to nobody else."""
    found = merged(graphs)
    views = [
        MemberView(run=f"run{at}", prompt="run0", ids={name: own for own, name in ids.items()})
        for at, ids in enumerate(found.members)
    ]
    grown = f".0.0.{part}" if part else ""
    for name in found.graph:
        data = {"node": name + grown, "display_node": name, "prompt_id": "run0", "output": {"images": []}}
        for at, (view, ids) in enumerate(zip(views, found.members, strict=True)):
            seen = view.frame(Frame("executed", data))
            own = next((own for own, its in ids.items() if its == name), None)
            if own is None:
                assert seen is None
            else:
                assert isinstance(seen, Frame)
                assert seen.data["node"] == own + grown
                assert seen.data["display_node"] == own
                assert seen.data["prompt_id"] == f"run{at}"
                assert json.loads(seen.raw) == {"type": "executed", "data": dict(seen.data)}


def test_ids_like_those_of_members_are_not_merged() -> None:
    """Else a node of one job's could be taken for another's."""
    node = {"class_type": "A", "inputs": {}}
    with pytest.raises(ValueError, match="begins like"):
        merged([{"1": node}, {"m1:1": node}])


VIEW = MemberView(run="mine", prompt="first", ids={"1": "1", "m1:2": "2"})


def test_a_member_sees_its_own_states_only() -> None:
    """``progress_state`` and ``execution_cached`` name nodes of all members."""
    state = {"value": 1, "max": 4, "state": "running", "node_id": "m1:2", "prompt_id": "first"}
    seen = VIEW.frame(
        Frame("progress_state", {"prompt_id": "first", "nodes": {"m1:2": state, "m2:2": state, "1": state}})
    )
    assert isinstance(seen, Frame)
    assert list(seen.data["nodes"]) == ["2", "1"]
    assert seen.data["nodes"]["2"]["node_id"] == "2"
    assert seen.data["nodes"]["2"]["prompt_id"] == "mine"
    seen = VIEW.frame(Frame("execution_cached", {"prompt_id": "first", "nodes": ["1", "m2:2", "m1:2"]}))
    assert isinstance(seen, Frame)
    assert seen.data["nodes"] == ["1", "2"]


def test_an_error_of_any_node_reaches_all() -> None:
    """The prompt is over for everybody."""
    seen = VIEW.frame(Frame("execution_error", {"prompt_id": "first", "node_id": "m2:2"}))
    assert isinstance(seen, Frame)
    assert seen.type == "execution_error"
    assert seen.data["prompt_id"] == "mine"


def test_pictures_in_frames_go_to_whose_node_works() -> None:
    """With the node's id or without; other members' pictures are not even previews."""
    view = MemberView(run="mine", prompt="first", ids={"1": "1", "m1:2": "2"})
    plain = (1).to_bytes(4, "big") + (2).to_bytes(4, "big") + b"\x89PNG"
    for node, seen in (("m1:2", True), ("m2:2", False), ("1", True)):
        view.frame(Frame("executing", {"prompt_id": "first", "node": node}))
        assert (view.frame(Binary(plain)) is not None) == seen
        assert (view.frame(Frame("progress", {"value": 1, "max": 2})) is not None) == seen
    named = with_metadata(plain, {"node_id": "m1:2", "display_node_id": "m1:2", "prompt_id": "first"})
    found = view.frame(Binary(named))
    assert isinstance(found, Binary)
    read = parse_binary(found.data)
    assert isinstance(read, Picture)
    assert (read.node_id, read.prompt_id, read.data) == ("2", "mine", b"\x89PNG")
    text = (3).to_bytes(4, "big") + (4).to_bytes(4, "big") + b"m1:2" + b"hello"
    found = view.frame(Binary(text))
    assert isinstance(found, Binary)
    assert parse_binary(found.data) == ProgressText(node_id="2", text="hello")
    assert view.frame(Binary(text.replace(b"m1", b"m2"))) is None


def test_history_has_the_members_results_only() -> None:
    """With its own ids."""
    entry = {"outputs": {"m1:2": {"images": [1]}, "m2:2": {"images": [2]}}, "status": {"messages": []}}
    assert VIEW.history(entry)["outputs"] == {"2": {"images": [1]}}


def test_whoever_knows_only_the_first_job_does_not_take_others_results() -> None:
    """Its own ids are the prompt's; nodes that only others have are told by theirs."""
    view = MemberView(run="first", prompt="first", ids={"2": "2"})
    assert view.history({"outputs": {"2": {}, "m1:2": {}, "m1:7": {}}})["outputs"] == {"2": {}}


# -- batches


def text_to_image(**more: Any) -> Graph:
    """Return a usual graph."""
    return {
        "4": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "a"}},
        "5": {"class_type": "EmptyLatentImage", "inputs": {"width": 64, "height": 64, "batch_size": 2}},
        "6": {"class_type": "CLIPTextEncode", "inputs": {"clip": ["4", 1], "text": "x"}},
        "3": {
            "class_type": "KSampler",
            "inputs": {"seed": 7, "model": ["4", 0], "positive": ["6", 0], "latent_image": ["5", 0]},
        },
        "8": {"class_type": "VAEDecode", "inputs": {"samples": ["3", 0], "vae": ["4", 2]}},
        "9": {"class_type": "SaveImage", "inputs": {"images": ["8", 0]}},
        **more,
    }


def test_a_batch_of_several_jobs_is_so_many_times_as_large() -> None:
    """Nothing else changes, the given graph included."""
    graph = text_to_image()
    assert (batch_source(graph), batch_size(graph), seed_place(graph)) == ("5", 2, ("3", "seed"))
    made = batched(graph, 3)
    assert made["5"]["inputs"]["batch_size"] == 6
    assert graph == text_to_image()
    made["5"]["inputs"]["batch_size"] = 2
    assert made == graph


def test_seeds_that_nobody_chose_do_not_count() -> None:
    """All else does."""
    one, other = text_to_image(), text_to_image()
    other["3"]["inputs"]["seed"] = 8
    assert without_seeds(one, {("3", "seed")}) == without_seeds(other, {("3", "seed")})
    assert without_seeds(one, set()) != without_seeds(other, set())
    assert one["3"]["inputs"]["seed"] == 7


@pytest.mark.parametrize(
    ("more", "why"),
    [
        ({"10": {"class_type": "LatentFromBatch", "inputs": {}}}, "LatentFromBatch"),
        ({"10": {"class_type": "KSampler", "inputs": {}}}, "exactly once"),
        ({"10": {"class_type": "EmptyLatentImage", "inputs": {}}}, "2 empty latents"),
        ({"10": {"class_type": "SaveVideo", "inputs": {}}}, "SaveVideo"),
        ({"5": {"class_type": "EmptyLatentImage", "inputs": {"batch_size": ["6", 0]}}}, "batch_size"),
        ({"10": {"class_type": "RandomNoise", "inputs": {}}}, "2 samplers"),
    ],
)
def test_what_is_not_batchwise_is_refused(more: Graph, why: str) -> None:
    """Each picture must be what it would be in a batch of its own job's, and in its place."""
    with pytest.raises(ValueError, match=why):
        batch_source(text_to_image(**more))


def test_a_member_of_a_batch_gets_its_own_pictures() -> None:
    """By their place; everything else is everybody's."""
    views = [
        MemberView(run=f"run{at}", prompt="run0", part=BatchPart(seed=7, first=2 * at, count=2, size=6))
        for at in range(3)
    ]
    output = {"images": [{"filename": str(n)} for n in range(6)]}
    names = []
    for view in views:
        seen = view.frame(Frame("executed", {"node": "9", "prompt_id": "run0", "output": output}))
        assert isinstance(seen, Frame)
        found = [one["filename"] for one in seen.data["output"]["images"]]
        assert view.history({"outputs": {"9": output}})["outputs"]["9"] == seen.data["output"]
        names.append(found)
    assert names == [["0", "1"], ["2", "3"], ["4", "5"]]


def test_pictures_that_cannot_be_told_apart_are_nobodys() -> None:
    """The run fails for this member, which then runs alone."""
    view = MemberView(run="mine", prompt="run0", part=BatchPart(seed=7, first=1, count=1, size=2))
    view.frame(Frame("executed", {"node": "9", "prompt_id": "run0", "output": {"images": [1, 2, 3]}}))
    seen = view.frame(Frame("execution_success", {"prompt_id": "run0"}))
    assert isinstance(seen, Frame)
    assert (seen.type, seen.data["exception_type"]) == ("execution_error", NOT_SPLIT)
    messages = view.history({"outputs": {"9": {"images": [1]}}})["status"]["messages"]
    assert messages[0][0] == "execution_error"
