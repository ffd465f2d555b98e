"""Two users on one real ComfyUI: neither reads the other's files, and ordinary graphs go on working."""

import io
import json
import re
import time
import urllib.request
from base64 import b64encode
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any
from uuid import uuid4

import httpx
import pytest
from PIL import Image

from comfy_fleet.domain.graphs.file_access import declared_inputs, uses
from tests.acceptance.up import Up, start_fleet, stop_fleet
from tests.acceptance.wire import AGENT, ANN, BOB, bearer, ends
from tests.comfyui_server import ComfyServer
from tests.key_files import write_keys
from tests.path_inputs import undecided

pytestmark = [pytest.mark.comfyui, pytest.mark.timeout(240)]

SECRET_COLOR = (200, 30, 90)
FOLDER_LOADERS = (
    "LoadImageSetFromFolderNode",
    "LoadImageDataSetFromFolder",
    "LoadImageTextDataSetFromFolder",
    "LoadVideoDataSetFromFolder",
    "LoadVideoTextDataSetFromFolder",
)


@pytest.fixture(scope="module")
def up(comfyui_server: ComfyServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    """A fleet of two users whose only node is a real ComfyUI."""
    folder = tmp_path_factory.mktemp("files")
    keys = folder / "keys"
    write_keys(keys, f"ann {ANN}\nbob {BOB}\n")
    keys.chmod(0o600)
    shared = comfyui_server.folder / "input" / "shared-set" / "deep"
    shared.mkdir(parents=True)
    (shared / "one.png").write_bytes(png((9, 8, 7)))
    env = {"FLEET_KEYS_FILE": str(keys), "FLEET_AGENT_TOKEN": AGENT, "FLEET_FETCH_ALLOW": "127.0.0.1"}
    fleet = start_fleet(folder / "data", "--node", f"real={comfyui_server.url}", env=env)
    yield fleet
    stop_fleet(fleet)


@pytest.fixture(scope="module")
def classes(comfyui_server: ComfyServer) -> dict[str, Any]:
    found: dict[str, Any] = httpx.get(f"{comfyui_server.url}/object_info", timeout=30).json()
    return found


@pytest.fixture(scope="module")
def victim(up: Up, comfyui_server: ComfyServer) -> dict[str, str]:
    """Ann uploads a picture and previews it; returns its names on the node's disk, by folder."""
    asset = upload(up, ANN, "ann.png", png(SECRET_COLOR))
    preview = {"1": loads(reference(asset)), "2": node("PreviewImage", images=["1", 0])}
    done(up, ANN, preview)
    staged = list((comfyui_server.folder / "input" / "fleet").rglob("*.png"))
    previews = list((comfyui_server.folder / "temp").rglob("ComfyUI_temp_*.png"))
    assert len(staged) == 1
    assert previews
    return {
        "staged": staged[0].relative_to(comfyui_server.folder / "input").as_posix(),
        "folder": f"fleet/{staged[0].parts[-3]}",
        "preview": previews[-1].name,
        "absolute": str(staged[0]),
    }


def node(class_type: str, **inputs: object) -> dict[str, Any]:
    return {"class_type": class_type, "inputs": inputs}


def loads(value: object) -> dict[str, Any]:
    return node("LoadImage", image=value)


def saves(source: str, slot: int = 0) -> dict[str, Any]:
    return node("SaveImage", images=[source, slot], filename_prefix="x")


def reference(asset: str) -> dict[str, Any]:
    return {"__type": "core/ASSET", "info": {"id": asset}}


def png(color: tuple[int, int, int]) -> bytes:
    data = io.BytesIO()
    Image.new("RGB", (16, 16), color).save(data, "PNG")
    return data.getvalue()


def upload(up: Up, key: str, name: str, content: bytes) -> str:
    answer = httpx.post(
        f"{up.url}/api/v2/assets",
        files={"file": (name, content)},
        data={"file_path": name},
        headers=bearer(key),
    )
    assert answer.status_code in (200, 201), answer.text
    return str(answer.json()["id"])


def send(up: Up, key: str, workflow: dict[str, Any]) -> httpx.Response:
    return httpx.post(f"{up.url}/api/v2/jobs", json={"workflow": workflow}, headers=bearer(key), timeout=30)


def done(up: Up, key: str, workflow: dict[str, Any]) -> dict[str, Any]:
    answer = send(up, key, workflow)
    assert answer.status_code == 201, answer.text
    job = ends(up, answer.json(), bearer(key))
    assert job["status"] == "succeeded", job["error"]
    return job


def outputs(up: Up, key: str, job: dict[str, Any]) -> list[bytes]:
    return [
        httpx.get(httpx.URL(up.url).join(output["url"]), headers=bearer(key), follow_redirects=True).content
        for output in job["outputs"]
    ]


def pixel(data: bytes) -> Any:
    return Image.open(io.BytesIO(data)).convert("RGB").getpixel((3, 3))


def readers(classes: dict[str, Any], value: object) -> Iterator[dict[str, Any]]:
    """Yield a graph for each class that reads what ``value`` names."""
    yield {"1": loads(value), "2": saves("1")}
    yield {"1": node("LoadImageOutput", image=value), "2": saves("1")}
    mask = node("LoadImageMask", image=value, channel="red")
    yield {"1": mask, "2": node("MaskToImage", mask=["1", 0]), "3": saves("2")}
    webcam = node("WebcamCapture", image=value, width=0, height=0, capture_on_queue=True)
    yield {"1": webcam, "2": saves("1")}
    latent = node("LoadLatent", latent=value)
    yield {"1": latent, "2": node("SaveLatent", samples=["1", 0], filename_prefix="x")}
    scene = {"image": value, "mask": value, "normal": value, "lineart": value, "recording": ""}
    for image in (scene, value):
        model = node("Load3D", model_file="none", image=image, width=16, height=16)
        yield {"1": model, "2": saves("1")}
    if "Painter" in classes:
        yield {"1": node("Painter", mask=value, width=64, height=64, bg_color="#000000"), "2": saves("1")}
    for loader in FOLDER_LOADERS:
        if loader in classes:
            yield {"1": node(loader, folder=value), "2": saves("1")}


def test_none_of_anns_files_is_read_by_bob(up: Up, victim: dict[str, str], classes: dict[str, Any]) -> None:
    preview = victim["preview"]
    names = [
        *(victim["staged"], f"./{victim['staged']}", victim["absolute"], f"{victim['staged']} [input]"),
        *(f"{preview} [temp]", f"{preview}[temp]", f"{preview}_[temp]", f"../temp/{preview}"),
        *(f"..\\temp\\{preview}", "x_00001_.png [output]", "../output/x_00001_.png"),
        *(
            "fleet",
            victim["folder"],
            victim["staged"].rpartition("/")[0],
            "..",
            "/",
            f"../input/{victim['folder']}",
        ),
    ]
    for name in names:
        for value in (name, {"__value__": name}, [name]):
            for graph in readers(classes, value):
                answer = send(up, BOB, graph)
                assert answer.status_code == 422, (graph, answer.text)
                reason = answer.json()["error"]["details"]["node_errors"]["1"][0]["reason"]
                assert reason in ("bad_path", "custom_validation_failed")
                assert reason == "bad_path" or name.endswith((" [temp]", " [output]"))


def test_nor_through_links(up: Up, victim: dict[str, str], classes: dict[str, Any]) -> None:
    for name in (victim["staged"], f"{victim['preview']} [temp]", "fleet"):
        # One that is no name of a file by itself: it is put together on the node.
        text = {
            "a": node("StringConcatenate", string_a=name[:3], string_b=name[3:], delimiter=""),
            "b": node("PreviewAny", source=["a", 0]),
        }
        sources: list[object] = [["a", 0], {"__value__": ["a", 0]}]
        if "ComfySwitchNode" in classes:
            text["c"] = node("ComfySwitchNode", switch=True, on_true=["a", 0], on_false=["a", 0])
            sources += [["c", 0], {"__value__": ["c", 0]}]
        for source in sources:
            for graph in readers(classes, source):
                answer = send(up, BOB, {**graph, **text})
                assert answer.status_code == 422, (graph, answer.text)


def test_loaders_of_folders_find_no_upload_even_if_they_are_told_ours(
    comfyui_server: ComfyServer, victim: dict[str, str], classes: dict[str, Any]
) -> None:
    """What a custom class might do: past the fleet, to the node itself."""
    for loader in FOLDER_LOADERS:
        if loader not in classes:
            continue
        prompt = {"1": node(loader, folder="fleet"), "2": saves("1")}
        if "Video" in loader:
            prompt["2"] = node("PreviewAny", source=["1", 0])
        answer = httpx.post(
            f"{comfyui_server.url}/prompt", json={"prompt": prompt, "prompt_id": str(uuid4())}
        )
        if answer.status_code != 200:
            continue
        entry: dict[str, Any] = {}
        deadline = time.monotonic() + 60
        while not entry:
            assert time.monotonic() < deadline
            id_ = answer.json()["prompt_id"]
            entry = httpx.get(f"{comfyui_server.url}/history/{id_}").json().get(id_, {})
            time.sleep(0.1)
        assert entry["status"]["status_str"] == "error", loader


def test_own_uploads_are_read_by_every_class(up: Up, classes: dict[str, Any]) -> None:
    mine = upload(up, BOB, "mine.png", png((1, 2, 3)))
    pictures = {"LoadImage", "LoadImageOutput", "LoadImageMask", "WebcamCapture", "Painter", "Load3D"}
    for value in (reference(mine), "mine.png", "mine.png [input]"):
        for graph in readers(classes, value):
            first = graph["1"]
            scene = first["inputs"].get("image")
            if first["class_type"] not in pictures:
                continue
            if first["class_type"] == "Load3D":
                if scene == value or "Painter" not in classes:  # 0.3.64 wants a model as well
                    continue
                scene["camera_info"] = {"type": "perspective"}
            expected = (1, 1, 1) if first["class_type"] == "LoadImageMask" else (1, 2, 3)
            found = outputs(up, BOB, done(up, BOB, graph))
            assert found
            assert {pixel(picture) for picture in found} == {expected}, graph


def test_pictures_are_read_by_url_and_from_the_request(up: Up, tmp_path: Path) -> None:
    picture = png((4, 5, 6))
    (tmp_path / "a.png").write_bytes(picture)
    serve = partial(SimpleHTTPRequestHandler, directory=str(tmp_path))
    with ThreadingHTTPServer(("127.0.0.1", 0), serve) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_address[1]}"
        for value in (f"{url}/a.png", f"data:image/png;base64,{b64encode(picture).decode()}"):
            job = done(up, BOB, {"1": loads(value), "2": saves("1")})
            assert pixel(outputs(up, BOB, job)[0]) == (4, 5, 6)
        answer = send(up, BOB, {"1": loads(f"{url}/none.png"), "2": saves("1")})
        job = ends(up, answer.json(), bearer(BOB))
        assert (job["status"], job["error"]["code"]) == ("failed", "input_not_fetched")
        assert job["attempts"] == []
        server.shutdown()


def test_own_latents_and_videos_are_read(up: Up) -> None:
    latent = {
        "1": node("EmptyLatentImage", width=64, height=64, batch_size=1),
        "2": node("SaveLatent", samples=["1", 0], filename_prefix="l"),
    }
    (data,) = outputs(up, BOB, done(up, BOB, latent))
    asset = upload(up, BOB, "mine.latent", data)
    for value in (reference(asset), "mine.latent"):
        again = {
            "1": node("LoadLatent", latent=value),
            "2": node("SaveLatent", samples=["1", 0], filename_prefix="l"),
        }
        assert outputs(up, BOB, done(up, BOB, again))
    video = {
        "1": node("EmptyImage", width=64, height=64, batch_size=3, color=255),
        "2": node("SaveWEBM", images=["1", 0], filename_prefix="v", codec="vp9", fps=24.0, crf=32.0),
    }
    (data,) = outputs(up, BOB, done(up, BOB, video))
    asset = upload(up, BOB, "mine.webm", data)
    for value in (reference(asset), "mine.webm"):
        frames = {
            "1": node("LoadVideo", file=value),
            "2": node("GetVideoComponents", video=["1", 0]),
            "3": saves("2"),
        }
        assert len(outputs(up, BOB, done(up, BOB, frames))) == 3


def test_what_the_operator_put_there_is_a_choice(up: Up, classes: dict[str, Any]) -> None:
    graph = {"1": loads("shared-set/deep/one.png"), "2": saves("1")}
    assert pixel(outputs(up, BOB, done(up, BOB, graph))[0]) == (9, 8, 7)
    for loader in FOLDER_LOADERS[:3]:
        if loader in classes:
            extra = {"resize_method": "None"} if loader == "LoadImageSetFromFolderNode" else {}
            graph = {"1": node(loader, folder="shared-set/deep", **extra), "2": saves("1")}
            assert pixel(outputs(up, BOB, done(up, BOB, graph))[0]) == (9, 8, 7)


def test_texts_that_look_like_paths_are_texts(up: Up) -> None:
    for text in ("/imagine a cat", "../.. and [output]", "C:\\ drive", "photo.png is [temp]", "fleet"):
        graph = {
            "1": node("StringConcatenate", string_a=text, string_b="", delimiter=""),
            "2": node("PreviewAny", source=["1", 0]),
        }
        assert outputs(up, BOB, done(up, BOB, graph)) == [text.encode()]


# -- what comes from ComfyUI's cache ---------------------------------------------------------------------


def cached(comfyui_server: ComfyServer, job: dict[str, Any]) -> set[str]:
    """Return the nodes that the last prompt took from the cache."""
    with urllib.request.urlopen(f"{comfyui_server.url}/history") as answer:
        history = json.load(answer)
    (entry,) = [one for one in history.values() if one["prompt"][3].get("fleet", {}).get("job") == job["id"]]
    return {
        node_id
        for name, data in entry["status"]["messages"]
        if name == "execution_cached"
        for node_id in data["nodes"]
    }


def test_no_job_answers_with_another_ones_graph(
    up: Up, comfyui_server: ComfyServer, classes: dict[str, Any]
) -> None:
    base = {
        "src": node("EmptyImage", width=32, height=32, batch_size=1, color=uuid4().int % 0xFFFFFF),
        "costly": node("ImageScaleBy", image=["src", 0], upscale_method="lanczos", scale_by=2.0),
        "preview": node("PreviewImage", images=["costly", 0]),
        "tomask": node("ImageToMask", image=["costly", 0], channel="red"),
        "mask": node("MaskPreview", mask=["tomask", 0]),
        "save": saves("costly"),
    }
    if "ImageCompositor" in classes:
        base |= {
            "layer": node("AddLayer", image=["costly", 0], **layer_inputs(classes)),
            "layers": node("ImageCompositor", layers=["layer", 0], compositor={}),
            "compare": node("ImageCompare", image_a=["costly", 0], image_b=["costly", 0], compare_view={}),
            "crop": node(
                "ImageCropV2", image=["src", 0], crop_region={"x": 0, "y": 0, "width": 8, "height": 8}
            ),
            "cropped": saves("crop"),
        }
    secret = {
        "s": node("StringConcatenate", string_a="SECRET-OF", string_b="ANN", delimiter="-"),
        "t": node("PreviewAny", source=["s", 0]),
    }
    first = done(up, ANN, {**base, **secret})
    assert any(b"SECRET-OF" in data for data in outputs(up, ANN, first))
    for _ in range(2):
        second = done(up, BOB, base)
        found = outputs(up, BOB, second)
        assert len(found) == len(first["outputs"]) - 1
        assert not [data for data in found if b"SECRET-OF" in data]
        told = cached(comfyui_server, second)
        assert {"src", "costly", "tomask"} <= told
        assert not told & {"preview", "mask", "save", "layers", "compare", "crop", "cropped"}


def layer_inputs(classes: dict[str, Any]) -> dict[str, Any]:
    """Return AddLayer's other required inputs at their defaults."""
    found = {}
    for name, (kind, *more) in classes["AddLayer"]["input"]["required"].items():
        extra = more[0] if more else {}
        if "default" in extra:
            found[name] = extra["default"]
        elif kind == "COMBO" and extra.get("options"):
            found[name] = extra["options"][0]
    return found


def test_savers_with_folders_of_their_own_write_below_the_run(
    up: Up, comfyui_server: ComfyServer, classes: dict[str, Any]
) -> None:
    if "SaveImageDataSetToFolder" not in classes:
        answer = send(up, BOB, {"1": node("SaveTrainingDataset", folder_name="x")})
        assert answer.status_code == 422
        return
    output = comfyui_server.folder / "output"
    for class_type in ("SaveImageDataSetToFolder", "SaveImageTextDataSetToFolder"):
        names = {"folder_name": "../ds", "filename_prefix": "a/b", "mode": "overwrite"}
        graph = {
            "1": node("EmptyImage", width=16, height=16, batch_size=1, color=5),
            "2": node(class_type, images=["1", 0], **names),
        }
        for _ in range(2):
            job = done(up, BOB, graph)
            (saved,) = (output / "fleet" / job["id"]).rglob("*.png")
            assert re.fullmatch(
                r"[0-9a-f-]{36}/ds/b_00000\.png", str(saved.relative_to(output / "fleet" / job["id"]))
            )
    assert not (output / "ds").exists()
    denied = send(up, BOB, {"1": node("SaveTrainingDataset", folder_name="x")})
    assert denied.status_code == 422
    assert "class_denied" in denied.text


def test_every_input_that_takes_a_path_is_decided_about(classes: dict[str, Any]) -> None:
    """What a newer ComfyUI brings is looked at by somebody, and written down, before it counts as safe."""
    custom = "custom_nodes."
    own = {name: body for name, body in classes.items() if not body["python_module"].startswith(custom)}
    assert len(own) > 300
    assert undecided(own) == {}


def test_every_list_of_the_nodes_own_files_is_known(comfyui_server: ComfyServer) -> None:
    """What a folder of the server feeds is found by putting something there."""
    mark = uuid4().hex
    extensions = ["png", "jpg", "latent", "glb", "obj", "txt", "pdf", "wav", "mp4", "webm", "json", "csv"]
    made: list[Path] = []
    for folder in ("input", "output", "temp", "input/3d", "input/" + mark):
        (comfyui_server.folder / folder).mkdir(exist_ok=True)
        made += [comfyui_server.folder / folder / f"{mark}.{extension}" for extension in extensions]
    for path in made:
        path.write_bytes(b"x")
    try:
        now = httpx.get(f"{comfyui_server.url}/object_info", timeout=30).json()
        fed = {
            (class_type, name)
            for class_type, body in now.items()
            for name, declared in declared_inputs(body["input"])
            if mark in json.dumps(declared)
        }
        assert len(fed) >= 8
        assert not [
            (class_type, name) for class_type, name in fed if name not in uses(class_type, now[class_type])
        ]
    finally:
        for path in made:
            path.unlink()
