"""Small values for tests."""

import time
from typing import Any
from uuid import uuid4

import orjson
from blake3 import blake3

from comfy_fleet.domain.job import NewJob

GRAPH: dict[str, Any] = {
    "1": {"class_type": "EmptyImage", "inputs": {"width": 64, "height": 64, "batch_size": 1, "color": 255}},
    "2": {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": "test"}},
}


def new_job(graph: dict[str, Any] | None = None, **fields: Any) -> NewJob:
    """Return a job that could be submitted."""
    data = orjson.dumps(graph or GRAPH)
    defaults: dict[str, Any] = {
        "id": str(uuid4()),
        "owner": "local",
        "graph": data,
        "graph_hash": f"blake3:{blake3(data).hexdigest()}",
        "created_at": time.time(),
        "expires_in_s": 3600.0,
    }
    return NewJob(**{**defaults, **fields})
