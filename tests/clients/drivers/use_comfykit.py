"""Usage: use_comfykit.py URL KEY JOB."""

import asyncio
import json
import sys
from pathlib import Path
from urllib.request import urlopen

from comfykit import ComfyKit

URL, KEY, JOB = sys.argv[1], sys.argv[2], Path(sys.argv[3])
address = f"{URL}/k/{KEY}" if KEY else URL


async def run(how: str, workflow: str, **values: str) -> str:
    """Return the address of a workflow's picture; there are two ways to follow it."""
    kit = ComfyKit(comfyui_url=address, executor_type=how)  # its close() fails
    done = await kit.execute(str(JOB / workflow), values)
    assert done.status == "completed", done
    (url,) = done.images
    return str(url)


def read(url: str) -> bytes:
    with urlopen(url) as answer:
        return bytes(answer.read())


(JOB / "made.png").write_bytes(read(asyncio.run(run("websocket", "graph.json"))))
loading = json.loads((JOB / "loading.json").read_text())
loading["1"]["_meta"]["title"] = "Load Image, $image.image"
(JOB / "upload.json").write_text(json.dumps(loading))
(JOB / "picture").write_bytes(read(asyncio.run(run("http", "upload.json", image=str(JOB / "made.png")))))
