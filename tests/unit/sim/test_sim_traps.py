"""What costs real users jobs, kept on purpose in the simulated node."""

import asyncio
import json
import struct
import uuid
from collections.abc import AsyncIterator
from io import BytesIO
from typing import Any

import httpx
import pytest
import websockets
from PIL import Image, ImageSequence
from PIL.PngImagePlugin import PngImageFile

from comfy_fleet.sim import NodeOptions, SimNode, SimTiming
from comfy_fleet.sim.versions import VERSIONS
from tests.native_client import NativeClient
from tests.unit.sim.graphs import ident, node, picture, sleeping, text_to_image

QUICK = SimTiming(scale=0)


@pytest.fixture(params=VERSIONS)
async def sim(request: pytest.FixtureRequest) -> AsyncIterator[SimNode]:
    options = NodeOptions(name="gpu-1", comfyui=request.param, timing=QUICK, history_limit=3)
    async with SimNode(options) as running:
        yield running


@pytest.fixture
async def client(sim: SimNode) -> AsyncIterator[NativeClient]:
    async with NativeClient(sim.url, "client") as connected:
        yield connected


async def history(client: NativeClient, prompt_id: str) -> Any:
    return (await client.http.get(f"/history/{prompt_id}")).json()


async def test_the_history_lacks_a_prompt_until_after_its_success(sim: SimNode, client: NativeClient) -> None:
    sim.faults.history_lag_s = 0.2
    await client.post(picture(), ident("p"))
    await client.until(lambda: "execution_success" in client.kinds())
    assert await history(client, ident("p")) == {}
    await client.until(lambda: client.finished(ident("p")))
    assert ident("p") in await history(client, ident("p"))


async def test_waiting_and_running_prompts_have_no_history_but_stand_in_the_queue(
    client: NativeClient,
) -> None:
    await client.post(sleeping(5), ident("running"))
    await client.post(picture(), ident("waiting"))
    await client.until(lambda: bool(client.of("progress")))
    queue = (await client.http.get("/queue")).json()
    assert [item[1] for item in queue["queue_running"]] == [ident("running")]
    assert [item[1] for item in queue["queue_pending"]] == [ident("waiting")]
    assert await history(client, ident("running")) == await history(client, ident("waiting")) == {}
    assert (await client.http.get("/prompt")).json() == {"exec_info": {"queue_remaining": 2}}


async def test_the_same_id_twice_runs_twice_and_shows_the_first_meanwhile(client: NativeClient) -> None:
    await client.run(picture(), ident("p"))
    await client.post(sleeping(5), ident("p"))
    await client.until(lambda: bool(client.of("progress")))
    assert list((await history(client, ident("p")))[ident("p")]["prompt"][2]) == ["1", "2"]
    await client.http.post("/interrupt", json={"prompt_id": ident("p")})
    await client.until(lambda: bool(client.of("execution_interrupted")))
    await client.until(lambda: len([d for d in client.of("executing") if d["node"] is None]) == 2)
    assert (await history(client, ident("p")))[ident("p")]["status"]["status_str"] == "error"


async def test_an_equal_graph_names_the_old_file_even_when_that_is_gone(
    sim: SimNode, client: NativeClient
) -> None:
    graph = picture()
    first = await client.run(graph, ident("first"))
    for path in sim.files.root.rglob("*.png"):
        path.unlink()
    second = await client.run(graph, ident("second"))
    assert second["outputs"] == first["outputs"]
    assert client.of("execution_cached")[-1]["nodes"] == ["1", "2"]
    image = second["outputs"]["2"]["images"][0]
    assert (await client.http.get("/view", params=image)).status_code == 404


async def test_a_prefix_of_its_own_makes_the_save_node_run(client: NativeClient) -> None:
    await client.run(picture(color=3, prefix="fleet/j/1/x"), ident("first"))
    entry = await client.run(picture(color=3, prefix="fleet/j/2/x"), ident("second"))
    assert client.of("execution_cached")[-1]["nodes"] == ["1"]
    assert entry["outputs"]["2"]["images"][0]["subfolder"] == "fleet/j/2"


async def test_an_unknown_input_takes_part_in_the_cache_key(client: NativeClient) -> None:
    graph = picture(prefix="same")
    await client.run(graph, ident("first"))
    graph["2"]["inputs"]["nonsense"] = 1
    await client.run(graph, ident("second"))
    assert client.of("execution_cached")[-1]["nodes"] == ["1"]


async def test_only_the_last_prompt_stays_in_the_cache(client: NativeClient) -> None:
    graph = picture(color=1)
    await client.run(graph, ident(1))
    await client.run(picture(color=2), ident(2))
    await client.run(graph, ident(3))
    assert client.of("execution_cached")[-1]["nodes"] == []


async def test_closing_the_first_of_two_sockets_silences_the_second(sim: SimNode) -> None:
    async with NativeClient(sim.url, "twice") as second:
        await second.socket.close()
    first = await websockets.connect(f"ws://{sim.host}:{sim.port}/ws?clientId=twice")
    async with NativeClient(sim.url, "twice") as second, NativeClient(sim.url, "other") as other:
        await first.close()
        while len(sim.engine.sockets) > 2:
            await asyncio.sleep(0.005)
        prompt_id = str((await second.post(picture())).json()["prompt_id"])
        await other.until(lambda: len(other.of("status")) >= 4)
        assert prompt_id in (await other.http.get("/history")).json()
        assert second.kinds() == ["status"]


async def test_a_reconnect_hears_what_runs_now(sim: SimNode) -> None:
    async with NativeClient(sim.url, "again") as client:
        await client.post(sleeping(5), ident("p"))
        await client.until(lambda: bool(client.of("progress")))
    while len(sim.engine.sockets):
        await asyncio.sleep(0.005)
    async with NativeClient(sim.url, "again") as client:
        await client.until(lambda: len(client.frames) >= 2)
        assert client.frames[1] == {"type": "executing", "data": {"node": "3"}}
        await client.until(lambda: bool(client.of("progress")))


async def test_frames_of_a_prompt_go_to_its_client_only(sim: SimNode, client: NativeClient) -> None:
    async with NativeClient(sim.url, "other") as other:
        await client.run(picture(), ident("p"))
        await other.until(lambda: len(other.of("status")) == 4)
        assert set(other.kinds()) == {"status"}


async def test_a_client_without_an_id_is_told_one(sim: SimNode) -> None:
    async with websockets.connect(f"ws://{sim.host}:{sim.port}/api/ws") as socket:
        assert len(json.loads(await socket.recv())["data"]["sid"]) == 32


async def test_the_history_is_capped(sim: SimNode, client: NativeClient) -> None:
    for index in range(6):
        await client.run(picture(), ident(index))
    kept = (await client.http.get("/history")).json()
    assert list(kept) == [ident(2), ident(3), ident(4), ident(5)]
    assert list((await client.http.get("/history?max_items=2")).json()) == [ident(4), ident(5)]
    assert list((await client.http.get("/history?max_items=1&offset=1")).json()) == [ident(3)]
    await client.http.post("/history", json={"delete": [ident(4)]})
    assert list((await client.http.get("/history")).json()) == [ident(2), ident(3), ident(5)]
    await client.http.post("/history", json={"clear": True})
    assert (await client.http.get("/history")).json() == {}


async def test_an_interrupt_with_an_id_hits_that_prompt_only(client: NativeClient) -> None:
    await client.post(sleeping(5), ident("mine"))
    await client.until(lambda: bool(client.of("progress")))
    await client.http.post("/interrupt", json={"prompt_id": "other"})
    assert [item[1] for item in (await client.http.get("/queue")).json()["queue_running"]] == [ident("mine")]
    await client.http.post("/interrupt")
    await client.until(lambda: client.finished(ident("mine")))
    assert client.of("execution_interrupted")[0]["node_id"] == "3"


async def test_a_waiting_prompt_can_be_removed_without_a_trace(client: NativeClient) -> None:
    await client.post(sleeping(5), ident("running"))
    for prompt_id in (ident("a"), ident("b")):
        await client.post(picture(), prompt_id)
    answer = await client.http.post("/queue", json={"delete": [ident("a"), "unknown"]})
    assert (answer.status_code, answer.content) == (200, b"")
    assert [item[1] for item in (await client.http.get("/queue")).json()["queue_pending"]] == [ident("b")]
    await client.http.post("/queue", json={"clear": True})
    assert (await client.http.get("/queue")).json()["queue_pending"] == []


async def test_a_prompt_may_jump_the_queue(client: NativeClient) -> None:
    await client.post(sleeping(5), ident("running"))
    await client.post(picture(), ident("b"))
    assert (await client.post(picture(), ident("front"), front=True)).json()["number"] == -2
    assert (await client.post(picture(), ident("last"), number=99)).json()["number"] == 99.0
    pending = (await client.http.get("/queue")).json()["queue_pending"]
    assert min(pending)[1] == ident("front")


async def test_memory_is_freed_only_after_the_prompt(sim: SimNode, client: NativeClient) -> None:
    await client.run(text_to_image(), ident("load"))
    loaded = set(sim.vram.models)
    busy = {"a": node("EmptyImage", width=64, height=64, batch_size=1, color=7)}
    busy |= {"b": node("TestSleep", value=["a", 0], seconds=5.0), "c": node("PreviewImage", images=["b", 0])}
    await client.post({**text_to_image(), **busy}, ident("busy"))
    await client.http.post("/free", json={"unload_models": True})
    await client.until(lambda: bool(client.of("progress")))
    assert (
        set(sim.vram.models)
        == loaded
        == {"z_image_turbo_bf16.safetensors", "qwen_3_4b.safetensors", "ae.safetensors"}
    )
    await client.http.post("/interrupt")
    await client.until(lambda: client.finished(ident("busy")))
    await client.run(picture(), ident("next"))
    assert sim.vram.models == {}


async def test_free_memory_forgets_the_cache_of_an_idle_node(client: NativeClient) -> None:
    graph = picture()
    await client.run(graph, ident("first"))
    await client.http.post("/free", json={"free_memory": True})
    await client.run(graph, ident("second"))
    assert client.of("execution_cached")[-1]["nodes"] == []


async def test_partner_keys_are_not_kept_in_the_history(client: NativeClient) -> None:
    entry = await client.run(picture(), ident("p"), extra_data={"api_key_comfy_org": "secret", "other": 1})
    kept = {key: value for key, value in entry["prompt"][3].items() if key != "create_time"}
    assert kept == {"client_id": "client", "other": 1}


async def test_both_forms_of_pictures_by_websocket(sim: SimNode) -> None:
    graph = {"1": picture()["1"], "2": node("SaveImageWebsocket", images=["1", 0])}
    async with NativeClient(sim.url, "old") as old:
        entry = await old.run(graph)
        plain = next(frame["binary"] for frame in old.frames if "binary" in frame)
    async with NativeClient(sim.url, "new", {"supports_preview_metadata": True}) as new:
        await new.run(graph)
        modern = next(frame["binary"] for frame in new.frames if "binary" in frame)
    assert entry["outputs"] == {}
    assert struct.unpack(">II", plain[:8]) == (1, 2)
    kind, length = struct.unpack(">II", modern[:8])
    assert kind == 4
    metadata = json.loads(modern[8 : 8 + length])
    assert (metadata["node_id"], metadata["image_type"]) == ("2", "image/png")
    for data in (plain[8:], modern[8 + length :]):
        assert Image.open(BytesIO(data)).size == (64, 64)


async def test_samplers_send_previews_when_asked_to() -> None:
    options = NodeOptions(timing=QUICK, previews=True)
    async with SimNode(options) as sim, NativeClient(sim.url, "c") as client:
        await client.run(text_to_image(steps=3))
        pictures = [frame["binary"] for frame in client.frames if "binary" in frame]
        assert [struct.unpack(">II", data[:8]) for data in pictures] == [(1, 1)] * 3
        assert Image.open(BytesIO(pictures[0][8:])).format == "JPEG"
        assert [data["value"] for data in client.of("progress")] == [1, 2, 3]


async def test_a_generated_picture_shows_its_parameters(client: NativeClient) -> None:
    shown = []
    for seed in (1, 2):
        entry = await client.run(
            text_to_image(seed=seed, width=320, height=192, batch=2),
            extra_data={"extra_pnginfo": {"workflow": {"nodes": [seed]}}},
        )
        images = entry["outputs"]["9"]["images"]
        assert [image["filename"] for image in images] == ["x_00001_.png", "x_00002_.png"]
        data = (await client.http.get("/view", params=images[0])).content
        picture_ = PngImageFile(BytesIO(data))
        assert picture_.size == (320, 192)
        assert json.loads(picture_.text["workflow"]) == {"nodes": [seed]}
        shown.append(picture_.tobytes())
    assert shown[0] != shown[1]


async def test_files_under_any_key(client: NativeClient) -> None:
    graph = {"1": node("SimSaveFiles", filename_prefix="v/x", key="gifs", suffix=".mp4", count=2, size=1000)}
    files = (await client.run(graph))["outputs"]["1"]["gifs"]
    assert files[0] == {"filename": "x_00001_.mp4", "subfolder": "v", "type": "output"}
    assert len((await client.http.get("/view", params=files[1])).content) == 1000


async def test_other_savers_write_real_files(client: NativeClient) -> None:
    graph = {
        "1": node("EmptyImage", width=32, height=32, batch_size=2, color=5),
        "2": node("ImageBatch", image1=["1", 0], image2=["3", 0]),
        "3": node("ImageInvert", image=["1", 0]),
        "4": node(
            "SaveAnimatedWEBP",
            images=["2", 0],
            filename_prefix="m",
            fps=4.0,
            lossless=True,
            quality=80,
            method="default",
        ),
        "5": node("EmptyLatentImage", width=64, height=64, batch_size=1),
        "6": node("SaveLatent", samples=["5", 0], filename_prefix="l"),
        "7": node("PreviewAny", source=7),
    }
    outputs = (await client.run(graph))["outputs"]
    assert outputs["7"] == {"text": ["7"]}
    assert outputs["4"]["animated"] == [True]
    moving = (await client.http.get("/view", params=outputs["4"]["images"][0])).content
    assert len(ImageSequence.all_frames(Image.open(BytesIO(moving)))) > 1
    latent = (await client.http.get("/view", params=outputs["6"]["latents"][0])).content
    (length,) = struct.unpack("<Q", latent[:8])
    assert json.loads(latent[8 : 8 + length])["latent_tensor"]["shape"] == [1, 4, 8, 8]
    await client.http.post("/upload/image", files={"image": ("l.latent", latent)})
    again = {
        "1": node("LoadLatent", latent="l.latent"),
        "2": node("SaveLatent", samples=["1", 0], filename_prefix="l"),
    }
    assert (await client.run(again))["status"]["completed"]


async def test_uploads_with_equal_names_are_kept_apart_unless_they_are_equal(client: NativeClient) -> None:
    async def upload(data: bytes, **fields: str) -> str:
        answer = await client.http.post("/upload/image", files={"image": ("a.png", data)}, data=fields)
        assert answer.json()["type"] == fields.get("type", "input")
        return str(answer.json()["name"])

    assert await upload(b"1") == "a.png"
    assert await upload(b"1") == "a.png"
    assert await upload(b"2") == "a (1).png"
    assert await upload(b"3", overwrite="true") == "a.png"
    assert await upload(b"4", type="temp") == "a.png"
    assert (await client.http.get("/view?filename=a.png&type=input")).content == b"3"
    listed = (await client.http.get("/object_info/LoadImage")).json()["LoadImage"]["input"]["required"][
        "image"
    ][0]
    assert listed == ["a (1).png", "a.png"]


async def test_a_mask_becomes_the_transparency_of_its_original(client: NativeClient) -> None:
    def encoded(picture_: Image.Image) -> bytes:
        buffer = BytesIO()
        picture_.save(buffer, "PNG")
        return buffer.getvalue()

    await client.http.post(
        "/upload/image", files={"image": ("o.png", encoded(Image.new("RGB", (8, 8), "red")))}
    )
    mask = encoded(Image.new("RGBA", (8, 8), (0, 0, 0, 99)))
    reference = json.dumps({"filename": "o.png", "type": "input", "subfolder": ""})
    answer = await client.http.post(
        "/upload/mask", files={"image": ("m.png", mask)}, data={"original_ref": reference}
    )
    data = (
        await client.http.get("/view", params={"filename": answer.json()["name"], "type": "input"})
    ).content
    assert Image.open(BytesIO(data)).getpixel((0, 0)) == (255, 0, 0, 99)


async def test_a_view_can_be_made_smaller(client: NativeClient) -> None:
    entry = await client.run(picture())
    image = entry["outputs"]["2"]["images"][0]
    answer = await client.http.get("/view", params={**image, "preview": "jpeg;80"})
    assert answer.headers["content-type"] == "image/jpeg"
    assert Image.open(BytesIO(answer.content)).format == "JPEG"


@pytest.mark.parametrize("origin", ["http://evil.example", "null-ish://x", "http://127.0.0.1:1"])
async def test_a_foreign_origin_is_refused(sim: SimNode, origin: str) -> None:
    async with httpx.AsyncClient(base_url=sim.url) as http:
        answer = await http.post("/prompt", json={"prompt": picture()}, headers={"Origin": origin})
        assert answer.status_code == 403
        assert (await http.get("/queue", headers={"Origin": sim.url})).status_code == 200
    with pytest.raises(websockets.InvalidStatus):
        await websockets.connect(f"ws://{sim.host}:{sim.port}/ws", origin=websockets.Origin(origin))


@pytest.mark.parametrize("body", [b"no json", b'{"prompt": [1]}', b'{"prompt": null}', b"\xff"])
async def test_input_that_makes_comfyui_stumble_makes_it_stumble(sim: SimNode, body: bytes) -> None:
    async with httpx.AsyncClient(base_url=sim.url) as http:
        answer = await http.post("/prompt", content=body)
        assert answer.status_code == 500
        assert answer.headers["content-type"].startswith("text/plain")
        assert (await http.get("/queue")).json() == {"queue_running": [], "queue_pending": []}


async def test_a_big_seed_and_a_long_body_pass(sim: SimNode, client: NativeClient) -> None:
    graph = text_to_image(prompt="x" * 200_000, seed=2**64 - 1, steps=1)
    entry = await client.run(graph, str(uuid.uuid4()))
    assert entry["prompt"][2]["7"]["inputs"]["seed"] == 2**64 - 1
