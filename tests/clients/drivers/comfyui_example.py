"""Run one of ComfyUI's script examples; nothing but its graph and its server's address is changed.

Usage: comfyui_example.py URL KEY JOB EXAMPLE
"""

import json
import re
import sys
import time
from pathlib import Path
from urllib.parse import urlencode
from urllib.request import urlopen

URL, KEY, JOB, EXAMPLE = sys.argv[1], sys.argv[2], Path(sys.argv[3]), Path(sys.argv[4])
server = URL.removeprefix("http://") + (f"/k/{KEY}" if KEY else "")
graph = (JOB / ("websocket.json" if "ws_images" in EXAMPLE.name else "graph.json")).read_text()
source = EXAMPLE.read_text()
source = re.sub(
    r'(?s)^prompt_text = """.*?"""', lambda _: f"prompt_text = {graph!r}", source, flags=re.MULTILINE
)
source = re.sub(r'(?m)^prompt\["\d+"\]\["inputs"\].*$', "", source)
source = source.replace("127.0.0.1:8188", server)
names: dict[str, object] = {"__name__": "__main__"}
exec(compile(source, EXAMPLE.name, "exec"), names)


def ask(path: str) -> bytes:
    with urlopen(f"http://{server}{path}") as answer:
        return bytes(answer.read())


images = names.get("images")
if isinstance(images, dict):
    picture = next(picture for pictures in images.values() for picture in pictures)
else:  # the basic one posts and leaves
    sent = json.loads(graph)
    deadline = time.monotonic() + 60
    while True:
        history = json.loads(ask("/history"))
        found = [entry for entry in history.values() if entry["prompt"][2] == sent and entry["outputs"]]
        if found:
            break
        assert time.monotonic() < deadline, "the prompt is not in the history"
        time.sleep(0.1)
    (image,) = found[-1]["outputs"]["9"]["images"]
    picture = ask(f"/view?{urlencode(image)}")
(JOB / "picture").write_bytes(picture)
