"""A node that answers without end, or what no ComfyUI answers: it costs the fleet nothing but the node."""

import contextlib
import json
import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.acceptance.up import Up, start_fleet, stop_fleet
from tests.conftest import free_port
from tests.factories import picture
from tests.hostile import ANSWERS, MIB, HostileNode, answer, endless, frame, unavailable

GROWTH = 64 * MIB
FRAME_LIMIT = 8 * MIB
NONE_READY = {"FLEET_READY_LEASES": "0"}  # then a websocket comes with a job


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    """Two quick nodes; the second one gets no jobs itself: it is what a hostile one passes on to."""
    folder = tmp_path_factory.mktemp("hostile") / "data"
    # With one fault a node is out after four runs in a row, which take seconds each.
    env = {"FLEET_NODE_FRAME_BYTES": str(FRAME_LIMIT), "FLEET_QUARANTINE_FAULTS": "1", **NONE_READY}
    up = start_fleet(folder, "--nodes", "2", "--job-seconds", "0.1", env=env)
    behind = [node for node in nodes(up) if node["simulated"]][1]
    assert httpx.post(f"{up.console}/api/v1/nodes/{behind['name']}/drain").status_code == 200
    yield up
    stop_fleet(up)


@pytest.fixture
def evil(up: Up) -> Iterator[HostileNode]:
    sims = [node for node in nodes(up) if node["simulated"]]
    with HostileNode(free_port(), str(sims[1]["url"])) as evil:
        body = {"name": "evil", "url": evil.url, "pool": "evil"}
        assert httpx.post(f"{up.console}/api/v1/nodes", json=body).status_code == 201
        wait(lambda: node(up, "evil")["verdict"] == "up", up)
        wait(lambda: bool(node(up, "evil")["inventory"]), up)
        yield evil
        httpx.delete(f"{up.console}/api/v1/nodes/evil", params={"force": "true"}, timeout=60)


def nodes(up: Up) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = httpx.get(f"{up.console}/api/v1/nodes").json()["nodes"]
    return found


def node(up: Up, name: str) -> dict[str, Any]:
    return next(one for one in nodes(up) if one["name"] == name)


def wait(done: Any, up: Up, timeout_s: float = 60) -> None:
    until = time.monotonic() + timeout_s
    while not done():
        assert time.monotonic() < until, node(up, "evil")
        time.sleep(0.1)


def processes(up: Up) -> dict[int, str]:
    """Return the fleet's processes by pid, with their command lines."""
    parents, words = {}, {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdecimal():
            try:
                parents[int(folder.name)] = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
                words[int(folder.name)] = (folder / "cmdline").read_text(errors="replace").replace("\0", " ")
            except OSError:
                continue
    found = {up.process.pid}
    while more := {pid for pid, parent in parents.items() if parent in found} - found:
        found |= more
    return {pid: words[pid] for pid in found if pid in words}


def memory(pid: int, field: str) -> int:
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:")), 0)


class Grown:
    """Measures by how much processes have grown at their largest, from now on."""

    def __init__(self, up: Up) -> None:
        self._words = processes(up)
        for pid in self._words:
            with contextlib.suppress(FileNotFoundError):  # one that has ended meanwhile grows no more
                Path(f"/proc/{pid}/clear_refs").write_text("5")  # the largest size begins anew
        self._before = {pid: memory(pid, "VmRSS") for pid in self._words}

    def most(self) -> tuple[int, str]:
        return max((memory(pid, "VmHWM") - had, self._words[pid]) for pid, had in self._before.items())


def submit(up: Up, pool: str, color: int) -> str:
    body = {"workflow": picture(color), "pool": pool}
    answer = httpx.post(f"{up.url}/api/v2/jobs", json=body)
    assert answer.status_code == 201, answer.text
    return str(answer.json()["id"])


def job(up: Up, id_: str) -> dict[str, Any]:
    found: dict[str, Any] = httpx.get(f"{up.url}/api/v2/jobs/{id_}").json()
    return found


def others_work(up: Up, color: int) -> None:
    """A job on another node ends on time."""
    began = time.monotonic()
    id_ = submit(up, "default", color)
    while not job(up, id_)["completed_at"]:
        assert time.monotonic() - began < 10
        time.sleep(0.05)
    assert job(up, id_)["status"] == "succeeded"


def out(up: Up) -> str:
    """Return why the node is out; empty while it is not."""
    found = node(up, "evil")
    if found["cordoned"]:
        return str(found["cordon_reason"])
    return str(found["why"]) if found["verdict"] in ("drain", "down", "new") else ""


def expected(call: str, how: str) -> str:
    """Return what the reason why the node is out must say."""
    if how == "bomb":
        return "gzip"
    if call == "/system_stats":  # nothing sets how much is read of it
        return "more than 1 MiB"
    if how == "values":
        return "500000 lists and objects" if call == "/object_info" else "values"
    return "FLEET_NODE_ANSWER_BYTES"


@pytest.mark.parametrize("how", ANSWERS)
@pytest.mark.parametrize("call", ["/system_stats", "/queue", "/object_info", "/prompt", "/history/"])
def test_a_bad_answer_costs_the_node_and_nobody_else(up: Up, evil: HostileNode, call: str, how: str) -> None:
    grown = Grown(up)
    evil.bad[call] = ANSWERS[how]
    if call == "/history/":
        evil.frames = []
    id_ = submit(up, "evil", 1) if call in ("/prompt", "/history/") else ""
    if call == "/object_info":
        answer = httpx.post(f"{up.console}/api/v1/nodes/evil/refresh", timeout=60)
        assert answer.status_code == 502, answer.text
        assert "/object_info" in answer.json()["error"]["message"]
    if call == "/history/":
        wait(lambda: call in "".join(evil.asked), up)
        while not out(up):  # one run's own texts may be too much: it takes many of them
            if job(up, id_)["completed_at"]:
                id_ = submit(up, "evil", 1)
            time.sleep(0.1)
    wait(lambda: call.rstrip("/") in out(up), up)
    others_work(up, 2)
    assert expected(call, how) in out(up)
    most, who = grown.most()
    assert most < GROWTH, (most / MIB, who)
    if id_:
        httpx.post(f"{up.url}/api/v1/jobs/{id_}/cancel")


def classes(body: Callable[[int], bytes], count: int) -> bytes:
    return b"{" + b",".join(b'"C%d":' % number + body(number) for number in range(count)) + b"}"


def of_input(number: int, value: bytes) -> bytes:
    return b'{"input":{"required":{"i%d":' % number + value + b"}}}"


def of_inputs(number: int) -> bytes:
    named = b",".join(b'"i%d_%d":["T%d"]' % (number, index, index) for index in range(9_000))
    return b'{"input":{"required":{' + named + b"}}}"


def growing(number: int) -> bytes:
    template = b'{"input":{"required":{"a":["A"]}},"prefix":"' + b"p" * 190 + b'","max":1000}'
    return of_input(number, b'["COMFY_AUTOGROW_V3",{"template":' + template + b"}]")


def noise(number: int, size: int) -> bytes:
    return json.dumps(random.Random(number).randbytes(size).hex()).encode()


WIDE = b'{"x":"\xf0\x9f\x99\x82' + b"x" * 2_600_000 + b'"}'
LARGE_INVENTORIES: dict[str, Callable[[], bytes]] = {
    # Dear to decode: each class is within what one may take.
    "lists": lambda: classes(lambda n: b'{"x":[' + b"[]," * 85_000 + b"0]}", 5),
    "more-lists": lambda: classes(lambda n: b'{"x":[' + b"[]," * 85_000 + b"0]}", 90),
    "objects": lambda: classes(lambda n: b'{"x":[' + b'{"":0},' * 40_000 + b"0]}", 12),
    "wide": lambda: classes(lambda n: WIDE, 9),
    "slow": lambda: classes(lambda n: b'{"x":NaN,"y":"' + b"x" * 5_000_000 + b'"}', 4),
    # Dear to keep: all classes together are near what they may take, or beyond.
    "names": lambda: classes(lambda n: of_input(n, b'[["' + b"%09d" % n * 20 + b'"]]'), 14_000),
    "inputs": lambda: classes(of_inputs, 6),
    "both": lambda: classes(lambda n: of_inputs(n) if n < 6 else WIDE, 9),
    "more-inputs": lambda: classes(of_inputs, 9),
    "growing": lambda: classes(growing, 120),
    "more-growing": lambda: classes(growing, 6_000),
    "texts": lambda: classes(lambda n: of_input(n, b"[[" + noise(n, 250_000) + b"]]"), 20),
    "long-names": lambda: classes(lambda n: of_input(n, b'[["%d' % n + b"x" * 700_000 + b'"]]'), 30),
    "classes": lambda: classes(lambda n: b"{}", 1_500_000),
}


def test_the_largest_inventories_that_are_read(up: Up, evil: HostileNode) -> None:
    """They are kept by every process that places jobs."""
    statuses = {}
    for name, body in LARGE_INVENTORIES.items():
        grown = Grown(up)
        evil.bad["/object_info"] = answer(body())
        for _ in range(10):  # a slow machine may take longer than the API waits
            statuses[name] = httpx.post(f"{up.console}/api/v1/nodes/evil/refresh", timeout=60).status_code
            if statuses[name] != 504:
                break
        others_work(up, 10)
        most, who = grown.most()
        assert most < GROWTH, (name, most / MIB, who)
    read = {name for name, status in statuses.items() if status == 200}
    assert read == {"lists", "objects", "wide", "slow", "names", "inputs", "both", "growing", "long-names"}, (
        statuses
    )


LARGE_ANSWERS = {
    "text": b'{"a": "' + b"x" * (18 * MIB) + b'"}',
    "wide-text": '{"a": "\N{SLIGHTLY SMILING FACE}'.encode() + b"x" * (9 * MIB) + b'"}',
    "lists": b'{"a": [' + b"[]," * 310_000 + b"0]}",
    "objects": b'{"a": [' + b'{"":0},' * 140_000 + b"0]}",
    "slow": b'{"a": NaN, "b": "' + b"x" * (18 * MIB) + b'"}',
}


@pytest.mark.parametrize("call", ["/queue", "/prompt", "/history"])
def test_the_largest_answers_that_are_read(up: Up, evil: HostileNode, call: str) -> None:
    evil.frames = []
    for name, body in LARGE_ANSWERS.items():
        grown = Grown(up)
        evil.bad = {call: answer(body)}
        asked = len(evil.asked)
        id_ = submit(up, "evil", 11)
        wait(lambda: call in "".join(evil.asked[asked:]), up)  # noqa: B023 - used at once
        others_work(up, 12)
        most, who = grown.most()
        assert most < GROWTH, (name, most / MIB, who)
        httpx.post(f"{up.url}/api/v1/jobs/{id_}/cancel")
    evil.bad = {}


@pytest.mark.parametrize("call", ["/interrupt", "/free", "/upload/image", "/node_replacements"])
def test_orders_read_no_more_than_they_must(up: Up, evil: HostileNode, call: str) -> None:
    grown = Grown(up)
    evil.bad[call] = endless
    httpx.post(f"{up.console}/api/v1/nodes/evil/refresh", timeout=60)
    id_ = submit(up, "evil", 3)
    httpx.post(f"{up.url}/api/v1/jobs/{id_}/cancel")
    others_work(up, 4)
    most, who = grown.most()
    assert most < GROWTH, (most / MIB, who)


@pytest.mark.parametrize(("opcode", "size"), [(1, 1200 * MIB), (2, FRAME_LIMIT + 1), (2, 2**62)])
def test_a_frame_beyond_the_limit_fails_the_run_with_the_limits_name(
    up: Up, evil: HostileNode, opcode: int, size: int
) -> None:
    grown = Grown(up)
    evil.frames = [frame(opcode, size), *[b"x" * MIB] * 16]
    id_ = submit(up, "evil", 5)
    wait(lambda: bool(job(up, id_)["completed_at"]), up)
    found = httpx.get(f"{up.url}/api/v1/jobs/{id_}").json()
    assert found["status"] == "failed", found
    assert found["error"]["code"] == "frame_too_large"
    assert "FLEET_NODE_FRAME_BYTES" in found["error"]["message"]
    most, who = grown.most()
    assert most < GROWTH, (most / MIB, who)


def test_many_large_frames_wait_on_the_network(up: Up, evil: HostileNode) -> None:
    grown = Grown(up)
    size = FRAME_LIMIT - MIB
    evil.frames = [part for _ in range(60) for part in (frame(2, size), b"\0" * size)]
    id_ = submit(up, "evil", 6)
    others_work(up, 7)
    most, who = grown.most()
    assert most < GROWTH, (most / MIB, who)
    httpx.post(f"{up.url}/api/v1/jobs/{id_}/cancel")


def text(size: int) -> list[bytes]:
    start, end = b'{"type": "executed", "data": {"output": "', b'"}}'
    return [frame(1, size), start, b"x" * (size - len(start) - len(end)), end]


def previews(size: int) -> list[bytes]:
    return [frame(2, size), b"\0\0\0\1\0\0\0\1", b"\0" * (size - 8)]


@pytest.fixture(scope="module")
def usual(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    """The same with the usual limits."""
    folder = tmp_path_factory.mktemp("usual") / "data"
    up = start_fleet(folder, "--nodes", "2", "--job-seconds", "0.1", env=NONE_READY)
    behind = [node for node in nodes(up) if node["simulated"]][1]
    assert httpx.post(f"{up.console}/api/v1/nodes/{behind['name']}/drain").status_code == 200
    yield up
    stop_fleet(up)


def test_what_an_idle_node_sends_is_not_kept(tmp_path: Path) -> None:
    up = start_fleet(tmp_path / "data", "--nodes", "2", "--job-seconds", "0.1")
    try:
        sims = [node for node in nodes(up) if node["simulated"]]
        with HostileNode(free_port(), str(sims[1]["url"])) as evil:
            evil.frames = (part for _ in range(40) for part in previews(FRAME_LIMIT))
            grown = Grown(up)
            body = {"name": "evil", "url": evil.url, "pool": "evil"}
            assert httpx.post(f"{up.console}/api/v1/nodes", json=body).status_code == 201
            wait(lambda: evil.sent, up)  # its lease is held ready
            others_work(up, 13)
            most, who = grown.most()
            assert most < GROWTH, (most / MIB, who)
    finally:
        stop_fleet(up)


@pytest.mark.parametrize(
    ("frames", "limit"),
    [
        (text(17 * MIB), ""),
        (text(31 * MIB), "FLEET_NODE_FRAME_BYTES"),
        (previews(31 * MIB) * 4, ""),
        ([frame(2, 31 * MIB), b"\0" * (31 * MIB)] * 4, ""),
        ([b"\x81\x02{}" * 100_000] * 20, "websocket frames"),
    ],
    ids=["text", "long-text", "previews", "unknown", "tiny"],
)
def test_frames_within_the_limit_cost_little_of_memory_and_time(
    usual: Up, frames: list[bytes], limit: str
) -> None:
    up = usual
    sims = [node for node in nodes(up) if node["simulated"]]
    with HostileNode(free_port(), str(sims[1]["url"])) as evil:
        body = {"name": "evil", "url": evil.url, "pool": "evil"}
        assert httpx.post(f"{up.console}/api/v1/nodes", json=body).status_code == 201
        wait(lambda: node(up, "evil")["verdict"] == "up" and bool(node(up, "evil")["inventory"]), up)
        grown = Grown(up)
        evil.frames = frames
        if limit:  # else a slow machine could hear of the run's end before it has read the frames
            evil.bad["/history"] = unavailable
        id_ = submit(up, "evil", 8)
        try:
            wait(lambda: evil.sent or bool(job(up, id_)["completed_at"]), up)
            others_work(up, 9)
            if limit:
                wait(lambda: bool(job(up, id_)["completed_at"]), up)
                error = httpx.get(f"{up.url}/api/v1/jobs/{id_}").json()["error"]
                assert error["code"] == "frame_too_large"
                assert limit in error["message"]
            most, who = grown.most()
            assert most < GROWTH, (most / MIB, who)
        finally:
            httpx.post(f"{up.url}/api/v1/jobs/{id_}/cancel")
            httpx.delete(f"{up.console}/api/v1/nodes/evil", params={"force": "true"}, timeout=60)


def executed(run: str, node_id: str, text: str) -> list[bytes]:
    data = {"node": node_id, "display_node": node_id, "output": {"text": [text]}, "prompt_id": run}
    body = json.dumps({"type": "executed", "data": data}).encode()
    return [frame(1, len(body)), body]


def saved(run: str, size: int) -> list[bytes]:
    """Return a picture of node 3, which is an output if that node saves by websocket."""
    metadata = json.dumps({"node_id": "3", "prompt_id": run, "image_type": "image/png"}).encode()
    head = b"\0\0\0\4" + len(metadata).to_bytes(4, "big") + metadata
    return [frame(2, size), head, b"\0" * (size - len(head))]


RESULTS: dict[str, Callable[[str], Iterator[bytes]]] = {
    "pictures": lambda run: (part for _ in range(12) for part in saved(run, 30 * MIB)),
    "texts": lambda run: (part for n in range(20) for part in executed(run, f"n{n}", "x" * (8 * MIB))),
    "many": lambda run: (part for n in range(40) for part in many_results(run, n)),
    "names": lambda run: (part for n in range(20) for part in begun(run, f"{n:08}" * MIB)),
    "nodes": lambda run: (part for n in range(60_000) for part in begun(run, f"{n:01000}")),
}


def many_results(run: str, number: int) -> list[bytes]:
    data = {"node": f"n{number}", "output": {"text": ["ab"] * 200_000}, "prompt_id": run}
    body = json.dumps({"type": "executed", "data": data}, separators=(",", ":")).encode()
    return [frame(1, len(body)), body]


def begun(run: str, node_id: str) -> list[bytes]:
    body = json.dumps({"type": "executing", "data": {"node": node_id, "prompt_id": run}}).encode()
    return [frame(1, len(body)), body]


@pytest.mark.timeout(240)
@pytest.mark.parametrize("what", RESULTS)
def test_what_a_node_tells_of_a_run_is_not_all_kept(usual: Up, what: str) -> None:
    up = usual
    sims = [node for node in nodes(up) if node["simulated"]]
    graph = picture(11) | {"3": {"class_type": "SaveImageWebsocket", "inputs": {"images": ["1", 0]}}}
    with HostileNode(free_port(), str(sims[1]["url"])) as evil:
        body = {"name": f"evil-{what}", "url": evil.url, "pool": "evil"}
        assert httpx.post(f"{up.console}/api/v1/nodes", json=body).status_code == 201
        wait(lambda: bool(node(up, body["name"])["inventory"]), up)
        wait(lambda: node(up, body["name"])["verdict"] == "up", up)
        grown = Grown(up)
        evil.frames = RESULTS[what]
        answer = httpx.post(f"{up.url}/api/v2/jobs", json={"workflow": graph, "pool": "evil"})
        assert answer.status_code == 201, answer.text
        id_ = answer.json()["id"]
        try:
            until = time.monotonic() + 120
            while not evil.sent and not job(up, id_)["completed_at"]:
                assert time.monotonic() < until, job(up, id_)
                time.sleep(0.1)
            others_work(up, 12)
            most, who = grown.most()
            assert most < GROWTH, (most / MIB, who, job(up, id_)["status"], job(up, id_)["error"])
        finally:
            httpx.post(f"{up.url}/api/v1/jobs/{id_}/cancel")
            httpx.delete(f"{up.console}/api/v1/nodes/{body['name']}", params={"force": "true"}, timeout=60)
