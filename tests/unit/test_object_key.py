"""Names of objects: templates, and what is put into them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from comfy_fleet.domain.errors import BadInput
from comfy_fleet.domain.stores.object_key import (
    MOST_KEY,
    KeyFacts,
    OutputFacts,
    bound_key,
    object_keys,
)
from comfy_fleet.domain.stores.output_plan import OutputPlan

FACTS = KeyFacts(
    job_id="j1",
    created_at=1_796_013_085.0,
    custom_id="SKU {1}",
    workflow="card",
    labels={"sku": "é 1"},
    params={"seed": 7, "flat": True, "list": [1]},
)


def key(template: str, *outputs: OutputFacts) -> list[str]:
    bound = bound_key(template, FACTS, prefix_bytes=0)
    return object_keys(bound, outputs or [OutputFacts(index=1, name="a.b.png", node_id="9:2")])


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("{job_id}/{index}-{name}", "j1/1-a.b.png"),
        ("{stem}.{ext}", "a.b.png"),
        ("{metadata.sku}/{params.seed}-{params.flat}", "é 1/7-true"),
        ("{custom_id}.{ext}", "SKU {1}.png"),
        ("{{x}}/{workflow}_{node_id}", "{x}/card_9:2"),
        ("{date}/x", "2026-11-30/x"),
    ],
)
def test_placeholders(template: str, expected: str) -> None:
    assert key(template) == [expected]


def test_equal_keys_are_told_apart_before_the_extension() -> None:
    outputs = [OutputFacts(index=n, name="a.png", node_id="1") for n in (1, 2, 3)]
    assert key("x/y.{ext}", *outputs) == ["x/y.png", "x/y-2.png", "x/y-3.png"]
    assert key("x/.y", *outputs) == ["x/.y", "x/.y-2", "x/.y-3"]
    clash = [OutputFacts(index=n, name=name, node_id="1") for n, name in enumerate(("a-2", "a", "a"), 1)]
    assert key("{name}", *clash) == ["a-2", "a", "a-3"]


def test_the_extension_follows_the_format() -> None:
    made = OutputFacts(index=1, name="a.png", node_id="1", extension="webp")
    assert key("{name}|{stem}|{ext}", made) == ["a.webp|a|webp"]
    plan = OutputPlan(store="s", key="x/{index}.webp")
    assert plan.converts("image", "image/png") == "webp"
    assert plan.converts("image", "image/webp") == "" and plan.converts("text", "text/plain") == ""
    assert OutputPlan(store="s", key="x.{ext}").converts("image", "image/png") == ""
    assert OutputPlan(store="s", key="x.{ext}", width=9).converts("image", "image/jpeg") == "jpeg"


@pytest.mark.parametrize(
    "template",
    [
        "", "/a", "a/", "a//b", "..", "a/../b", "./a", "a\x00", "a\u202e", "\ud800", "a\\b", "{", "}", "{a",
        "{}", "{job_id.x}", "{metadata}", "{metadata.}", "{params.list}", "{index!r}", "{name:>9}", "e\u0301",
        "{0}", "{job_id[0]}", " /a",
    ],
)  # fmt: skip
def test_what_can_be_no_template_is_refused(template: str) -> None:
    with pytest.raises(BadInput, match=r"output\.key") as error:
        key(template)
    assert error.value.details["field"] == "output.key"


@given(
    st.text(max_size=400), st.text(max_size=200), st.sampled_from(["{name}", "{stem}/{ext}", "x/{node_id}"])
)
def test_what_an_output_brings_never_leads_anywhere(name: str, node_id: str, template: str) -> None:
    bound = bound_key(template, FACTS, prefix_bytes=0)
    outputs = [OutputFacts(index=n, name=name, node_id=node_id) for n in (1, 2)]
    first, second = object_keys(bound, outputs)
    assert first != second
    for one in (first, second):
        parts = one.split("/")
        assert len(parts) == template.count("/") + 1
        assert all(part and part not in (".", "..") for part in parts)
        assert not any(ord(sign) < 32 or sign == "\\" for sign in one)
        assert len(one.encode()) <= MOST_KEY


@given(st.text(max_size=300))
def test_a_value_is_part_of_one_name_or_refused(value: str) -> None:
    facts = KeyFacts(job_id="j", created_at=0.0, labels={"x": value})
    try:
        bound = bound_key("a/{metadata.x}/b", facts, prefix_bytes=0)
    except BadInput:
        return
    (made,) = object_keys(bound, [OutputFacts(index=1, name="n", node_id="1")])
    assert made.count("/") == 2 and ".." not in made.split("/")
