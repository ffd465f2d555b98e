"""What a graph says of its packages and files: read from whatever a person sends, and no more than fits."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from comfy_fleet.domain.graphs.part_sources import (
    MOST_URL,
    PartSource,
    PartSources,
    checked_folder,
    checked_url,
    part_sources,
)

URL = "https://huggingface.co/Comfy-Org/x/resolve/main/vae/ae.safetensors?download=true"


def node(type_: object, **properties: Any) -> dict[str, Any]:
    return {"id": 1, "type": type_, "properties": properties}


def test_packages_and_files_of_a_graph_and_its_subgraphs() -> None:
    found = part_sources(
        {
            "nodes": [
                node("KSampler", cnr_id="comfy-core", ver="0.3.64"),
                node("DWPreprocessor", cnr_id="comfyui_controlnet_aux", ver="1.1.0"),
                node("DWPreprocessor", cnr_id="another", ver="2"),
                node(
                    "OnlyOnGithub",
                    aux_id="kijai/ComfyUI-KJNodes",
                    ver="a6b867b63a29ca48ddb15c589e17a9f2d8530d57",
                ),
                node("VAELoader", models=[{"name": "ae.safetensors", "url": URL, "directory": "vae"}]),
            ],
            "definitions": {
                "subgraphs": [
                    {
                        "nodes": [
                            node(
                                "Inner",
                                cnr_id="inner-pack",
                                models=[{"name": "sub/x.pt", "directory": "loras"}],
                            )
                        ]
                    }
                ]
            },
            "models": [
                {"name": "top.safetensors", "url": "http://example.com/top", "directory": "checkpoints"}
            ],
        }
    )
    assert found.of_class("KSampler") == PartSource(package="comfy-core", version="0.3.64")
    assert found.of_class("DWPreprocessor") == PartSource(package="comfyui_controlnet_aux", version="1.1.0")
    assert found.of_class("OnlyOnGithub").package == "kijai/ComfyUI-KJNodes"
    assert found.of_class("Inner").package == "inner-pack"
    assert found.of_class("None") == PartSource()
    assert found.of_file("VAELoader", "deep\\er/ae.safetensors") == PartSource(url=URL, folder="vae")
    assert found.of_file("OtherLoader", "ae.safetensors").url == URL
    assert found.of_file("Inner", "x.pt") == PartSource(folder="loras")
    assert found.of_file("Any", "top.safetensors").folder == "checkpoints"


def test_equal_names_of_different_loaders_are_kept_apart() -> None:
    found = part_sources(
        {
            "nodes": [
                node("VAELoader", models=[{"name": "model.safetensors", "directory": "vae"}]),
                node("UNETLoader", models=[{"name": "model.safetensors", "directory": "diffusion_models"}]),
            ]
        }
    )
    assert found.of_file("VAELoader", "model.safetensors").folder == "vae"
    assert found.of_file("UNETLoader", "model.safetensors").folder == "diffusion_models"


@pytest.mark.parametrize(
    "url",
    [
        "javascript:alert(1)",
        "file:///etc/passwd",
        "ftp://example.com/x",
        "//example.com/x",
        "https://",
        "https:///x",
        "https://huggingface.co@evil.example/x",
        "https://user:password@example.com/x",
        "https://example.com/a b",
        "https://example.com/\x1b[2J",
        "https://example.com/\u202excod",
        "https://ex\u0430mple.com/x",
        "https://example.com:99999/x",
        "https://example.com/<script>",
        'https://example.com/"onclick',
        "https://example.com/`id`",
        "https://[::1/x",
        "https://example.com/" + "x" * MOST_URL,
        5,
        None,
        ["https://example.com"],
    ],
)
def test_other_urls_are_not_shown(url: object) -> None:
    assert checked_url(url) == ""


@pytest.mark.parametrize("url", [URL, "http://10.0.0.1:8080/x", "HTTPS://Example.com/%20"])
def test_urls_of_the_web_are_shown_as_they_are(url: str) -> None:
    assert checked_url(url) == url


@pytest.mark.parametrize(
    "folder", ["..", "a/../b", "/etc", "a//b", "C:\\x", "a b", "x" * 65, "", None, 5, ".git"]
)
def test_other_folders_are_not_shown(folder: object) -> None:
    assert checked_folder(folder) == ""
    assert checked_folder("LLM/sub-folder_1.2") == "LLM/sub-folder_1.2"


@pytest.mark.parametrize("package", ["a b", "x" * 101, "../x", "a/b/c", "\x1b[2J", "<b>", "", 5, None, ["a"]])
def test_other_packages_are_not_shown(package: object) -> None:
    assert part_sources({"nodes": [node("A", cnr_id=package)]}).of_class("A") == PartSource()


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(
                ["nodes", "definitions", "subgraphs", "properties", "models", "type", "name", "url"]
            ),
            inner,
            max_size=5,
        )
    ),
    max_leaves=30,
)


@given(JSON)
def test_whatever_a_graph_holds_is_read(value: Any) -> None:
    assert isinstance(part_sources(value), PartSources)
