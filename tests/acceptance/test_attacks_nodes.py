"""A node that answers without end, or what no ComfyUI answers: it costs the fleet nothing but the node."""

import json
import random
import time
from collections.abc import Callable, Iterator

import httpx
import pytest

from tests.acceptance.hostile_kit import (
    FRAME_LIMIT,
    GROWTH,
    NONE_READY,
    Grown,
    job,
    node,
    nodes,
    others_work,
    submit,
    wait,
)
from tests.acceptance.up import Up, start_fleet, stop_fleet
from tests.conftest import free_port
from tests.hostile import ANSWERS, MIB, HostileNode, answer, endless, frame


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
