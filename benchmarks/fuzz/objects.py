"""Real things of a fleet that is asked: their ids, and bodies that it takes."""

import base64
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx

GRAPH: Mapping[str, Any] = {
    "1": {"class_type": "EmptyImage", "inputs": {"width": 8, "height": 8, "batch_size": 1, "color": 255}},
    "2": {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": "x"}},
}
_UI = {
    "nodes": [
        {"id": 1, "type": "EmptyImage", "widgets_values": [8, 8, 1, 255]},
        {"id": 2, "type": "SaveImage", "widgets_values": ["x"]},
    ],
    "links": [],
}
_WEBP = base64.b64encode(b"RIFF\x04\x00\x00\x00WEBP").decode()
STORED = "stored"
_HOOK = "http://127.0.0.1:9/hook"
_LABEL = "steady"
_WITHIN_S = 20.0
_OVER = ("succeeded", "failed", "canceled", "expired")
_TOGETHER = (
    ("workflow", "version", "label", "seal", "draft"),
    ("tenant", "empty_tenant", "user", "key"),
    ("asset_id", "hash", "asset"),
    ("job_id", "done", "job"),
    *(("task_id",), ("node",), ("pool",), ("token",), ("host",), ("message_id",)),
)
"""Kinds that go together."""


@dataclass
class Objects:
    """Makes one thing of each kind when an id is needed, and again once it is gone.

    Attributes:
        url: The fleet, for operators.
        key: Of whoever asks: jobs and assets are theirs.
        operator: Makes the rest.
        agent: The agents' token.
        node: URL of a ComfyUI that a test may add and remove.
    """

    url: str
    key: str
    operator: str
    agent: str
    node: str
    chance: random.Random = field(default_factory=lambda: random.Random(7))
    _ids: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        own = {"Authorization": f"Bearer {self.key}"}
        self._own = httpx.Client(base_url=self.url, timeout=60, trust_env=False, headers=own)
        ops = {"Authorization": f"Bearer {self.operator}"}
        self._ops = httpx.Client(base_url=self.url, timeout=60, trust_env=False, headers=ops)

    def get(self, kind: str) -> Any:
        """Return the id of a thing of a kind, as the documents call it in paths."""
        if kind not in self._ids:
            self._ids[kind] = getattr(self, f"_{kind}")()
        found = self._ids[kind]
        return self.chance.choice(found) if isinstance(found, list) else found

    def forget(self, path: str) -> None:
        """Make the things that a path may have changed anew when they are needed again."""
        for kinds in _TOGETHER:
            if any(f"{{{kind}}}" in path or f"/{kind}s" in path for kind in kinds):
                for kind in kinds:
                    self._ids.pop(kind, None)

    def _job_id(self) -> list[str]:
        """Jobs that are done, canceled, waiting, or soon expired."""
        done = self._job()
        until = time.monotonic() + _WITHIN_S
        while time.monotonic() < until:
            if self._own.get(f"/api/v2/jobs/{done}").json().get("status") in _OVER:
                break
            time.sleep(0.05)
        self.get("node")
        canceled = self._job(pool="spares")
        self._own.post(f"/api/v2/jobs/{canceled}/cancel")
        waiting = [self._job(pool="spares"), self._job(pool="spares", ttl_s=1)]
        self._ids["done"] = done
        return [done, done, canceled, *waiting]

    def _done(self) -> str:
        self.get("job_id")
        return str(self._ids["done"])

    def _job(self, **more: Any) -> str:
        answer = self._own.post("/api/v2/jobs", json={"workflow": GRAPH, **more})
        return str(answer.json().get("id", answer.text[:200]))

    def _task_id(self) -> str:
        return str(self._job())

    def _asset_id(self) -> str:
        sent = {"file": ("a.png", b"\x89PNG\r\n\x1a\n", "image/png")}
        return str(self._own.post("/api/v2/assets", files=sent).json().get("id", "x"))

    def _hash(self) -> str:
        return str(self._own.get(f"/api/v2/assets/{self.get('asset_id')}").json().get("hash", "x"))

    def _workflow(self) -> str:
        """With two versions, a thumbnail, a label and a draft."""
        path = f"/api/v1/workflows/{STORED}"
        other = {**GRAPH, "1": {**GRAPH["1"], "inputs": {**GRAPH["1"]["inputs"], "color": 3}}}
        by = self._own if self._own.get("/api/v1/me").json().get("roles") != ["submit"] else self._ops
        version = "x"
        for graph in (other, GRAPH):
            body = {"graph": graph, "ui": _UI, "thumbnail": _WEBP, "force": True}
            version = by.put(path, json=body).json().get("version", "x")
        self._ids["version"] = version
        by.put(f"{path}/labels/{_LABEL}", json={"version": version})
        by.put(f"{path}/draft", json={"graph": other, "ui": _UI})
        return STORED

    def _version(self) -> str:
        self._ids["workflow"] = self._workflow()
        return str(self._ids["version"])

    def _label(self) -> str:
        self.get("workflow")
        return _LABEL

    def _seal(self) -> str:
        """The seal of a draft whose test has run."""
        self.get("workflow")
        until = time.monotonic() + _WITHIN_S
        while True:
            found = self._own.post(f"/api/v1/workflows/{STORED}/check", json={}).json()
            if found.get("ready") or "draft" not in found or time.monotonic() > until:
                return str(found.get("draft", "x"))
            time.sleep(0.1)

    def _tenant(self) -> str:
        self._ops.post("/api/v1/tenants", json={"name": "studio"})
        return "studio"

    def _empty_tenant(self) -> str:
        self._ops.post("/api/v1/tenants", json={"name": "empty"})
        return "empty"

    def _user(self) -> str:
        self._ops.post("/api/v1/users", json={"name": "ada", "tenant": self.get("tenant")})
        return "ada"

    def _key(self) -> str:
        made = self._ops.post("/api/v1/keys", json={"user": self.get("user")}).json()
        return str(made.get("id", "x"))

    def _token(self) -> str:
        return str(self._ops.post("/api/v1/agent-tokens", json={"host": "h2"}).json().get("id", "x"))

    def _host(self) -> str:
        headers = {"Authorization": f"Bearer {self.agent}"}
        self._ops.post("/api/v1/agents/h1/heartbeat", json={"instance": "i1"}, headers=headers)
        return "h1"

    def _node(self) -> str:
        """One beside that which does the work, so that it may be drained and removed."""
        self._ops.post("/api/v1/nodes", json={"name": "spare", "url": self.node, "pool": "spares"})
        self._ops.post("/api/v1/nodes/spare/drain", json={})
        return "spare"

    def _pool(self) -> list[str]:
        self._ops.put("/api/v1/pools/spares", json={"free_idle_s": 600})
        return ["default", "spares"]

    def _message_id(self) -> str:
        self._job(webhook_url=_HOOK)
        until = time.monotonic() + _WITHIN_S
        while time.monotonic() < until:
            if found := self._own.get("/api/v1/webhooks").json().get("webhooks"):
                return str(found[0]["id"])
            time.sleep(0.05)
        return "x"

    def body(self, label: str) -> dict[str, Any] | None:
        """Return what an operation needs in its body: what no schema can say, such as graphs and names."""
        of = self.chance.randrange(1 << 40)
        graph = {"graph": dict(GRAPH)}
        made: Mapping[str, Callable[[], dict[str, Any]]] = {
            "POST /api/v2/jobs": lambda: {"workflow": dict(GRAPH)},
            "POST /api/v2/assets/from-hash": lambda: {"hash": self.get("hash")},
            "PUT /api/v1/workflows/{workflow}": lambda: {**graph, "force": True},
            "PUT /api/v1/workflows/{workflow}/draft": lambda: graph,
            "POST /api/v1/drafts": lambda: {**graph, "ui": _UI, "name": f"w {of}"},
            "POST /api/v1/workflows/{workflow}/publish": lambda: {"draft": self.get("seal")},
            "POST /api/v1/workflows/{workflow}/rollback": lambda: {"version": self.get("version")},
            "PUT /api/v1/workflows/{workflow}/labels/{label}": lambda: {"version": self.get("version")},
            "POST /api/v1/tenants": lambda: {"name": f"t{of}"},
            "POST /api/v1/users": lambda: {"name": f"u{of}", "tenant": self.get("tenant")},
            "POST /api/v1/keys": lambda: {"user": self.get("user")},
            "POST /api/v1/nodes": lambda: {"name": f"n{of}", "url": f"{self.node}/{of}", "pool": "made"},
            "POST /api/v1/nodes-warm": lambda: {"workflows": [self.get("workflow")], "wait_s": 0},
            "POST /api/v1/agent-tokens": lambda: {"host": f"h{of}"},
            "POST /api/v1/webhooks/test": lambda: {"url": _HOOK},
            "POST /api/v1/generate": lambda: {"prompt": "x", "size": "64x64"},
            "POST /api/v1/workflows/{workflow}/jobs": lambda: {"params": {}},
            "POST /api/v1/workflows/newbie_anime/jobs": lambda: {
                "params": {"prompt": "<general_tags>x</general_tags>"}
            },
            "POST /api/v1/workflows/qwen_image_edit_face/jobs": lambda: {
                "params": {"image": self.get("asset_id"), "prompt": "x"}
            },
            "POST /api/v1/jobs/{job_id}/retry": lambda: {"new_seed": False},
            "PATCH /api/v1/workflows/{workflow}/manifest": lambda: {"parameters": {}},
            "POST /api/submit": lambda: {"prompt": "x", "size": "64x64"},
        }
        return made[label]() if label in made else None

    def meant(self, name: str) -> Any:
        """Return a value for a field with rules that its schema can't say; None: it has none."""
        return {
            "webhook_url": _HOOK,
            "webhook_events": ["job.succeeded"],
            "agent": "127.0.0.1:9",
            "finish_by": f"{datetime.now(UTC) + timedelta(hours=1):%Y-%m-%dT%H:%M:%SZ}",
            "pool": "default",
            "prefer_pool": "default",
            "spill_to": [],
            "zone": "",
            "labels": {},
            "tags": ["a"],
            "metadata": {"a": "b"},
            "file_path": "a.png",
            "extra_data": {},
            "status": "queued",
            "limits": {},
            "deny_classes": "",
            "allow_classes": "",
        }.get(name)

    def query(self, label: str) -> dict[str, Any]:
        """Return what an operation needs in its query."""
        made: Mapping[str, Callable[[], dict[str, Any]]] = {
            "GET /api/v1/result": lambda: {"task_id": self.get("task_id")},
            "GET /api/status": lambda: {"task_id": self.get("task_id")},
            "GET /api/v1/job-ids": lambda: {"prefix": str(self.get("job_id"))[:4]},
            "GET /api/v1/keys": lambda: {"user": self.get("user")},
            "GET /api/v1/workflows/{workflow}/check": lambda: {"node": "node-1"},
            "GET /api/v1/workflows/{workflow}/diff": lambda: {"b": self.get("version")},
            "GET /api/v1/nodes-diff": lambda: {"names": "node-1"},
        }
        return made[label]() if label in made else {}
