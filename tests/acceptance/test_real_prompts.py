"""The same requests to a bare ComfyUI and to a fleet of it: prompts, refusals, queue, history and jobs agree.

Set aside is what must differ: ids, numbers and times; tracebacks; and what a job's record does not keep
(which nodes came from the cache or ran before an error, and their values).
"""

import time
from collections.abc import Iterator
from itertools import count
from typing import Any
from uuid import uuid4

import httpx
import pytest

from tests.acceptance.up import Up, start_fleet, stop_fleet
from tests.comfyui_server import ComfyServer
from tests.contract.live_graphs import REFUSED
from tests.contract.test_sim_recordings import normal, without_texts
from tests.integration.native.hints import without_hints

pytestmark = [pytest.mark.comfyui, pytest.mark.timeout(240)]

COLOURS = count(time.time_ns() % 0x7FFFFF)
OLD = "0.3.64"


@pytest.fixture(scope="module")
def up(comfyui_server: ComfyServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    """A fleet whose only node is a real ComfyUI."""
    fleet = start_fleet(tmp_path_factory.mktemp("prompts") / "data", "--node", f"real={comfyui_server.url}")
    deadline = time.monotonic() + 60
    while not httpx.get(f"{fleet.url}/object_info/EmptyImage", timeout=30).json().get("EmptyImage"):
        assert time.monotonic() < deadline, "the fleet does not know yet what its node has"
        time.sleep(0.1)
    yield fleet
    stop_fleet(fleet)


@pytest.fixture(scope="module")
def version(comfyui_server: ComfyServer) -> str:
    told = httpx.get(f"{comfyui_server.url}/system_stats", timeout=30).json()
    return str(told["system"]["comfyui_version"])


def node(class_type: str, **inputs: object) -> dict[str, Any]:
    return {"class_type": class_type, "inputs": inputs}


def empty() -> dict[str, Any]:
    return node("EmptyImage", width=8, height=8, batch_size=1, color=next(COLOURS))


def save(source: str = "1") -> dict[str, Any]:
    return node("SaveImage", images=[source, 0], filename_prefix="p")


def post(url: str, graph: object, **more: Any) -> httpx.Response:
    return httpx.post(f"{url}/prompt", json={"prompt": graph, **more}, timeout=60)


def ended(url: str, prompt_id: str) -> dict[str, Any]:
    deadline = time.monotonic() + 60
    while not (entry := httpx.get(f"{url}/history/{prompt_id}", timeout=30).json().get(prompt_id)):
        assert time.monotonic() < deadline, f"{prompt_id} did not end"
        time.sleep(0.05)
    found: dict[str, Any] = entry
    return found


def until_it_runs(url: str, prompt_id: str) -> None:
    deadline = time.monotonic() + 60
    while prompt_id not in [
        item[1] for item in httpx.get(f"{url}/queue", timeout=30).json()["queue_running"]
    ]:
        assert time.monotonic() < deadline, f"{prompt_id} does not run"
        time.sleep(0.05)


_UNKEPT = ("executed", "nodes", "current_inputs", "current_outputs", "traceback", "exception_type")


def comparable(value: Any) -> Any:
    """Take out what must differ."""
    if isinstance(value, dict):
        changed = {key: comparable(one) for key, one in value.items() if key not in _UNKEPT}
        if isinstance(changed.get("prompt"), list):
            changed["prompt"][0] = 0
        for name in ("number", "priority"):
            changed |= {name: 0} if name in changed else {}
        # Older versions don't tell when a prompt was posted.
        changed.pop("create_time", None)
        return changed
    if isinstance(value, list | tuple):
        return [comparable(one) for one in value]
    return value.rstrip("\n") if isinstance(value, str) else value


def alike(ours: Any, theirs: Any) -> None:
    ours = without_hints(ours)
    assert normal(without_texts(comparable(ours))) == normal(without_texts(comparable(theirs)))


@pytest.mark.parametrize("name", REFUSED)
def test_a_refusal_is_the_same(name: str, up: Up, comfyui_server: ComfyServer, version: str) -> None:
    graph = REFUSED[name]
    theirs = post(comfyui_server.url, graph)
    ours = post(up.url, graph)
    told, expected = ours.json(), theirs.json() if theirs.status_code < 500 else {}
    assert ours.status_code == 400, ours.text
    assert told["error"].keys() == {"type", "message", "details", "extra_info"}
    if theirs.status_code >= 500 or name in ("no inputs", "a class that was replaced"):
        return  # nothing to be like, or nothing that says more
    if version == OLD and ("cycle" in name or expected["error"]["type"] == "invalid_prompt"):
        return  # the newer version's words count
    assert told["node_errors"].keys() == expected["node_errors"].keys()
    for node_id, entry in told["node_errors"].items():
        wanted = expected["node_errors"][node_id]
        assert entry["class_type"] == wanted["class_type"]
        assert sorted(entry["dependent_outputs"]) == sorted(wanted["dependent_outputs"])
        for error, like in zip(entry["errors"], wanted["errors"], strict=True):
            if "exception" in like["type"]:  # an exception's place says nothing to clients
                error, like = ({**one, "extra_info": {}} for one in (error, like))
            alike(error, like)
    alike(told["error"], expected["error"])


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"[]", b"null", b"5", b"{}", b'{"prompt": []}', b'{"prompt": null}', b'{"prompt": {}}'],
)
def test_odd_bodies_are_refused_as_clearly(body: bytes, up: Up, comfyui_server: ComfyServer) -> None:
    theirs = httpx.post(f"{comfyui_server.url}/prompt", content=body, timeout=30)
    ours = httpx.post(f"{up.url}/prompt", content=body, timeout=30)
    assert ours.status_code == 400
    if theirs.status_code == 400 and b"[]}" not in body:  # to 0.3.64 an empty list is an empty graph
        assert ours.json() == theirs.json()


def in_both(up: Up, server: ComfyServer, graph: dict[str, Any], **more: Any) -> tuple[Any, Any]:
    """Run a graph at both; return their answers and entries."""
    found = []
    for url in (up.url, server.url):
        for one in graph.values():
            if one["class_type"] == "EmptyImage":
                one["inputs"]["color"] = 0x123456  # both are asked for the same
        name = str(uuid4())
        answer = post(url, graph, prompt_id=name, **more)
        assert answer.status_code == 200, answer.text
        entry = ended(url, name)
        text = answer.json() | {"prompt_id": ""}
        found.append((text, _renamed(entry, name)))
    return found[0], found[1]


def _renamed(value: Any, name: str) -> Any:
    if isinstance(value, dict):
        return {key: _renamed(one, name) for key, one in value.items()}
    if isinstance(value, list):
        return [_renamed(one, name) for one in value]
    return "ID" if value == name else value


def test_a_prompt_that_succeeds(up: Up, comfyui_server: ComfyServer, version: str) -> None:
    extra = {"extra_pnginfo": {"workflow": {"id": str(uuid4()), "nodes": []}}}
    graph = {
        "1": empty(),
        "2": node("SaveImage", images=["1", 0], filename_prefix=f"s{next(COLOURS)}"),
    }
    ours, theirs = in_both(up, comfyui_server, graph, client_id="c", extra_data=extra)
    alike(ours, theirs)
    if version == OLD:
        return
    pages = [
        httpx.get(f"{url}/api/jobs?status=completed&limit=1", timeout=30).json()["jobs"][0]
        for url in (up.url, comfyui_server.url)
    ]
    for page in pages:
        details = httpx.get(f"{up.url if page is pages[0] else comfyui_server.url}/api/jobs/{page['id']}")
        page["details"] = _renamed(details.json(), page["id"])
        page["id"] = "ID"
    alike(*pages)


def test_a_prompt_that_fails(up: Up, comfyui_server: ComfyServer) -> None:
    graph = {"1": empty(), "2": node("TestSyncError", value=["1", 0]), "3": save("2")}
    ours, theirs = in_both(up, comfyui_server, graph)
    alike(ours, theirs)


def test_a_prompt_of_which_a_part_is_valid(up: Up, comfyui_server: ComfyServer) -> None:
    prefix = f"part{next(COLOURS)}"
    graph = {
        "1": empty(),
        "2": node("SaveImage", images=["1", 0], filename_prefix=prefix),
        "3": node("SaveImage", filename_prefix=prefix),
        "4": node("LoadImage", image="missing.png"),
        "5": save("4"),
        "6": node("SaveImage", images=["99", 0], filename_prefix=prefix),
    }
    ours, theirs = in_both(up, comfyui_server, graph)
    for answer, _ in (ours, theirs):
        for entry in answer["node_errors"].values():
            for error in entry["errors"]:
                error["extra_info"] = {} if "exception" in error["type"] else error["extra_info"]
    for node_id, entry in theirs[0]["node_errors"].items():
        # ComfyUI adds whatever output it has looked at later.
        mine = ours[0]["node_errors"][node_id].pop("dependent_outputs")
        assert set(mine) <= set(entry.pop("dependent_outputs"))
    alike(ours, theirs)


def test_only_the_targets_run(up: Up, comfyui_server: ComfyServer) -> None:
    prefix = f"target{next(COLOURS)}"
    graph = {
        "1": empty(),
        "2": node("SaveImage", images=["1", 0], filename_prefix=prefix),
        "3": node("PreviewImage", images=["1", 0]),
        "4": node("SaveImage", filename_prefix=prefix),
    }
    ours, theirs = in_both(up, comfyui_server, graph, partial_execution_targets=["2", "nope"])
    alike(ours, theirs)
    answers = [
        post(url, graph, partial_execution_targets=["1"]).json() for url in (up.url, comfyui_server.url)
    ]
    assert answers[0] == answers[1]


def test_a_prompt_that_is_interrupted_while_others_wait(up: Up, comfyui_server: ComfyServer) -> None:
    found = []
    for url in (up.url, comfyui_server.url):
        graph = {"1": empty(), "2": node("TestSleep", value=["1", 0], seconds=30.0), "3": save("2")}
        names = [str(uuid4()) for _ in range(3)]
        for name in names:
            assert post(url, graph, prompt_id=name).status_code == 200
        until_it_runs(url, names[0])
        queue = httpx.get(f"{url}/queue", timeout=30).json()
        order = [[item[1] for item in queue[part]] for part in ("queue_running", "queue_pending")]
        assert order == [names[:1], names[1:]]
        lengths = {len(item) for part in queue.values() for item in part}
        counted = httpx.get(f"{url}/prompt", timeout=30).json()
        httpx.post(f"{url}/queue", json={"delete": [names[1]]}, timeout=30)
        cleared = httpx.post(f"{url}/queue", json={"clear": True}, timeout=30)
        stopped = httpx.post(f"{url}/interrupt", json={"prompt_id": names[0]}, timeout=30)
        entry = _renamed(ended(url, names[0]), names[0])
        gone = [httpx.get(f"{url}/history/{name}", timeout=30).json() for name in names[1:]]
        answers = [(one.status_code, one.content) for one in (cleared, stopped)]
        entry["prompt"][2]["1"]["inputs"]["color"] = 0
        found.append((lengths, counted, answers, gone, entry))
    alike(*found)


def test_a_run_that_takes_longer_than_its_own_limit_is_interrupted(up: Up) -> None:
    graph = {"1": empty(), "2": node("TestSleep", value=["1", 0], seconds=3.0), "3": save("2")}
    graph["4"] = {**node("TestSleep", value=["2", 0], seconds=30.0)}
    graph["3"]["inputs"]["images"] = ["4", 0]
    body = {"workflow": graph, "timeout_s": 1.5}
    made = httpx.post(f"{up.url}/api/v2/jobs", json=body, timeout=30).json()
    assert made["timeout_s"] == 1.5
    deadline = time.monotonic() + 60
    while (job := httpx.get(f"{up.url}/api/v2/jobs/{made['id']}", timeout=30).json())["status"] != "failed":
        assert time.monotonic() < deadline, job
        time.sleep(0.1)
    assert job["error"]["code"] == "run_timeout"
    assert "still running after 1.5 s" in job["error"]["message"]
    assert len(job["attempts"]) == 1
    after = httpx.post(f"{up.url}/api/v2/jobs", json={"workflow": {"1": empty(), "3": save()}}, timeout=30)
    while (job := httpx.get(f"{up.url}/api/v2/jobs/{after.json()['id']}", timeout=30).json())["status"] in (
        "queued",
        "running",
    ):
        assert time.monotonic() < deadline, job
        time.sleep(0.1)
    assert job["status"] == "succeeded"
