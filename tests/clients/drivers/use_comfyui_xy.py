"""Usage: use_comfyui_xy.py URL KEY JOB."""

import json
import sys
from pathlib import Path

from comfyui_xy import ComfyUiClient

URL, KEY, JOB = sys.argv[1], sys.argv[2], Path(sys.argv[3])
with ComfyUiClient(f"{URL}/k/{KEY}" if KEY else URL, raise_on_error=True, execution_timeout=60) as client:
    assert client.get_object_info("SaveImage")
    answers = client.process_workflow(json.loads((JOB / "graph.json").read_text()))
    (file,) = [answer for answer in answers if answer.is_file]
    file.save(JOB / "picture")
    if KEY:  # without keys it would interrupt whoever else runs there
        client.interrupt()
