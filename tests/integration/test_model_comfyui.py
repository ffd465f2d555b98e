"""A real ComfyUI under an agent: model files that are fetched, or copied by hand, are offered at once."""

import asyncio
import hashlib
import json
import os
import struct
from pathlib import Path

import httpx
import pytest
from redis.asyncio import Redis

from comfy_fleet.adapters.comfyui.checkout import Checkout
from comfy_fleet.agent.supervisor import Supervision
from tests.comfyui_server import interpreter
from tests.integration.agent_kit import host_of
from tests.integration.haproxy_kit import eventually
from tests.web_site import page, site

pytestmark = [pytest.mark.comfyui, pytest.mark.timeout(900)]

NODE = "h1-cpu0"


def tensors(size: int) -> bytes:
    """A file as small as one can be that is read as a .safetensors."""
    head = json.dumps({"x": {"dtype": "U8", "shape": [size], "data_offsets": [0, size]}}).encode()
    return struct.pack("<Q", len(head)) + head + b"x" * size


async def test_new_files_are_offered_by_comfyui_and_known_to_the_fleet(
    redis: Redis, redis_port: int, tmp_path: Path, comfyui_home: Path
) -> None:
    base, body = tmp_path / "base", tensors(5000)
    for folder in ("loras", "checkpoints"):
        (base / "models" / folder).mkdir(parents=True)
    (base / "custom_nodes").mkdir()
    python = os.environ.get("COMFYUI_PYTHON") or interpreter(comfyui_home)
    checkout = Checkout.find(comfyui_home, python=python, args=("--base-directory", str(base)))
    (tmp_path / "fleet").mkdir()
    async with (
        site() as served,
        httpx.AsyncClient(timeout=60) as http,
        host_of(
            redis_port,
            tmp_path / "fleet",
            supervision=Supervision(checkout=checkout, gpus="cpu"),
            haproxy=True,
            ask_nodes=True,
            model_allow="127.0.0.1",
            model_free_bytes=0,
            agent_metrics_port=None,
        ) as host,
    ):
        served.pages["/kids.safetensors"] = page(body)
        await host.is_up(NODE, within_s=400)
        url = (await host.state(NODE)).node.url
        assert (await http.get(f"{url}/models/loras")).json() == []  # it remembers that from now on

        async def offers(loader: str, name: str, file: str) -> None:
            async def there() -> bool:
                info = (await http.get(f"{url}/object_info/{loader}")).json()[loader]["input"]["required"]
                kind, *more = info[name]
                return file in (more[0]["options"] if kind == "COMBO" else kind)

            await eventually(f"{loader} offers {file}", there, within_s=60)

        async def known(folder: str, file: str) -> None:
            async def there() -> bool:
                answer = await host.api.client.get("/api/v1/models", params={"folder": folder})
                return [one["name"] for one in answer.json()["files"]] == [file]

            await eventually(f"the fleet knows {folder}/{file}", there, within_s=60)

        order = {"url": served.url("/kids.safetensors"), "folder": "loras"}
        order["sha256"] = hashlib.sha256(body).hexdigest()
        began = asyncio.get_running_loop().time()
        fetch = (await host.api.client.post("/api/v1/model-fetches", json=order)).json()
        await offers("LoraLoader", "lora_name", "kids.safetensors")
        await known("loras", "kids.safetensors")
        print(f"fetched, offered and known after {asyncio.get_running_loop().time() - began:.1f} s")  # noqa: T201
        assert (await http.get(f"{url}/models/loras")).json() == ["kids.safetensors"]
        shown = (await host.api.client.get(f"/api/v1/model-fetches/{fetch['id']}")).json()
        assert shown["state"] == "done", shown
        began = asyncio.get_running_loop().time()
        (base / "models" / "checkpoints" / "own.safetensors").write_bytes(body)
        await offers("CheckpointLoaderSimple", "ckpt_name", "own.safetensors")
        await known("checkpoints", "own.safetensors")
        print(f"copied, offered and known after {asyncio.get_running_loop().time() - began:.1f} s")  # noqa: T201
