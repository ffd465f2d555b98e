"""Which of a user's own files a class offers."""

import json
from typing import Any

import pytest

from comfy_fleet.domain.graphs.inventory import parse
from comfy_fleet.domain.graphs.object_info import Packer, unpack
from comfy_fleet.domain.jobs.upload_choices import with_uploads
from tests.unit.test_object_info import classes_of

FILES = [
    "z.png",
    "a.jpg",
    "song.wav",
    "film.mp4",
    "state.latent",
    "notes.txt",
    "paper.pdf",
    "3d/b.glb",
    "3d/sub/a.obj",
    "3d/readme.txt",
    "sub/in.png",
    "noext",
]
PICTURES = ["a.jpg", "z.png"]


def offered(version: str, name: str, input_: str) -> list[Any]:
    info = classes_of(version)
    parsed, packer = parse({name: info[name]}), Packer()
    packer.add(name, info[name], parsed.classes[name])
    kept = packer.end()
    assert kept is not None
    body = json.loads(with_uploads(name, unpack(kept.packed)[name], FILES))
    kind, *more = body["input"]["required"][input_]
    found: list[Any] = kind if isinstance(kind, list) else more[0]["options"]
    return found


@pytest.mark.parametrize(
    ("version", "name", "input_", "files"),
    [
        ("0.3.64", "LoadImage", "image", PICTURES),
        ("0.33.0", "LoadImage", "image", PICTURES),
        ("0.33.0", "LoadImageMask", "image", PICTURES),
        ("0.3.64", "LoadAudio", "audio", ["film.mp4", "song.wav"]),
        ("0.33.0", "LoadAudio", "audio", ["film.mp4", "song.wav"]),
        ("0.3.64", "LoadVideo", "file", ["film.mp4"]),
        ("0.33.0", "LoadVideo", "file", ["film.mp4"]),
        ("0.3.64", "LoadLatent", "latent", ["state.latent"]),
        ("0.3.64", "Load3D", "model_file", ["3d/b.glb", "3d/sub/a.obj"]),
        ("0.33.0", "Load3D", "model_file", ["none", "3d/b.glb", "3d/sub/a.obj"]),
        ("0.33.0", "GeminiInputFiles", "file", ["notes.txt", "paper.pdf"]),
    ],
)
def test_a_class_offers_what_comfyui_would(version: str, name: str, input_: str, files: list[str]) -> None:
    assert offered(version, name, input_) == files


def test_an_unknown_classs_list_of_uploads_holds_all_that_lies_in_the_folder() -> None:
    body = {"input": {"required": {"file": ["COMBO", {"options": [], "some_upload": True}]}}}
    made = json.loads(with_uploads("Mine", json.dumps(body).encode(), FILES))
    assert made["input"]["required"]["file"][1]["options"] == sorted(f for f in FILES if "/" not in f)


def test_a_nodes_own_file_is_not_the_default() -> None:
    listed = ["COMBO", {"options": [], "default": "theirs.pdf", "file": 1}]
    body = json.dumps({"input": {"required": {"file": listed}}}).encode()
    for files, default in ((FILES, "notes.txt"), ([], None)):
        made = json.loads(with_uploads("GeminiInputFiles", body, files))
        assert made["input"]["required"]["file"][1]["default"] == default
