"""Usage: use_pycomfy.py URL KEY JOB.

Its websocket uses the host and port of an address only: if the server has keys, that is a relay's address.
"""

import sys
from pathlib import Path

from pycomfy import ComfyAPI

URL, JOB = sys.argv[1], Path(sys.argv[3])
with ComfyAPI(URL) as api:
    (image,) = api.load_workflow(str(JOB / "graph.json")).execute()
image.save(JOB / "picture", format="PNG")
