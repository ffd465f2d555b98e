"""Whatever texts the API's answers carry, no command hands a terminal anything that it obeys."""

import asyncio
import contextlib
import io
import json
import re
import sys
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
import typer
from redis.asyncio import Redis

from comfy_fleet.cli.app import build
from comfy_fleet.domain.jobs.job import JobError, JobStatus
from tests.factories import GRAPH, picture
from tests.fleet import until
from tests.integration.api_kit import Api, running
from tests.key_files import write_keys

OPS, ANN, AGENT = "ops-key-0123456789", "ann-key-0123456789", "agent-token-0123456789"
entry = import_module("comfy_fleet.cli.main")  # the package has a function of this name
pytestmark = pytest.mark.timeout(180)
EVIL = "\x1b]0;owned\x07\x1b[2J\x1b]52;c;aGk=\x07\x9b31m\u202eevil\u2066\r\x7f\u2028\ufeffx"
OBEYED = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff]")
PLAIN = re.compile(r"[0-9a-f-]{36}|\d{4}-\d\d-\d\dT.*|(https?://|/).*|(sha256|blake3):.*")
KEPT = {"status", "verdict", "word", "type", "kind", "state", "role", "roles", "sharing", "base_version"}
"""What commands decide by, and do not only show."""


def poisoned(value: Any, key: str = "") -> Any:
    """Return an answer in which every text has what a terminal obeys at its end."""
    if isinstance(value, dict):
        return {name: poisoned(one, name) for name, one in value.items()}
    if isinstance(value, list):
        return [poisoned(one, key) for one in value]
    if isinstance(value, str) and key not in KEPT and not PLAIN.fullmatch(value):
        return value + EVIL
    return value


@pytest.fixture
async def api(redis: Redis, redis_port: int, tmp_path: Path) -> AsyncIterator[Api]:
    keys = write_keys(tmp_path / "keys", f"ops {OPS} operator\nann {ANN}\n")
    async with running(redis_port, tmp_path / "data", keys_file=keys, agent_token=AGENT) as it:
        it.client.headers["Authorization"] = f"Bearer {OPS}"
        await it.add_node()
        yield it


Leaf = tuple[tuple[str, ...], Any]  # its words, and Typer's command


def leaves() -> Iterator[Leaf]:
    """Yield all commands that ask the API and print: `mcp` writes JSON to a program."""

    def below(command: Any, path: tuple[str, ...]) -> Iterator[Leaf]:
        if hasattr(command, "commands"):
            for name, one in command.commands.items():
                yield from below(one, (*path, name))
        elif path != ("mcp",) and any("--api" in parameter.opts for parameter in command.params):
            yield path, command

    yield from below(typer.main.get_command(build()), ())


def run(argv: list[str], url: str) -> str:
    """Run a command as its process would; return all that it writes."""
    written = io.StringIO()
    before = sys.argv
    sys.argv = ["fleet", *argv, "--api", url]
    try:
        with contextlib.redirect_stdout(written), contextlib.redirect_stderr(written):
            entry.main()
    except SystemExit:
        pass
    finally:
        sys.argv = before
    return written.getvalue()


@dataclass(frozen=True)
class Things:
    """One of all that commands show."""

    failed: str
    waiting: str
    batch: str
    token: str
    key: str
    folder: Path


async def has_everything(api: Api, folder: Path) -> Things:
    async def call(method: str, path: str, body: Any = None, key: str = OPS) -> Any:
        head = {"Authorization": f"Bearer {key}"}
        answer = await api.client.request(method, f"/api/v1/{path}", json=body, headers=head)
        assert answer.is_success, (path, answer.text)
        return answer.json() if answer.content else None

    await until(lambda: api.deps.inventories.known == {"g1"}, what="the node is read")
    failed = (await api.submit(GRAPH, metadata={"a": "b"}))["id"]
    unknown = GRAPH | {"1": {"class_type": "Nope", "inputs": {}}}
    refused = await api.client.post("/api/v2/jobs", json={"workflow": unknown})
    assert refused.status_code == 422, refused.text
    claim = await api.claim(failed)
    await api.output(claim, b"x", name="card.png")
    await api.stores.runs.left(claim, [])
    error = JobError(code="node_execution_error", message="m", node_id="2", traceback="t", details={"a": "b"})
    await api.stores.runs.finish(claim, JobStatus.FAILED, error=error, duration_s=1.0)
    await api.stores.nodes.record_failure("g1", kind="gpu", limit=9, reason="r")
    waiting = (await api.submit(picture(3)))["id"]
    item = {"custom_id": "a", "params": {"prompt": "x"}, "metadata": {"a": "b"}}
    batch = await call("POST", "workflows/image_card/batches", {"items": [item]})
    await call("POST", "nodes/g1/drain", {"reason": "fans"})
    await call("PATCH", "pools/default", {"free_idle_s": 60.0})
    await call("PUT", "workflows/mine", {"graph": GRAPH, "note": "first"})
    await call("PUT", "workflows/mine/labels/staging", {"version": "production"})
    await call("PUT", "workflows/mine", {"graph": picture(9), "note": "second", "force": True})
    beat = {
        "instance": "i1",
        "join": [{"name": "h1-gpu0", "url": "http://10.0.0.1:8188", "agent": "10.0.0.1:9200"}],
        "nodes": [{"name": "h1-gpu0", "word": "drain", "why": "hot", "facts": {"pid": 7, "gpu": "x"}}],
    }
    await call("POST", "agents/h1/heartbeat", beat, AGENT)
    token = await call("POST", "agent-tokens", {"host": "h1"})
    await call("POST", "tenants", {"name": "studio"})
    await call("POST", "users", {"name": "eve", "tenant": "studio"})
    key = await call("POST", "keys", {"user": "eve", "roles": ["submit"], "note": "a key"})
    store = {"name": "shop", "url": "s3://shop/x", "endpoint": "http://127.0.0.1:9", "probe": False}
    await call("POST", "stores", store)
    (folder / "graph.json").write_text(json.dumps(picture(5)))
    return Things(failed, waiting, batch["id"], token["id"], key["id"], folder)


def commands(it: Things) -> list[list[str]]:
    """Return every command that asks the API, those that change something last."""
    graph, pulled = str(it.folder / "graph.json"), str(it.folder / "pulled")
    reads = (
        *("top", "top --pool default"),
        *("status", "audit", "usage", "node ls", "node show g1", "node show h1-gpu0", "node diff", "pool ls"),
        *("model ls", "model ls --missing-on g1", "model fetches"),
        *("pool show default", "host ls", "host token ls", "tenant ls", "tenant show studio", "user ls"),
        *("user show eve", "key ls", f"key show {it.key}", "job ls", f"job show {it.failed}"),
        *(f"job show {it.waiting}", f"job events {it.failed}", f"job follow {it.failed}"),
        *(f"job wait {it.failed}", f"job logs {it.failed}", "workflow ls", "workflow show mine"),
        *(f"job show {it.failed} --timeline",),
        *("workflow show image_card", "workflow check mine", "workflow history mine"),
        *("workflow diff mine staging production", "workflow missing", "workflow export mine"),
        *(
            "batch ls",
            f"batch show {it.batch}",
            "store ls",
            "store show shop",
            "webhook ls",
            "webhook secret show",
            "simulate --history -n 5",
        ),
    )
    changes = (
        *("node refresh g1", "node roll", "node add g7 http://10.0.0.7:1", "node drain g7"),
        f"model fetch http://10.0.0.9/a.safetensors --folder loras --sha256 {'0' * 64} --no-wait",
        "model cancel 5e1b5a7e-0000-4000-8000-000000000000",
        *("node resume g7", "node rm g7", "node cordon-host h1", "node uncordon-host h1"),
        *("pool set default --patience-s 5", "host token create h2", f"host token revoke {it.token}"),
        *("tenant create lab", "tenant set lab --sharing shared", "tenant rm lab", "user create joe"),
        *("user rm joe", "key create eve", f"key rotate {it.key}", f"key revoke {it.key}"),
        *(f"submit {graph}", "submit image_card -p prompt=x", "submit nothing", "warm g1"),
        f"job store {it.failed}",
        *(f"job retry {it.failed}", f"job keep {it.failed}", f"job cancel {it.waiting}"),
        *(f"job download {it.failed} --out {it.folder / 'got'}", f"job rm {it.failed}"),
        *(f"batch cancel {it.batch}", f"batch retry {it.batch}"),
        *("store test shop", "store add other file:///nowhere", "store retry shop", "store rm shop"),
        *(f"batch download {it.batch} --out {it.folder / 'all'}",),
        *(f"batch download {it.batch} --out {it.folder / 'all'}",),
        *(f"outputs sync {it.folder / 'mirror'}", f"batch rm {it.batch}"),
        *(f"workflow add {graph} --name other", "workflow label mine production x"),
        *("workflow unlabel mine x", "workflow rollback mine", "workflow publish mine"),
        *(f"workflow pull {pulled}", f"workflow push {pulled}", "workflow rm mine --yes"),
        *("webhook redeliver msg_x", "webhook test http://10.0.0.1/x", "webhook secret rotate"),
    )
    return [[*line.split()] for line in (*reads, *changes)]


async def test_no_command_hands_a_terminal_what_it_obeys(
    api: Api, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    things = await has_everything(api, tmp_path)
    wanted = commands(things)
    names = {" ".join(path) for path, _ in leaves() if path[-1] != "list"}  # the other name of ls
    tried = {name for name in names for argv in wanted if " ".join(argv).startswith(name)}
    assert names - tried == set(), "commands that are not tried"
    with_json = {" ".join(path) for path, one in leaves() if any("--json" in p.opts for p in one.params)}

    monkeypatch.chdir(tmp_path)  # where the export goes
    monkeypatch.setenv("FLEET_API_KEY", OPS)
    monkeypatch.setattr(entry, "_start_quickly", lambda: None)
    monkeypatch.setattr(entry, "_open_standard_streams", lambda: None)
    decoded = httpx.Response.json
    monkeypatch.setattr(httpx.Response, "json", lambda answer, **more: poisoned(decoded(answer, **more)))
    loads = json.loads  # which reads the events of a stream
    reader = SimpleNamespace(loads=lambda text: poisoned(loads(text)), dumps=json.dumps)
    monkeypatch.setattr("comfy_fleet.cli.client.json", reader)
    shown = set()
    for argv in wanted:
        for more in ((), ("--json",)):
            if more and not any(" ".join(argv).startswith(name) for name in with_json):
                continue
            told = await asyncio.to_thread(run, [*argv, *more], api.url)
            assert not OBEYED.search(told), (argv, more, told)
            assert "Traceback" not in told, (argv, told)
            if re.search(r"\\x1b|\\u001b", told):
                shown.add(" ".join(argv))
    # It means something only where the texts were on their way to the terminal.
    assert len(shown) > 40, sorted({" ".join(argv) for argv in wanted} - shown)
