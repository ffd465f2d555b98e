"""Usage: use_comfy_toolkit.py URL KEY JOB."""

import json
import sys
from pathlib import Path

from comfy_toolkit import ComfyClient

URL, KEY, JOB = sys.argv[1], sys.argv[2], Path(sys.argv[3])
client = ComfyClient(f"{URL}/k/{KEY}" if KEY else URL)
assert client.is_online() and client.vram_stats()["vram_total"] > 0
prompt_id = client.submit(json.loads((JOB / "graph.json").read_text()))
(image,) = client.wait_for_images(prompt_id, poll_interval=0.1, max_wait=60)
(JOB / "picture").write_bytes(client.download(image))
