"""What `fleet submit FILE` sends: the graph, and what a picture has of it in the editor's format."""

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from comfy_fleet.cli.submit import MOST_EDITOR_BYTES, bodies_of
from tests.factories import sampled


def saved(path: Path, ui: dict[str, Any]) -> Path:
    info = PngInfo()
    info.add_text("prompt", json.dumps(sampled(seed=7)))
    info.add_text("workflow", json.dumps(ui))
    Image.new("RGB", (8, 8)).save(path, pnginfo=info)
    return path


def editor_graph(**more: Any) -> dict[str, Any]:
    return {"nodes": [{"id": 4, "type": "KSampler", "widgets_values": [7, "fixed"]}], **more}


def test_a_picture_goes_with_its_editor_graph(tmp_path: Path) -> None:
    file = saved(tmp_path / "a.png", editor_graph())
    (body,) = bodies_of(file, 1)
    assert body == {
        "workflow": sampled(seed=7),
        "extra_data": {"extra_pnginfo": {"workflow": editor_graph()}},
    }


def test_jobs_with_seeds_of_their_own_have_them_in_the_editor_graph_too(tmp_path: Path) -> None:
    bodies = bodies_of(saved(tmp_path / "a.png", editor_graph()), 3)
    seeds = [body["workflow"]["4"]["inputs"]["seed"] for body in bodies]
    assert len({7, *seeds}) == 4
    for body, seed in zip(bodies, seeds, strict=True):
        (node,) = body["extra_data"]["extra_pnginfo"]["workflow"]["nodes"]
        assert node["widgets_values"] == [seed, "fixed"]


@pytest.mark.parametrize("more", [{"extra": "x" * MOST_EDITOR_BYTES}, {"extra": float("nan")}])
def test_what_the_fleet_would_not_take_stays_here(tmp_path: Path, more: dict[str, Any]) -> None:
    (body,) = bodies_of(saved(tmp_path / "a.png", editor_graph(**more)), 1)
    assert body == {"workflow": sampled(seed=7)}


def test_a_graph_in_json_goes_alone(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps(sampled()))
    assert bodies_of(tmp_path / "a.json", 1) == [{"workflow": sampled()}]
