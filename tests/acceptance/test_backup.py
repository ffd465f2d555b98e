"""The commands of docs/howto/backup.md on a fleet at work: what they copy comes back on an empty machine."""

import gzip
import json
import os
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from pathlib import Path
from typing import Any

import httpx
import pytest
import redis as sync_redis
from PIL import Image
from standardwebhooks.webhooks import Webhook

from comfy_fleet.adapters.system.redis_program import program
from tests.acceptance.test_pages import blocks
from tests.children import mortal
from tests.conftest import free_port
from tests.factories import picture

DRAWN: dict[str, Any] = json.loads(
    gzip.decompress((Path(__file__).parents[1] / "data" / "editor_graphs.json.gz").read_bytes())
)["plain 0.3.64"]
START = "fleet up -d"
_BYTES = BytesIO()
Image.new("RGB", (32, 32), "red").save(_BYTES, "PNG")
PNG = _BYTES.getvalue()


def block(having: str) -> str:
    """Return the page's one block of shell lines with a text in it."""
    (found,) = (text for language, text in blocks("backup.md") if language == "sh" and having in text)
    return found


def until(condition: Callable[[], Any], what: str, timeout_s: float = 90) -> Any:
    deadline = time.monotonic() + timeout_s
    while not (found := condition()):
        assert time.monotonic() < deadline, f"not in {timeout_s} s: {what}"
        time.sleep(0.1)
    return found


class Shop:
    """A receiver of webhooks that can be away."""

    def __init__(self) -> None:
        self.away = False
        self.got: list[tuple[str, dict[str, str], bytes]] = []
        shop = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                if not shop.away:
                    shop.got.append((self.headers["webhook-id"], dict(self.headers), body))
                self.send_response(503 if shop.away else 204)
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}/hooks"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


class Operator:
    """Somebody at a shell, whose machines are folders."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.port, console = free_port(), free_port()
        self.console = f"http://127.0.0.1:{console}"
        kept = {name: value for name, value in os.environ.items() if not name.startswith("FLEET_")}
        self.env = {
            **kept,
            "PATH": f"{root / 'bin'}:{kept['PATH']}:/usr/sbin",
            "COLUMNS": "200",
            "FLEET_PORT": str(self.port),
            "FLEET_CONSOLE_PORT": str(console),
            "FLEET_REQUIRE_KEYS": "1",
            "FLEET_RESULT_CACHE": "off",
            "FLEET_WEBHOOK_ALLOW": "127.0.0.1",
            "FLEET_WEBHOOK_BACKOFF_S": ",".join(["2"] * 20),
        }
        (root / "bin").mkdir()
        (root / "bin" / "fleet").write_text(f'#!/bin/sh\nexec {sys.executable} -m comfy_fleet "$@"\n')
        (root / "bin" / "fleet").chmod(0o755)
        (root / "bin" / "redis-server").symlink_to(program())

    def types(self, machine: str, lines: str, *, fails: bool = False) -> str:
        """Type lines into a shell, which ends at the first that fails; return what was printed."""
        folder = self.root / machine
        folder.mkdir(exist_ok=True)
        # What a started fleet keeps open must not be waited for, so no pipe.
        with (self.root / "said").open("w+b") as said:
            done = subprocess.run(
                ["bash", "-e", "-c", lines],
                cwd=folder,
                env=self.env,
                stdout=said,
                stderr=said,
                timeout=240,
                check=False,
            )
            said.seek(0)
            text = said.read().decode()
        assert (done.returncode != 0) is fails, text
        return text

    def http(self, key: str) -> httpx.Client:
        return httpx.Client(
            base_url=f"http://127.0.0.1:{self.port}", headers={"X-API-Key": key}, timeout=60, trust_env=False
        )


@pytest.fixture
def operator(tmp_path: Path) -> Iterator[Operator]:
    made = Operator(tmp_path)
    yield made
    for data in (*tmp_path.glob("*/.fleet/run/up.json"), *tmp_path.glob("*/restored/run/up.json")):
        subprocess.run(
            [sys.executable, "-m", "comfy_fleet", "down", "--data", str(data.parents[1])],
            env=made.env,
            check=False,
            timeout=90,
        )


@pytest.fixture
def shop() -> Iterator[Shop]:
    made = Shop()
    yield made
    made.close()


@pytest.fixture
def gpu(operator: Operator) -> Iterator[str]:
    """Yield the address of a node that belongs to no machine here, so that it outlives both."""
    port = free_port()
    argv = ("sim", "--nodes", "1", "--port", str(port), "--job-seconds", "1", "--data", "gpu")
    node = subprocess.Popen(
        mortal([sys.executable, "-m", "comfy_fleet", *argv]), env=operator.env, cwd=operator.root
    )
    yield f"http://127.0.0.1:{port}"
    node.terminate()
    node.wait(30)


def submitted(http: httpx.Client, count: int, **more: Any) -> list[str]:
    found = []
    for number in range(count):
        answer = http.post("/api/v2/jobs", json={"workflow": picture(number), **more})
        assert answer.status_code == 201, answer.text
        found.append(answer.json()["id"])
    return found


def with_a_secret_and_an_upload(http: httpx.Client) -> list[str]:
    """Submit what needs secret.key, and what needs a file."""
    asset = http.post("/api/v2/assets", files={"file": ("red.png", PNG)}, data={"file_path": "red.png"})
    assert asset.is_success, asset.text
    graph = {
        "1": {"class_type": "LoadImage", "inputs": {"image": "red.png"}},
        "2": {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": "t"}},
    }
    loads = http.post("/api/v2/jobs", json={"workflow": graph})
    assert loads.status_code == 201, loads.text
    partner = {"prompt": picture(77), "extra_data": {"api_key_comfy_org": "comfyui-secret-of-a-partner"}}
    pays = http.post("/prompt", json=partner)
    assert pays.status_code == 200, pays.text
    return [loads.json()["id"], pays.json()["prompt_id"]]


def draws(http: httpx.Client) -> str:
    """Save and run a graph as the editor does; returns the job."""
    saved = http.post("/api/userdata/workflows%2Fmine.json", content=json.dumps(DRAWN["saved"]))
    assert saved.is_success, saved.text
    body = {
        "prompt": DRAWN["prompt"],
        "client_id": "c",
        "extra_data": {"extra_pnginfo": {"workflow": DRAWN["run"]}},
    }
    answer = http.post("/prompt", json=body)
    assert answer.status_code == 200, answer.text
    until(lambda: drafts(http), "the draft is made")
    return str(answer.json()["prompt_id"])


def ended(http: httpx.Client, job_id: str) -> dict[str, Any] | None:
    job: dict[str, Any] = http.get(f"/api/v2/jobs/{job_id}").json()
    return None if job["status"] in ("queued", "running") else job


def drafts(http: httpx.Client) -> list[str]:
    return [one["workflow"] for one in http.get("/api/v1/drafts").json()["drafts"]]


def job_keys(folder: Path, socket: Path) -> set[str]:
    """Start Redis on a folder as the fleet does, and return the jobs in it."""
    server = subprocess.Popen(
        [
            program(),
            "--dir",
            str(folder),
            "--port",
            "0",
            "--unixsocket",
            str(socket),
            "--appendonly",
            "yes",
            "--save",
            "",
        ],
        stdout=subprocess.DEVNULL,
    )
    try:
        client: Any = sync_redis.Redis(unix_socket_path=str(socket))

        def loaded() -> bool:
            try:
                return bool(client.ping())
            except sync_redis.RedisError:
                return False

        until(loaded, "Redis has loaded its data")
        return {
            key.decode().rpartition(":")[2]
            for key in client.keys("fleet:job:????????-*")
            if key.count(b":") == 2
        }
    finally:
        server.terminate()
        server.wait(30)


@pytest.mark.timeout(600)
def test_a_fleet_at_work_comes_back_on_an_empty_machine(operator: Operator, shop: Shop, gpu: str) -> None:
    said = operator.types("first", f"mkdir -m 755 .fleet; fleet up -d --node gpu={gpu}; chmod 700 .fleet")
    assert "chmod 700" in said  # others could look into it
    assert "fleet key create me --role operator --here" in said  # without it, the example would be refused
    made = operator.types(
        "first",
        "fleet tenant create studio --here --limit queued=100\n"
        "fleet key create ops --role operator --here --json > ops.json\n"
        "fleet key create ada --role artist --tenant studio --here --json > ada.json\n",
    )
    folder = operator.root / "first"
    ops, ada = (json.loads((folder / f"{name}.json").read_text())["key"] for name in ("ops", "ada"))
    assert ada not in made
    operator.env["FLEET_API_KEY"] = ops
    with operator.http(ada) as http:
        secret = http.get("/api/v1/webhooks/secret").json()["secret"]
        first = submitted(http, 2, webhook_url=shop.url)
        until(lambda: len(shop.got) == 2, "two ends are told")
        shop.away = True
        jobs = [
            *first,
            *submitted(http, 8, webhook_url=shop.url),
            *with_a_secret_and_an_upload(http),
            draws(http),
            *submitted(http, 60),  # more than the next steps take
        ]
        until(
            lambda: http.get("/api/v1/webhooks").json()["webhooks"][0]["state"] == "waiting",
            "a message that waits",
        )
        states = Counter(
            one["status"] for one in http.get("/api/v1/jobs", params={"limit": 100}).json()["jobs"]
        )
        assert states["succeeded"] >= 2 and states["running"] and states["queued"], states
        operator.types("first", block("aof_rewrite_in_progress:0; do sleep 1; done\n(umask"))
        operator.types("first", block("--rdb dump.rdb"))
        unfinished = [
            one for one in jobs if http.get(f"/api/v2/jobs/{one}").json()["status"] in ("queued", "running")
        ]
        assert unfinished, "the copies were made while jobs ran"
        late = submitted(http, 1)
    assert oct((folder / "fleet.tgz").stat().st_mode)[-3:] == "600"
    stopped = block("fleet down")
    assert stopped.endswith(f"\n{START}")
    operator.types("first", "mv fleet.tgz running.tgz")
    operator.types("first", stopped.removesuffix(START))
    operator.types("first", "mv .fleet lost")

    # A copy of each kind has every job that was accepted before it.
    for machine, unpack in (
        ("tgz", "mkdir restored && tar -xzf ../first/fleet.tgz -C restored"),
        ("rdb", None),
    ):
        operator.types(machine, unpack or "cp ../first/files.tgz ../first/dump.rdb .")
        if unpack is None:
            before, _, after = block("--dir . --port 0").rpartition(f"\n{START}")
            assert after == " --data restored"
            operator.types(machine, before)
        found = job_keys(operator.root / machine / "restored" / "redis", operator.root / f"{machine}.sock")
        assert found >= set(jobs), machine
        assert (late[0] in found) is (machine == "tgz")  # it came after the other copy

    operator.types("second", "cp ../first/running.tgz fleet.tgz")
    shop.away = False
    said = operator.types("second", block("fleet doctor --files"))
    assert ": all there" in said, said
    assert "the fleet goes on with gpu; simulated ones start only with --nodes N" in said
    assert "sim-1" not in said
    assert "key create" not in said and "chmod" not in said
    assert not (operator.root / "second" / ".fleet").exists()
    restored = operator.root / "second" / "restored"
    assert oct(restored.stat().st_mode)[-3:] == "700"
    operator.env["FLEET_DATA"] = str(restored)
    with operator.http(ada) as http:
        ends = {}
        for one in jobs:
            job = until(partial(ended, http, one), f"{one} ends")
            ends[one] = job["status"]
            for output in job["outputs"]:
                content = http.get(output["url"])
                assert content.status_code == 200 and len(content.content) == output["size_bytes"]
            assert job["status"] == "succeeded" and job["outputs"], (jobs.index(one), job["error"])
        assert set(ends.values()) == {"succeeded"}
        assert http.get(f"/api/v2/jobs/{late[0]}").status_code == 404
        assert drafts(http) == ["mine"]
        assert http.get("/api/userdata/workflows%2Fmine.json").json() == DRAWN["saved"]
        assert http.get("/api/v1/webhooks/secret").json()["secret"] == secret
        told = set(jobs[:10])
        until(lambda: len({one for one, _, _ in shop.got}) == len(told), "every end is told")
    # What was delivered before the copy is not sent again; nobody is told of two ends.
    counts = Counter(one for one, _, _ in shop.got)
    assert set(counts) == {f"msg_{one}_succeeded" for one in told}
    assert all(counts[f"msg_{one}_succeeded"] == 1 for one in first)
    for _, headers, body in shop.got:
        assert Webhook(secret).verify(body, headers)["type"] == "job.succeeded"
    with operator.http("not-a-key-of-anybody-at-all") as stranger:
        assert stranger.get("/api/v1/jobs").status_code == 401
    assert "studio" in operator.types("second", "fleet tenant ls")

    # Bytes that are not in a copy are named.
    (lost, *_) = sorted((restored / "files" / "blobs").glob("*/*/*"))
    lost.unlink()
    said = operator.types("second", "fleet doctor --files", fails=True)
    assert "missing or too short: 1 of" in said and lost.name in said
    operator.types("second", "fleet down")
