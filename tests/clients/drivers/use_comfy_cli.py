"""Run a workflow with ``comfy run``. Usage: use_comfy_cli.py URL KEY JOB WORKFLOW.

It can show no key: if the server has keys, the address is that of a relay (docs/howto/comfyui-clients.md).
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import urlopen

URL, JOB, WORKFLOW = urlsplit(sys.argv[1]), Path(sys.argv[3]), sys.argv[4]
comfy = Path(sys.executable).with_name("comfy")
environment = {**os.environ, "HOME": str(JOB), "XDG_CONFIG_HOME": str(JOB), "DO_NOT_TRACK": "1"}
options = ["--workflow", str(JOB / WORKFLOW), "--wait", "--timeout", "60"]
address = ["--host", str(URL.hostname), "--port", str(URL.port)]
done = subprocess.run(
    [str(comfy), "--skip-prompt", "--json", "run", *options, *address],
    env=environment,
    stdin=subprocess.DEVNULL,
    capture_output=True,
    text=True,
    check=False,
)
assert done.returncode == 0, done.stdout + done.stderr
told = json.loads(done.stdout.strip().splitlines()[-1])
(url,) = told["data"]["outputs"]
with urlopen(url) as answer:
    (JOB / "picture").write_bytes(answer.read())
