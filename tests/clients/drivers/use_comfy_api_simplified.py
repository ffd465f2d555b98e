"""Usage: use_comfy_api_simplified.py URL KEY JOB."""

import json
import sys
from pathlib import Path

from comfy_api_simplified import ComfyApiWrapper, ComfyWorkflowWrapper

URL, KEY, JOB = sys.argv[1], sys.argv[2], Path(sys.argv[3])
api = ComfyApiWrapper(URL, user="me", password=KEY) if KEY else ComfyApiWrapper(URL)
assert "devices" in api.get_system_stats()
assert isinstance(api.get_embeddings(), list)
assert api.get_object_info("SaveImage")["SaveImage"]["output_node"] is True

# A picture, which is uploaded and saved again. It opens its websocket after it has posted, so it may miss
# pictures that come there only, on every server.
workflow = ComfyWorkflowWrapper(str(JOB / "graph.json"))
(first,) = api.queue_and_wait_images(workflow, "Save Image").values()
copy = JOB / "copy.png"
copy.write_bytes(first)
uploaded = api.upload_image(copy)
loading = json.loads((JOB / "loading.json").read_text())
edit = ComfyWorkflowWrapper(loading)
edit.set_node_param("Load Image", "image", f"{uploaded['subfolder']}/{uploaded['name']}")
(second,) = api.queue_and_wait_images(edit, "Save Image").values()
assert isinstance(api.get_queue()["queue_pending"], list)
if KEY:  # without keys it would interrupt whoever else runs there
    api.interrupt()
(JOB / "picture").write_bytes(second)
