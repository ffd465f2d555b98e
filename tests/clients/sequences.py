"""The calls that larger programs make of a ComfyUI, in their order and with their fields.

Facts from the programs' published sources; nothing of their code is here. Each function returns the picture
that the program would show. Between a person and these programs is a lot that doesn't matter to a server.
"""

import asyncio
import json
import struct
from typing import Any
from uuid import uuid4

import aiohttp
import httpx
import websockets

from tests.clients.caller import Caller, socket_url
from tests.clients.graphs import Graph, loading, on_websocket, saving

PATIENCE_S = 60.0
PNG = 2  # the second word of a binary frame with a PNG


async def open_webui(me: Caller, color: int) -> bytes:
    """Open WebUI: makes a picture, then edits that picture.

    It sends its key as Bearer, also when it is empty. It posts once its websocket is open, and reads history
    when the last ``executing`` of its prompt has come.
    """
    headers = {"Authorization": f"Bearer {me.key}"}
    timeout = aiohttp.ClientTimeout(total=PATIENCE_S)
    async with aiohttp.ClientSession(headers=headers, timeout=timeout, raise_for_status=True) as http:
        async with http.get(f"{me.url}/object_info") as answer:
            classes = await answer.json()
        assert {"SaveImage", "LoadImage"} <= set(classes)
        made = await _open_webui_job(http, me.url, saving(color))
        form = aiohttp.FormData()
        form.add_field("image", made, filename="my picture.png", content_type="image/png")
        form.add_field("type", "input")
        async with http.post(f"{me.url}/api/upload/image", data=form) as answer:
            uploaded = await answer.json()
        return await _open_webui_job(http, me.url, loading(uploaded["name"]))


async def _open_webui_job(http: aiohttp.ClientSession, url: str, graph: Graph) -> bytes:
    client = str(uuid4())
    async with http.ws_connect(f"{socket_url(url)}/ws?clientId={client}") as socket:
        async with http.post(f"{url}/prompt", json={"prompt": graph, "client_id": client}) as answer:
            prompt_id = (await answer.json())["prompt_id"]
        async for frame in socket:
            if frame.type is not aiohttp.WSMsgType.TEXT:
                continue
            told = json.loads(frame.data)
            if told["type"] == "executing":
                told = told["data"]
                if told["node"] is None and told["prompt_id"] == prompt_id:
                    break
    async with http.get(f"{url}/history/{prompt_id}") as answer:
        entry = (await answer.json())[prompt_id]
    found = [
        image
        for node, output in entry["outputs"].items()
        if graph[node]["class_type"] in ("SaveImage", "PreviewImage")
        for image in output.get("images", ())
    ]
    async with http.get(f"{url}/view", params=_named(found[0])) as answer:
        return await answer.read()


async def silly_tavern(me: Caller, color: int) -> bytes:
    """SillyTavern: posts without a client id and asks the whole history until its prompt is in it.

    It can put a key into the address only. The graph is sent as text.
    """
    async with httpx.AsyncClient(timeout=PATIENCE_S) as http:

        async def ask(path: str, **params: str) -> httpx.Response:
            answer = await http.get(f"{me.with_path}{path}", params=params or None)
            return answer.raise_for_status()

        await ask("/system_stats")
        classes = (await ask("/object_info")).json()
        assert "euler" in classes["KSampler"]["input"]["required"]["sampler_name"][0]
        assert isinstance(classes["CheckpointLoaderSimple"]["input"]["required"]["ckpt_name"][0], list)
        posted = await http.post(
            f"{me.with_path}/prompt",
            content=json.dumps({"prompt": saving(color)}),
            headers={"Content-Type": "text/plain;charset=UTF-8"},
        )
        prompt_id = posted.raise_for_status().json()["prompt_id"]
        async with asyncio.timeout(PATIENCE_S):
            while (entry := (await ask("/history")).json().get(prompt_id)) is None:
                await asyncio.sleep(0.1)
        assert entry["status"]["status_str"] == "success", entry["status"]
        images = [image for output in entry["outputs"].values() for image in output.get("images", ())]
        return (await ask("/view", **_named(images[0]))).content


async def plain_websocket(me: Caller, color: int) -> bytes:
    """Read a picture from the websocket that no file is made of, as ComfyUI's own example does."""
    client = str(uuid4())
    node = "save_image_websocket_node"
    async with httpx.AsyncClient(timeout=PATIENCE_S, base_url=me.with_path) as http:
        async with websockets.connect(f"{socket_url(me.with_path)}/ws?clientId={client}") as socket:
            body = {"prompt": on_websocket(color), "client_id": client}
            prompt_id = (await http.post("/prompt", json=body)).raise_for_status().json()["prompt_id"]
            pictures, at = [], None
            async with asyncio.timeout(PATIENCE_S):
                async for frame in socket:
                    if isinstance(frame, bytes):
                        if at == node:
                            pictures.append(frame[8:])
                        continue
                    told = json.loads(frame)
                    if told["type"] == "executing" and told["data"]["prompt_id"] == prompt_id:
                        at = told["data"]["node"]
                        if at is None:
                            break
        assert prompt_id in (await http.get(f"/history/{prompt_id}")).json()
    (picture,) = pictures
    return picture


class Krita:
    """Krita's AI Diffusion: one job at work, and the next one posted as soon as that has begun.

    It gives its prompts their ids. Whatever picture comes while a prompt is at work is that prompt's; a
    prompt that begins while another is at work takes its place. Its own nodes, which no ComfyUI has by
    itself, send pictures as ``SaveImageWebsocket`` does.
    """

    def __init__(self, me: Caller) -> None:
        self._client = str(uuid4())
        self._socket = f"{socket_url(me.url)}/ws?clientId={self._client}"
        headers = {**me.bearer, "ngrok-skip-browser-warning": "69420", "skip_zrok_interstitial": "69420"}
        self._headers = me.bearer
        self._http = httpx.AsyncClient(base_url=me.url, headers=headers, timeout=PATIENCE_S)
        self._began = asyncio.Event()
        self._waiting: str | None = None
        self._active: str | None = None
        self._pictures: list[bytes] = []
        self.finished: dict[str, bytes] = {}
        self.errors: list[str] = []

    async def draw(self, *colors: int) -> list[bytes]:
        """Return the pictures of several jobs."""
        async with self._http:
            await self._connect()
            async with websockets.connect(self._socket, additional_headers=self._headers) as socket:
                await self._optional("POST", "/api/etn/workflow/subscribe", {"client_id": self._client})
                posting = asyncio.create_task(self._post(colors))
                async with asyncio.timeout(PATIENCE_S):
                    async for frame in socket:
                        self._take(frame)
                        if len(self.finished) + len(self.errors) == len(colors):
                            break
                ids = await posting
        assert not self.errors, self.errors
        return [self.finished[job] for job in ids]

    async def _connect(self) -> None:
        stats = await self._http.get("/system_stats")
        assert "application/json" in stats.headers["Content-Type"]
        assert stats.json()["devices"][0].keys() >= {"type", "name", "vram_total"}
        async with websockets.connect(self._socket, additional_headers=self._headers):
            pass
        classes = (await self._http.get("/object_info")).raise_for_status().json()
        for name, field in (
            ("DualCLIPLoader", "clip_name1"),
            ("VAELoader", "vae_name"),
            ("LoraLoader", "lora_name"),
        ):
            assert field in classes[name]["input"]["required"]
        await self._optional("GET", "/api/etn/languages")
        await self._optional("GET", "/api/etn/model_info/checkpoints?offset=0&limit=8")

    async def _optional(self, method: str, path: str, body: Any = None) -> None:
        answer = await self._http.request(method, path, json=body)
        assert answer.status_code in (200, 404, 405), answer.text

    async def _post(self, colors: tuple[int, ...]) -> list[str]:
        ids = [str(uuid4()) for _ in colors]
        for job, color in zip(ids, colors, strict=True):
            self._waiting = job
            self._began.clear()
            body = {"prompt": on_websocket(color), "client_id": self._client, "prompt_id": job}
            answer = await self._http.post("/prompt", json=body)
            assert answer.raise_for_status().json()["prompt_id"] == job
            await self._began.wait()
        return ids

    def _take(self, frame: str | bytes) -> None:
        if isinstance(frame, bytes):
            kind, form = struct.unpack_from(">II", frame)
            if (kind, form) == (1, PNG):
                self._pictures.append(frame[8:])
            return
        told = json.loads(frame)
        data = told["data"]
        match told["type"]:
            case "execution_start" if data["prompt_id"] == self._waiting:
                if self._active is not None:
                    self.errors.append(f"{self._active} was never finished")
                self._active, self._waiting, self._pictures = self._waiting, None, []
                self._began.set()
            case "executing" if data["node"] is None and data["prompt_id"] == self._active:
                if self._pictures:
                    self.finished[data["prompt_id"]] = self._pictures[0]
                else:
                    self.errors.append(f"{self._active} made no picture")
                self._active = None
            case "execution_error" | "execution_interrupted" if data["prompt_id"] == self._active:
                self.errors.append(json.dumps(told))
                self._active = None


async def krita(me: Caller, color: int) -> bytes:
    """Krita's AI Diffusion with one job; on several nodes it is not made for more at a time."""
    (picture,) = await Krita(me).draw(color)
    return picture


SEQUENCES = {
    "Open WebUI (calls)": open_webui,
    "Krita AI Diffusion (calls)": krita,
    "SillyTavern (calls)": silly_tavern,
    "plain websocket, SaveImageWebsocket": plain_websocket,
}
"""By the name that tables show."""
SOCKET_ONLY = {"Krita AI Diffusion (calls)", "plain websocket, SaveImageWebsocket"}
"""Those of which no file is saved."""


def _named(image: dict[str, Any]) -> dict[str, str]:
    return {"filename": image["filename"], "subfolder": image["subfolder"], "type": image["type"]}
