"""What a fleet says of real ComfyUIs: of one, what that one says itself; of both versions, all of it.

A second version is taken along if ``COMFYUI_OTHER_HOME`` (and ``COMFYUI_OTHER_PYTHON``) name it.
"""

import io
import json
import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image

from tests.acceptance.up import Up, start_fleet, stop_fleet
from tests.acceptance.wire import AGENT, ANN, BOB, OPS, bearer
from tests.comfyui_server import ComfyServer, comfyui_of
from tests.integration.up_kit import until
from tests.key_files import write_keys

pytestmark = [pytest.mark.comfyui, pytest.mark.timeout(300)]

METADATA = {"ss_output_name": "tiny"}


@pytest.fixture(scope="module")
def bare(comfyui_server: ComfyServer) -> ComfyServer:
    """The real ComfyUI, with a model that has a preview: it looks for models below ``output``, too."""
    folder = comfyui_server.folder / "output" / "loras" / "sub"
    folder.mkdir(parents=True, exist_ok=True)
    header = json.dumps({"__metadata__": METADATA}).encode()
    (folder / "tiny.safetensors").write_bytes(struct.pack("<Q", len(header)) + header)
    Image.new("RGB", (8, 8), "red").save(folder / "tiny.png")
    return comfyui_server


def started(folder: Path, *nodes: str) -> Up:
    keys = folder / "keys"
    write_keys(keys, f"ann {ANN}\nbob {BOB}\nops {OPS} admin\n")
    keys.chmod(0o600)
    env = {"FLEET_KEYS_FILE": str(keys), "FLEET_AGENT_TOKEN": AGENT}
    options = [word for node in nodes for word in ("--node", node)]
    return start_fleet(folder / "data", *options, env=env)


@pytest.fixture(scope="module")
def up(bare: ComfyServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    """A fleet whose only node is that ComfyUI."""
    fleet = started(tmp_path_factory.mktemp("catalogue"), f"real={bare.url}")
    yield fleet
    stop_fleet(fleet)


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ComfyServer]:
    """A ComfyUI of another version."""
    home, python = os.environ.get("COMFYUI_OTHER_HOME"), os.environ.get("COMFYUI_OTHER_PYTHON")
    if not home:
        pytest.skip("COMFYUI_OTHER_HOME is not set")
    with comfyui_of(Path(home), tmp_path_factory.mktemp("other"), python=python) as server:
        yield server


def got(url: str, path: str, **headers: str) -> Any:
    answer = httpx.get(f"{url}{path}", headers=headers, timeout=60)
    assert answer.status_code == 200, (path, answer.status_code, answer.text[:500])
    return answer.json()


def of_fleet(up: Up, path: str, key: str = ANN) -> Any:
    return got(up.url, path, **bearer(key))


def without_uploads(info: dict[str, Any]) -> dict[str, Any]:
    """Return classes with empty lists of what lies in the node's ``input``."""

    def emptied(declared: Any) -> Any:
        if not isinstance(declared, list) or not declared:
            return declared
        extra = declared[1] if len(declared) > 1 and isinstance(declared[1], dict) else {}
        if any(key.endswith("_upload") for key in extra) or declared in ([[]], [["example.png"]]):
            kind = [] if isinstance(declared[0], list) else declared[0]
            options: dict[str, Any] = {"options": []} if "options" in extra else {}
            return [kind, *([{**extra, **options}] if extra else [])]
        return declared

    def cleaned(body: dict[str, Any]) -> dict[str, Any]:
        groups = {
            part: {name: emptied(declared) for name, declared in group.items()}
            if part in ("required", "optional")
            else group
            for part, group in body["input"].items()
        }
        return {**body, "input": groups}

    return {
        name: {**body, "input": None} if "FromFolder" in name else cleaned(body)  # they list folders there
        for name, body in info.items()
    }


@pytest.mark.parametrize("prefix", ["", "/api"])
def test_one_nodes_classes_are_what_it_says_itself(up: Up, bare: ComfyServer, prefix: str) -> None:
    own = without_uploads(got(bare.url, f"{prefix}/object_info"))
    found = without_uploads(of_fleet(up, f"{prefix}/object_info"))
    assert list(found) == list(own)
    for name in own:
        assert found[name] == own[name], name
    assert of_fleet(up, f"{prefix}/object_info/KSampler") == got(bare.url, f"{prefix}/object_info/KSampler")


def test_one_nodes_model_files_are_what_it_says_itself(up: Up, bare: ComfyServer) -> None:
    folders = got(bare.url, "/models")
    assert of_fleet(up, "/models") == folders
    for folder in folders:
        if folder != "custom_nodes":
            assert of_fleet(up, f"/models/{folder}") == got(bare.url, f"/models/{folder}")
            listed = of_fleet(up, f"/experiment/models/{folder}")
            assert listed == got(bare.url, f"/experiment/models/{folder}")
    assert of_fleet(up, "/embeddings") == got(bare.url, "/embeddings")
    infos, own = of_fleet(up, "/experiment/models"), got(bare.url, "/experiment/models")
    assert [{**info, "folders": len(info["folders"])} for info in infos] == [
        {**info, "folders": len(info["folders"])} for info in own
    ]
    assert str(bare.folder) not in json.dumps(infos)


def test_previews_and_metadata_come_from_the_node(up: Up, bare: ComfyServer) -> None:
    (entry,) = of_fleet(up, "/experiment/models/loras")
    path = f"/api/experiment/models/preview/loras/{entry['pathIndex']}/sub/tiny.webp"
    own = httpx.get(f"{bare.url}{path}")
    found = httpx.get(f"{up.url}{path}", headers=bearer(ANN))
    assert (found.status_code, found.content) == (own.status_code, own.content) != (404, b"")
    assert Image.open(io.BytesIO(found.content)).format == "WEBP"
    assert of_fleet(up, "/view_metadata/loras?filename=sub%2Ftiny.safetensors") == METADATA


def test_other_answers_are_those_of_the_node_without_its_machine(up: Up, bare: ComfyServer) -> None:
    own, found = got(bare.url, "/system_stats"), of_fleet(up, "/api/system_stats")
    changing = {"ram_free": 0, "argv": 0, "os": 0}
    assert {**found["system"], **changing} == {**own["system"], **changing}
    assert found["system"]["argv"] == []
    (device,) = found["devices"]
    assert set(device) == set(own["devices"][0])
    assert (device["name"], device["vram_total"]) == ("real: cpu", own["devices"][0]["vram_total"])
    replaced = httpx.get(f"{bare.url}/node_replacements")
    assert of_fleet(up, "/node_replacements") == (replaced.json() if replaced.status_code == 200 else {})
    features, plain = of_fleet(up, "/features"), got(bare.url, "/features")
    assert features["supports_preview_metadata"] == plain["supports_preview_metadata"]
    assert features["max_upload_size"] == plain["max_upload_size"]


def test_two_people_see_their_own_uploads(up: Up) -> None:
    for key, name in ((ANN, "ann.png"), (BOB, "bob.png")):
        data = io.BytesIO()
        Image.new("RGB", (8, 8)).save(data, "PNG")
        files = {"image": (name, data.getvalue(), "image/png")}
        assert httpx.post(f"{up.url}/upload/image", files=files, headers=bearer(key)).status_code == 200
    for key, name in ((ANN, "ann.png"), (BOB, "bob.png")):
        for path in ("/object_info", "/object_info/LoadImage"):
            assert of_fleet(up, path, key)["LoadImage"]["input"]["required"]["image"][0] == [name]


def test_memory_is_freed_by_operators(up: Up) -> None:
    def free(key: str) -> int:
        answer = httpx.post(f"{up.url}/api/free", json={"unload_models": True}, headers=bearer(key))
        return answer.status_code

    assert (free(ANN), free(OPS)) == (403, 200)


def test_two_versions_together(
    bare: ComfyServer, other: ComfyServer, tmp_path_factory: pytest.TempPathFactory
) -> None:
    fleet = started(tmp_path_factory.mktemp("both"), f"one={bare.url}", f"two={other.url}")
    try:
        told = {name: got(url, "/object_info") for name, url in (("one", bare.url), ("two", other.url))}
        every = set(told["one"]) | set(told["two"])
        until(lambda: set(of_fleet(fleet, "/object_info")) == every, "the classes of both are known")
        found = of_fleet(fleet, "/object_info")
        for mine, others in (("one", "two"), ("two", "one")):
            for name in told[mine].keys() - told[others].keys():
                assert found[name]["description"].endswith(
                    ("Only on " + mine + ".", "Not on " + others + ".")
                )
        newer = max(told, key=lambda name: len(told[name]))
        assert found["KSampler"].get("search_aliases") == told[newer]["KSampler"].get("search_aliases")
        assert [device["name"] for device in of_fleet(fleet, "/system_stats")["devices"]] == [
            "one: cpu",
            "two: cpu",
        ]
    finally:
        stop_fleet(fleet)
