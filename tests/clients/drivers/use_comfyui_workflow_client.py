"""Usage: use_comfyui_workflow_client.py URL KEY JOB."""

import asyncio
import sys
from pathlib import Path

from comfyuiclient import ComfyUIClient, ComfyUIClientAsync

URL, KEY, JOB = sys.argv[1], sys.argv[2], Path(sys.argv[3])
server = URL.removeprefix("http://") + (f"/k/{KEY}" if KEY else "")


async def follow() -> None:
    """Make a picture, and upload it and load it with the other one of its two clients."""
    maker = ComfyUIClientAsync(server, str(JOB / "graph.json"))
    await maker.connect()
    made = (await maker.generate(["Save Image"]))["Save Image"]
    await maker.close()
    loader = ComfyUIClient(server, str(JOB / "loading.json"))
    loader.connect()
    loader.set_data("Load Image", image=made)
    loader.generate(["Save Image"])["Save Image"].save(JOB / "picture", format="PNG")
    loader.close()


asyncio.run(follow())
