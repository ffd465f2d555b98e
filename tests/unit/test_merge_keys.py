"""``[merge]`` in a manifest, and which jobs may be merged."""

from typing import Any

import pytest

from comfy_fleet.adapters.workflows.manifest import resolve
from comfy_fleet.domain.errors import ConfigError
from comfy_fleet.domain.graphs.binding import bind
from comfy_fleet.domain.graphs.merging import MergeMode, MergeRule
from comfy_fleet.domain.jobs.merge_key import MergeKey, merge_key
from tests.factories import picture, sampled

SEED = {"parameters": {"seed": {"type": "seed", "target": {"class": "KSampler", "input": "seed"}}}}


def test_nothing_is_merged_unless_the_manifest_says_so() -> None:
    assert resolve("w", sampled(), SEED).merge is None


@pytest.mark.parametrize("value", ["any", "EXACT", "", "true", 1, 0.0, [], {}])
def test_a_wrong_cache_says_what_there_is(value: Any) -> None:
    with pytest.raises(ConfigError) as caught:
        resolve("w", sampled(), {**SEED, "cache": value})
    assert caught.value.details == {"problems": ["cache: must be 'off', 'exact', 'any-seed', true or false"]}


def test_what_a_manifest_leaves_out_has_a_default() -> None:
    made = resolve("w", sampled(), {**SEED, "merge": {"mode": "batch"}})
    assert made.merge == MergeRule(mode=MergeMode.BATCH, most=4, window_s=2.0)
    made = resolve("w", picture(1), {"merge": {"mode": "exact", "most": 2, "window_s": 0}})
    assert made.merge == MergeRule(mode=MergeMode.EXACT, most=2, window_s=0.0)


@pytest.mark.parametrize(
    ("graph", "merge", "more", "problem"),
    [
        (sampled(), {}, SEED, "merge.mode: Field required"),
        (sampled(), {"mode": "all"}, SEED, "merge.mode"),
        (sampled(), {"mode": "exact", "most": 5}, SEED, "merge.most"),
        (sampled(), {"mode": "exact", "most": 1}, SEED, "merge.most"),
        (sampled(), {"mode": "exact", "window_s": 11}, SEED, "merge.window_s"),
        (sampled(), {"mode": "exact", "window_s": -1}, SEED, "merge.window_s"),
        (sampled(), {"mode": "exact", "window_s": True}, SEED, "merge.window_s"),
        (sampled(), {"mode": "exact", "window_s": "2"}, SEED, "merge.window_s"),
        (sampled(), {"mode": "exact", "wait": 1}, SEED, "merge.wait: is unknown"),
        (sampled(), {"mode": "batch"}, {}, "merge.mode: 'batch' needs .* 'seed' for input 'seed' of node 4"),
        (picture(1), {"mode": "batch"}, {}, r"merge.mode: .*: node 1 \(EmptyImage\)"),
        ({"m1:1": picture(1)["1"]}, {"mode": "exact"}, {}, "merge: the graph has nodes with ids like m1"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named(
    graph: dict[str, Any], merge: dict[str, Any], more: dict[str, Any], problem: str
) -> None:
    with pytest.raises(ConfigError, match=problem):
        resolve("w", graph, {**more, "merge": merge})


def key(params: dict[str, Any], *, mode: str = "batch", **other: Any) -> MergeKey | None:
    workflow = resolve("w", sampled(), {**SEED, "merge": {"mode": mode}})
    bound = bind(workflow, params, draw_seed=lambda: 17)
    assert workflow.merge is not None
    fields = {"version": workflow.version, "owner": "ada", "about": {}, **other}
    return merge_key(workflow.merge, bound.graph, drawn=bound.drawn, **fields)


def test_a_batch_is_for_seeds_that_nobody_chose() -> None:
    open_ = key({})
    assert open_ is not None
    assert (open_.mode, open_.seed, open_.count, open_.most) == (MergeMode.BATCH, 17, 1, 4)
    assert key({"seed": -1}) == open_
    assert key({"seed": 5}) is None
    assert key({"seed": 17}) is None, "not even the one that would be drawn"


def test_an_authors_own_seed_is_chosen_too() -> None:
    fixed = {"seed": {**SEED["parameters"]["seed"], "default": 3}}
    workflow = resolve("w", sampled(), {"parameters": fixed, "merge": {"mode": "batch"}})
    assert bind(workflow, {}, draw_seed=lambda: 1).drawn == frozenset()


def test_branches_may_have_seeds_of_their_own() -> None:
    assert key({"seed": 5}, mode="exact") == key({"seed": 6}, mode="exact")


def test_owners_versions_and_time_limits_are_kept_apart() -> None:
    one = key({})
    assert one is not None
    for other in (
        key({}, owner="bob"),
        key({}, version="sha256:2"),
        key({}, about={"timeout_s": 5}),
        key({}, mode="exact"),
    ):
        assert other is not None
        assert other.text != one.text


def test_all_but_the_seed_counts_for_a_batch() -> None:
    rule, seeds = MergeRule(mode=MergeMode.BATCH), {("4", "seed")}
    found = [
        merge_key(rule, graph, version="1", owner="ada", drawn=seeds, about={})
        for graph in (sampled(64, seed=1), sampled(64, seed=2), sampled(128, seed=1))
    ]
    texts = [one.text for one in found if one is not None]
    assert texts[0] == texts[1]
    assert texts[0] != texts[2]
