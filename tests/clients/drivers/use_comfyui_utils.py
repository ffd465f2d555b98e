"""Usage: use_comfyui_utils.py URL KEY JOB."""

import asyncio
import io
import json
import sys
from pathlib import Path
from typing import Any

from comfyui_utils import comfy

URL, KEY, JOB = sys.argv[1], sys.argv[2], Path(sys.argv[3])
api = comfy.ComfyAPI(URL.removeprefix("http://") + (f"/k/{KEY}" if KEY else ""))


async def keep(file: io.BytesIO) -> None:
    (JOB / "picture").write_bytes(file.read())


class Callbacks(comfy.Callbacks):  # type: ignore[misc]
    async def queue_position(self, position: str) -> None:
        assert int(position) >= 0

    async def in_progress(self, node_id: int, progress: int, total: int) -> None:
        assert progress <= total

    async def completed(self, outputs: dict[str, Any], cached: bool) -> None:
        (image,) = outputs["images"]
        await api.fetch(image, keep)


asyncio.run(api.submit(json.loads((JOB / "graph.json").read_text()), Callbacks()))
