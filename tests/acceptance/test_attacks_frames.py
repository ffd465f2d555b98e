"""Frames of a hostile node: what it sends by websocket, and tells of runs, has limits.

The fleets have the usual ones; `test_attacks_nodes.py` has one with lower limits.
"""

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path

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
from tests.factories import picture
from tests.hostile import MIB, HostileNode, frame, unavailable


def text(size: int) -> list[bytes]:
    start, end = b'{"type": "executed", "data": {"output": "', b'"}}'
    return [frame(1, size), start, b"x" * (size - len(start) - len(end)), end]


def previews(size: int) -> list[bytes]:
    return [frame(2, size), b"\0\0\0\1\0\0\0\1", b"\0" * (size - 8)]


@pytest.fixture(scope="module")
def usual(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    """Two quick nodes; the second one gets no jobs itself: it is what a hostile one passes on to."""
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
            if limit:
                wait(lambda: "/interrupt" in evil.asked or bool(job(up, id_)["completed_at"]), up)
                evil.bad = {}  # the run waits to hear that its prompt has left the node
            else:
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
