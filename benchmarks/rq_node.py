"""What one would write with stock RQ: a worker per node, whose job posts a prompt and polls for its end.

``python -m benchmarks.rq_node REDIS_URL`` with the node's URL in ``BENCH_NODE`` is such a worker.
It is ``SimpleWorker``: RQ's default worker forks for every job and would be slower.
"""

import os
import sys
import time
from typing import Any
from uuid import uuid4

import httpx
import rq
from redis import Redis

QUEUE = "bench"
POLL_S = 0.1


def picture(graph: dict[str, Any]) -> int:
    """Run a graph on this worker's node and return the picture's size in bytes."""
    node = os.environ["BENCH_NODE"]
    run = str(uuid4())
    with httpx.Client(base_url=node, trust_env=False, timeout=30) as http:
        body = {"prompt": graph, "client_id": run, "prompt_id": run}
        http.post("/prompt", json=body).raise_for_status()
        while run not in (history := http.get(f"/history/{run}").json()):
            time.sleep(POLL_S)
        outputs = history[run]["outputs"]
        file = next(file for output in outputs.values() for file in output["images"])
        return len(http.get("/view", params=file).raise_for_status().content)


def main() -> None:
    """Work until SIGTERM."""
    with Redis.from_url(sys.argv[1]) as connection:
        rq.SimpleWorker([rq.Queue(QUEUE, connection=connection)], connection=connection).work(
            logging_level="WARNING"
        )


if __name__ == "__main__":
    main()
