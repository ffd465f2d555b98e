"""What nodes say about their model files, put together."""

from typing import Any

import pytest

from comfy_fleet.domain.nodes import model_lists
from comfy_fleet.domain.nodes.model_lists import ModelPlace, file_infos, files, folder_infos, folders, leaves

NONSENSE: list[Any] = [None, 1, "x", {}, {"a": 1}, [None, 1, {}, [], "", "a\nb", "x" * 2000]]


def said(*answers: Any) -> list[tuple[str, Any]]:
    return [(f"gpu{number}", answer) for number, answer in enumerate(answers, 1)]


def test_nodes_that_are_alike_make_their_own_answer() -> None:
    listed = ["b.pt", "a.pt", "A.pt"]
    assert files(said(listed, listed)) == listed
    assert folders(said(listed, listed)) == listed
    assert files(said()) == folders(said()) == []


def test_different_files_are_sorted_as_comfyui_sorts_them() -> None:
    assert files(said(["b.pt", "sub/x.pt"], ["A.pt", "b.pt", "sub\\x.pt"])) == ["A.pt", "b.pt", "sub/x.pt"]
    assert files(said(["a.pt"], [])) == ["a.pt"]


def test_folders_keep_the_newest_nodes_order() -> None:
    assert folders(said(["loras", "vae"], ["checkpoints", "vae"])) == ["loras", "vae", "checkpoints"]


@pytest.mark.parametrize("odd", NONSENSE)
def test_what_makes_no_sense_is_left_out(odd: Any) -> None:
    for answers in (said(odd, ["a.pt"]), said(["a.pt"], odd)):
        assert files(answers) == ["a.pt"] or odd == NONSENSE[-1]
        assert set(folders(answers)) == {"a.pt"}
        assert folder_infos(said(odd, [{"name": "vae"}])) == [{"name": "vae", "folders": []}]
        assert file_infos(said(odd, [{"name": "a.pt"}])).listed == [{"name": "a.pt", "pathIndex": 0}]
        assert model_lists.replacements(said(odd)) == {}


def test_no_machines_path_is_told() -> None:
    old = [{"name": "vae", "folders": ["/srv/secret/vae"]}, {"name": "custom_nodes", "folders": ["/x"]}]
    new = [
        {"name": "vae", "folders": ["/home/a/vae", "D:\\models\\vae"], "extensions": [".sft", ".pt"]},
        {"name": "configs", "folders": ["/x"], "extensions": [".yaml"]},
    ]
    assert folder_infos(said(old, new)) == [
        {"name": "vae", "folders": ["models/vae", "models/vae (2)"], "extensions": [".pt", ".sft"]}
    ]
    assert folder_infos(said(old)) == [{"name": "vae", "folders": ["models/vae"]}]


def entry(name: str, index: int = 0, **more: Any) -> dict[str, Any]:
    return {"name": name, "pathIndex": index, "modified": 1.5, "created": 2.5, "size": 3, **more}


def test_files_are_listed_once_and_known_where_they_are() -> None:
    found = file_infos(
        said(
            [entry("b.pt"), entry("b.pt", 1), entry("only1.pt", 1)],
            [entry("sub\\c.safetensors", 4, path="/secret"), entry("b.pt", 2, size=9)],
            [entry("sub/c.safetensors")],
        )
    )
    assert [(one["name"], one["pathIndex"], one["size"]) for one in found.listed] == [
        ("b.pt", 0, 3),
        ("b.pt", 1, 3),
        ("only1.pt", 1, 3),
        ("sub\\c.safetensors", 4, 3),
    ]
    assert all("path" not in one for one in found.listed)
    assert found.places["sub/c.safetensors"] == [
        ModelPlace(node="gpu2", name="sub\\c.safetensors", path_index=4),
        ModelPlace(node="gpu3", name="sub/c.safetensors", path_index=0),
    ]
    assert found.stems["sub/c"] == "sub/c.safetensors"


def test_a_hostile_nodes_lists_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_lists, "MAX_FILES", 5)
    monkeypatch.setattr(model_lists, "MAX_FOLDERS", 5)
    many = [f"{number}.pt" for number in range(50)]
    assert len(files(said(["a.pt"], many))) == len(folders(said(many))) == 5
    assert len(file_infos(said([entry(name) for name in many])).listed) == 5
    infos = folder_infos(said([{"name": name, "folders": ["/x"] * 50} for name in many]))
    assert len(infos) == len(infos[0]["folders"]) == 5
    numbers = {"pathIndex": 10**30, "modified": 10**30, "size": True, "created": "now"}
    assert file_infos(said([{"name": "a.pt", **numbers}])).listed == [{"name": "a.pt", "pathIndex": 0}]


@pytest.mark.parametrize(
    "path", ["", "..", "../a", "a/../../b", "/etc/passwd", "a//b", "C:\\x", "..\\a", "a\\..\\b", "./a", "a\0"]
)
def test_paths_that_leave_their_folder_are_known(path: str) -> None:
    assert leaves(path)


@pytest.mark.parametrize("path", ["a.webp", "sub/a.webp", "a..b.png", "...x", "sub\\a.png"])
def test_other_paths_are_fine(path: str) -> None:
    assert not leaves(path)


def test_of_replacements_the_newest_nodes_count() -> None:
    new, old = [{"new_node_id": "B"}], [{"new_node_id": "C"}]
    assert model_lists.replacements(said({"A": new}, {"A": old, "X": old})) == {"A": new, "X": old}
