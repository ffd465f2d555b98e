"""What a draft's check says, the values of a test run, and small pictures of versions."""

from dataclasses import replace
from io import BytesIO
from typing import Any

import pytest
from PIL import Image

from comfy_fleet.adapters.workflows.manifest import resolve
from comfy_fleet.api.console_page import said, small_picture
from comfy_fleet.domain.graphs.publish_check import (
    CheckName,
    CheckState,
    CheckStep,
    PublishCheck,
    sealed,
    trial_values,
)
from comfy_fleet.domain.graphs.stored import WorkflowContent
from comfy_fleet.services.picture_forms import NoSuchForm, thumbnail


def node(class_type: str, title: str = "", **inputs: Any) -> dict[str, Any]:
    return {"class_type": class_type, "inputs": inputs, "_meta": {"title": title}}


GRAPH = {
    "1": node("KSampler", "$seed", seed=77, steps=4),
    "2": node("LoadImage", "$photo", image="cat.png"),
    "3": node("CLIPTextEncode", "$prompt", text="a cat"),
    "4": node("SaveImage", images=["2", 0], filename_prefix="x"),
}


def test_a_test_run_takes_the_graph_s_own_seed_and_what_has_no_default() -> None:
    assert trial_values(resolve("w", GRAPH, {})) == {"seed": 77, "photo": "cat.png"}


@pytest.mark.parametrize("seed", [-5, "x", 1.5])
def test_a_seed_that_is_none_is_drawn(seed: object) -> None:
    graph = {**GRAPH, "1": node("KSampler", seed=seed, steps=4)}
    manifest = {"parameters": {"seed": {"type": "seed", "target": {"class": "KSampler", "input": "seed"}}}}
    assert "seed" not in trial_values(resolve("w", graph, manifest))


def test_a_required_choice_is_the_one_that_the_graph_holds() -> None:
    target = {"class": "KSampler", "input": "steps"}
    choices = {"quick": {"value": 4}, "good": {"value": 20}}
    manifest = {
        "parameters": {"quality": {"type": "choice", "required": True, "choices": choices, "target": target}}
    }
    assert trial_values(resolve("w", GRAPH, manifest))["quality"] == "quick"


def test_a_seal_is_of_all_that_would_be_published() -> None:
    content = WorkflowContent(graph=GRAPH)
    seals = {
        sealed(content, None),
        sealed(content, {"nodes": []}),
        sealed(content, {"nodes": [], "groups": []}),
        sealed(replace(content, manifest={"title": "W"}), {"nodes": []}),
        sealed(WorkflowContent(graph={**GRAPH, "5": node("A")}), {"nodes": []}),
    }
    assert len(seals) == 5
    assert sealed(content, {"a": 1, "b": 2}) == sealed(content, {"b": 2, "a": 1})


def test_a_check_is_ready_when_all_steps_have_passed() -> None:
    steps = tuple(CheckStep(name=name, state=CheckState.PASSED, message="") for name in CheckName)
    check = PublishCheck(name="w", draft="d", version="v", saved_at=1.0, steps=steps)
    assert check.ready and not check.unchanged
    assert replace(check, production="v").unchanged
    for at, name in enumerate(CheckName):
        for state in (CheckState.FAILED, CheckState.WAITING):
            some = (*steps[:at], replace(steps[at], state=state), *steps[at + 1 :])
            assert not replace(check, steps=some).ready
            assert replace(check, steps=some).step(name).state is state
    assert not replace(check, version="").unchanged


def picture(mode: str, size: tuple[int, int] = (900, 300)) -> bytes:
    buffer = BytesIO()
    Image.effect_noise(size, 90).convert(mode).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "LA", "P", "1", "I;16"])
def test_a_thumbnail_is_a_small_webp(mode: str) -> None:
    made = thumbnail(picture(mode), side=300, most_bytes=64 * 1024, most_pixels=10**6)
    assert len(made) <= 64 * 1024
    with Image.open(BytesIO(made)) as shown:
        assert (shown.format, shown.size) == ("WEBP", (300, 100))


def test_a_thumbnail_that_can_not_be_small_enough_or_is_no_picture_is_refused() -> None:
    with pytest.raises(NoSuchForm, match="more than 100 bytes"):
        thumbnail(picture("RGB"), side=300, most_bytes=100, most_pixels=10**6)
    with pytest.raises(NoSuchForm, match="pixels"):
        thumbnail(picture("RGB"), side=300, most_bytes=10**6, most_pixels=1000)
    with pytest.raises(NoSuchForm, match="can't be read"):
        thumbnail(b"GIF89a", side=300, most_bytes=10**6, most_pixels=10**6)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("", ""),
        ("\u202e\x00", ""),
        ("a<b>&'\"", "<bdi>a&lt;b&gt;&amp;&#x27;&quot;</bdi>"),
        ("a\u202eb\nc", "<bdi>a b c</bdi>"),
        ("x" * 400, None),
    ],
)
def test_what_somebody_wrote_is_text(text: str, shown: str | None) -> None:
    found = said(text)
    assert found == shown if shown is not None else len(found) < 320


def test_a_version_without_a_picture_says_so() -> None:
    assert "no picture" in small_picture(None, "In production.", "x") and "<img" not in small_picture(
        None, "", ""
    )
    assert 'alt="a &amp; b"' in small_picture(b"RIFF", "c", "a & b")
