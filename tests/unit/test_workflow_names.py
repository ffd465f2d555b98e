import pytest
from hypothesis import given
from hypothesis import strategies as st

from comfy_fleet.domain.errors import BadInput
from comfy_fleet.domain.graphs.workflow_names import NAME, WorkflowReference, check_label, short, slug

V = "sha256:" + "0123456789abcdef" * 4


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("w", WorkflowReference(name="w", label="production")),
        ("w@production", WorkflowReference(name="w", label="production")),
        ("w@staging", WorkflowReference(name="w", label="staging")),
        ("w@draft", WorkflowReference(name="w", draft=True)),
        (f"w@{V}", WorkflowReference(name="w", version=V[7:])),
        ("w@0123456", WorkflowReference(name="w", version="0123456")),
        ("w@sha256:0123456", WorkflowReference(name="w", version="0123456")),
        ("a.b-c_d@v1.2", WorkflowReference(name="a.b-c_d", label="v1.2")),
    ],
)
def test_a_reference_is_read(text: str, expected: WorkflowReference) -> None:
    found = WorkflowReference.parse(text)
    assert found == expected
    assert WorkflowReference.parse(str(found)) == found


@pytest.mark.parametrize(
    "text", ["", "@x", "My Workflow", "w@", "w@A", "w@0123", "w@a@b", "w@ staging", "W", "x/y"]
)
def test_what_is_no_reference_is_refused(text: str) -> None:
    with pytest.raises(BadInput):
        WorkflowReference.parse(text)


def test_a_refusal_says_what_was_meant() -> None:
    with pytest.raises(BadInput, match="did you mean my_workflow"):
        WorkflowReference.parse("My Workflow")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("My Workflow", "my_workflow"),
        ("my workflow.json", "my_workflow"),
        ("My Workflow.app.json", "my_workflow"),
        ("sub/My Workflow.json", "sub_my_workflow"),
        ("Zürich (final) v2.1", "zurich_final_v2.1"),
        ("__x__", "x"),
        ("", ""),
    ],
)
def test_a_name_in_the_editor_becomes_an_id(name: str, expected: str) -> None:
    assert slug(name) == expected


def test_names_in_other_scripts_stay_apart() -> None:
    names = ["海报", "风景", "海报 v2", "风景 v2", "Афиша", "☃", "x" * 80, "x" * 81]
    ids = [slug(name) for name in names]
    assert len(set(ids)) == len(ids)
    assert ids[2].startswith("v2_")


@given(st.text(min_size=1))
def test_every_name_becomes_a_valid_id_or_none(name: str) -> None:
    made = slug(name)
    assert made == "" or NAME.fullmatch(made)
    assert slug(made) == made or made.endswith((".json", ".app"))


@pytest.mark.parametrize("label", ["staging", "v1", "blue-green", "x" * 32])
def test_labels(label: str) -> None:
    assert check_label(label) == label
    assert WorkflowReference.parse(f"w@{label}").label == label


def test_people_see_a_few_digits() -> None:
    assert short(V) == "0123456789ab"
