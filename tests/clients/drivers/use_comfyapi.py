"""Usage: use_comfyapi.py URL KEY JOB.

It uses the host and port of an address only: if the server has keys, the address is that of a relay.
"""

import sys
from pathlib import Path

from comfyapi import ComfyAPIManager

URL, JOB = sys.argv[1], Path(sys.argv[3])
api = ComfyAPIManager()
api.set_base_url(URL)
api.load_workflow(str(JOB / "graph.json"))
prompt_id = api.submit_workflow()
_, url = api.wait_for_finish(prompt_id, poll_interval=0.1, max_wait_time=60)
Path(api.download_output(url, save_path=str(JOB), filename="saved.png")).rename(JOB / "picture")
