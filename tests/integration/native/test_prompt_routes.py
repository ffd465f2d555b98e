"""ComfyUI's /prompt, /queue, /history and /interrupt: forms as recorded, and for each person alone."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import pytest
from redis.asyncio import Redis

from comfy_fleet.domain.jobs.job import JobError, JobStatus, Progress
from tests.factories import picture
from tests.integration.api_kit import Api, running
from tests.integration.native.prompts_kit import claim_next, end, post, two_people

People = tuple[Api, httpx.AsyncClient, httpx.AsyncClient]
UI = {"2": {"images": [{"filename": "t_00001_.png", "subfolder": "", "type": "output"}]}}


@pytest.fixture
async def people(redis_port: int, redis: Redis, tmp_path: Path) -> AsyncIterator[People]:
    async with two_people(redis_port, tmp_path) as made:
        yield made


@pytest.fixture
async def api(redis_port: int, redis: Redis, tmp_path: Path) -> AsyncIterator[Api]:
    async with running(redis_port, tmp_path) as started:
        await started.add_node()
        yield started


def ids(queue: dict[str, Any]) -> tuple[list[str], list[str]]:
    return tuple([item[1] for item in queue[part]] for part in ("queue_running", "queue_pending"))  # type: ignore[return-value]


async def test_a_prompt_may_run_in_every_pool(api: Api) -> None:
    await post(api.client, 1)
    (job,) = await api.stores.jobs.live("local")
    assert job.placement.key == "default>*"


@pytest.mark.parametrize("prefix", ["", "/api"])
async def test_a_prompt_from_post_to_history(api: Api, prefix: str) -> None:
    name = str(uuid4())
    workflow = {"id": str(uuid4()), "nodes": []}
    sent = {
        "prompt": picture(7),
        "prompt_id": name,
        "client_id": "tab",
        "extra_data": {"extra_pnginfo": {"workflow": workflow}, "api_key_comfy_org": "hush"},
    }
    answer = await api.client.post(f"{prefix}/prompt", json=sent, headers={"Comfy-Usage-Source": "tests"})
    assert answer.json() == {"prompt_id": name, "number": 1, "node_errors": {}}
    second = await post(api.client, 8)
    assert (await api.client.get(f"{prefix}/prompt")).json() == {"exec_info": {"queue_remaining": 2}}

    queue = (await api.client.get(f"{prefix}/queue")).json()
    assert ids(queue) == ([], [name, second])
    number, prompt_id, graph, extra, outputs = queue["queue_pending"][0]
    created = extra.pop("create_time")
    assert (number, prompt_id, graph, outputs) == (1, name, picture(7), ["2"])
    shown = {"extra_pnginfo": {"workflow": workflow}, "comfy_usage_source": "tests", "client_id": "tab"}
    assert extra == shown
    assert queue["queue_pending"][1][3].keys() == {"create_time"}
    assert (await api.client.get(f"{prefix}/history/{name}")).json() == {}

    claim = await claim_next(api)
    assert ids((await api.client.get(f"{prefix}/queue")).json()) == ([name], [second])
    await end(api, claim, ui=UI)
    assert ids((await api.client.get(f"{prefix}/queue")).json()) == ([], [second])
    entry = (await api.client.get(f"{prefix}/history/{name}")).json()[name]
    assert entry["prompt"] == [1, name, picture(7), {**shown, "create_time": created}, ["2"]]
    assert entry["outputs"] == UI
    assert entry["meta"] == {
        "2": {"node_id": "2", "display_node": "2", "parent_node": None, "real_node_id": "2"}
    }
    status = entry["status"]
    assert (status["status_str"], status["completed"]) == ("success", True)
    assert [kind for kind, _ in status["messages"]] == [
        "execution_start",
        "execution_cached",
        "execution_success",
    ]
    times = [data.pop("timestamp") for _, data in status["messages"]]
    assert sorted(times) == times and times[0] >= created > 1e12
    assert status["messages"][1][1] == {"nodes": [], "prompt_id": name}
    assert list((await api.client.get(f"{prefix}/history")).json()) == [name]


async def test_prompts_of_other_faces_are_listed_by_their_ids(api: Api) -> None:
    job = await api.submit(picture(1))
    assert ids((await api.client.get("/queue")).json()) == ([], [job["id"]])
    claim = await api.claim(job["id"])
    await end(api, claim, ui=UI)
    assert (await api.client.get(f"/history/{job['id']}")).json()[job["id"]]["outputs"] == UI
    name = "an alias"
    await post(api.client, 2, prompt_id=name)
    made = (await api.client.get("/api/v2/jobs")).json()["jobs"][0]["id"]
    assert made != name
    assert (await api.client.get(f"/api/jobs/{name}")).json()["id"] == name
    assert (await api.client.get(f"/api/jobs/{made}")).json()["id"] == name


async def test_how_prompts_ended_is_told_in_comfyuis_words(api: Api) -> None:
    failed = await post(api.client, 1)
    claim = await claim_next(api)
    error = JobError(
        code="node_execution_error",
        message="no",
        node_id="2",
        class_type="SaveImage",
        traceback="line 1\nline 2\n",
        details={"exception_type": "RuntimeError"},
    )
    await end(api, claim, JobStatus.FAILED, error=error)
    stopped = await post(api.client, 2)
    claim = await claim_next(api)
    assert (await api.client.post("/interrupt", json={"prompt_id": stopped})).status_code == 200
    at = Progress(value=0.5, nodes_done=1, nodes_total=2, current_node="1", current_node_class="EmptyImage")
    await api.stores.runs.left(claim, [])
    await api.stores.runs.finish(claim, JobStatus.CANCELED, error=None, duration_s=None, progress=at)

    history = (await api.client.get("/history")).json()
    assert list(history) == [failed, stopped]
    ends = [(entry["status"]["status_str"], entry["status"]["completed"]) for entry in history.values()]
    assert ends == [("error", False)] * 2
    kind, told = history[failed]["status"]["messages"][-1]
    told.pop("timestamp")
    assert (kind, told) == (
        "execution_error",
        {
            "prompt_id": failed,
            "node_id": "2",
            "node_type": "SaveImage",
            "executed": [],
            "exception_message": "no",
            "exception_type": "RuntimeError",
            "traceback": ["line 1\n", "line 2\n"],
            "current_inputs": {},
            "current_outputs": [],
        },
    )
    kind, told = history[stopped]["status"]["messages"][-1]
    told.pop("timestamp")
    assert (kind, told) == (
        "execution_interrupted",
        {"prompt_id": stopped, "node_id": "1", "node_type": "EmptyImage", "executed": []},
    )


async def test_numbers_and_the_order_of_the_queue(api: Api) -> None:
    names = [await post(api.client, color) for color in (1, 2)]
    front = await api.client.post("/prompt", json={"prompt": picture(3), "front": True})
    assert front.json()["number"] == -3
    between = await api.client.post("/prompt", json={"prompt": picture(4), "number": "1.5"})
    assert between.json()["number"] == 1.5
    order = [front.json()["prompt_id"], names[0], between.json()["prompt_id"], names[1]]
    assert ids((await api.client.get("/queue")).json())[1] == order
    assert (await claim_next(api)).job.prompt_id == order[0]


async def test_deleting_from_the_queue_never_stops_what_runs(api: Api) -> None:
    first, second, third, fourth = [await post(api.client, color) for color in range(4)]
    await claim_next(api)
    await api.client.post("/queue", json={"delete": [first, third, "nobody", 5, None]})
    assert ids((await api.client.get("/queue")).json()) == ([first], [second, fourth])
    answer = await api.client.post("/api/queue", json={"clear": True})
    assert (answer.status_code, answer.content) == (200, b"")
    assert ids((await api.client.get("/queue")).json()) == ([first], [])
    assert (await api.client.get("/prompt")).json()["exec_info"]["queue_remaining"] == 1
    # As on ComfyUI, what was taken out before it began is forgotten.
    assert (await api.client.get("/history")).json() == {}
    for name in (second, third, fourth):
        assert (await api.client.get(f"/history/{name}")).json() == {}
        assert (await api.client.get(f"/api/jobs/{name}")).status_code == 404
        assert (await api.client.get(f"/api/v2/jobs/{name}")).json()["status"] == "canceled"


async def test_interrupting_touches_only_what_runs(api: Api) -> None:
    first, second = [await post(api.client, color) for color in range(2)]
    for body in ({"prompt_id": second}, {"prompt_id": "nobody"}, {"prompt_id": 7}, {}):
        assert (await api.client.post("/interrupt", json=body)).status_code == 200
    assert ids((await api.client.get("/queue")).json()) == ([], [first, second])
    await claim_next(api)
    assert (await api.client.post("/api/interrupt")).status_code == 200  # its only one that runs
    assert (await api.client.get(f"/api/v2/jobs/{first}")).json()["status"] == "canceling"
    assert (await api.client.get(f"/api/v2/jobs/{second}")).json()["status"] == "queued"


async def test_deleting_from_the_history_leaves_jobs_and_files(api: Api) -> None:
    names = []
    for color in range(3):
        names.append(await post(api.client, color))
        await end(api, await claim_next(api), ui=UI)
    waits = await post(api.client, 9)
    answer = await api.client.post("/history", json={"delete": [names[0], waits, "nobody"]})
    assert (answer.status_code, answer.content) == (200, b"")
    assert list((await api.client.get("/history")).json()) == names[1:]
    assert (await api.client.get(f"/api/jobs/{names[0]}")).status_code == 404
    assert (await api.client.get(f"/history/{names[0]}")).json() == {}
    await api.client.post("/history", json={"clear": True})
    assert (await api.client.get("/history")).json() == {}
    assert ids((await api.client.get("/queue")).json()) == ([], [waits])
    assert len((await api.client.get("/api/v2/jobs")).json()["jobs"]) == 4


@pytest.mark.parametrize(
    ("query", "places"),
    [
        ("", [0, 1, 2, 3, 4]),
        ("max_items=2", [3, 4]),
        ("max_items=20", [0, 1, 2, 3, 4]),
        ("max_items=0", []),
        ("max_items=-1", []),
        ("max_items=2&offset=1", [1, 2]),
        ("max_items=2&offset=4", [4]),
        ("max_items=0&offset=1", [1]),
        ("max_items=2&offset=-1", [3, 4]),
        ("offset=3", [3, 4]),
        ("offset=-3", [0, 1, 2, 3, 4]),
        ("offset=9", []),
        ("max_items=99999999999999999999999999999999", [0, 1, 2, 3, 4]),
    ],
)
async def test_the_history_counts_as_comfyui_does(api: Api, query: str, places: list[int]) -> None:
    names = []
    for color in range(5):
        names.append(await post(api.client, color))
        await end(api, await claim_next(api))
    found = (await api.client.get(f"/history?{query}")).json()
    assert list(found) == [names[place] for place in places]


async def test_answers_are_limited_in_bytes(redis_port: int, redis: Redis, tmp_path: Path) -> None:
    async with running(redis_port, tmp_path, max_listing_bytes=3500) as api:
        await api.add_node()
        names = [await post(api.client, 1, extra_data={"x": str(color) * 1000}) for color in range(5)]
        queue = (await api.client.get("/queue")).json()["queue_pending"]
        assert [item[1] for item in queue] == names
        assert queue[0][2] == picture(1) and queue[-1][2] == {}
        assert all(item[4] == ["2"] for item in queue)
        assert queue[-1][3].keys() == {"create_time"}
        for _ in names:
            await end(api, await claim_next(api))
        found = list((await api.client.get("/history")).json())
        assert 1 <= len(found) < 5 and found == names[-len(found) :]
        found = list((await api.client.get("/history?offset=0")).json())
        assert 1 <= len(found) < 5 and found == names[: len(found)]
        found = list((await api.client.get("/history?max_items=2&offset=1")).json())
        assert found[0] == names[1]


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("POST", "/queue", {"delete": "x"}),
        ("POST", "/queue", []),
        ("POST", "/history", {"delete": {"a": 1}}),
        ("POST", "/history", 5),
        ("POST", "/interrupt", [1]),
        ("GET", "/history?max_items=x", None),
        ("GET", "/history?offset=1.5", None),
    ],
)
async def test_odd_requests_are_refused_clearly(api: Api, method: str, path: str, body: object) -> None:
    answer = await api.client.request(method, path, json=body)
    told = answer.json()
    assert answer.status_code == 400
    assert told.keys() == {"error", "node_errors"}
    assert told["error"].keys() == {"type", "message", "details", "extra_info"}


async def test_nobody_sees_or_changes_what_is_anothers(people: People) -> None:
    api, ada, bob = people
    name = "the same name"
    running_one = await post(ada, 1, prompt_id=name)
    await claim_next(api)
    waiting = await post(ada, 2)
    await post(bob, 3, prompt_id="other")
    assert ids((await bob.get("/queue")).json()) == ([], ["other"])
    assert (await bob.get("/prompt")).json()["exec_info"]["queue_remaining"] == 1
    assert (await bob.get("/api/jobs")).json()["pagination"]["total"] == 1
    for one in (running_one, waiting):
        assert (await bob.get(f"/api/jobs/{one}")).status_code == 404
        assert (await bob.get(f"/history/{one}")).json() == {}
        assert (await bob.post(f"/api/jobs/{one}/cancel")).json() == {"cancelled": False}
        await bob.post("/interrupt", json={"prompt_id": one})
    await bob.post("/interrupt")
    await bob.post("/api/jobs/cancel", json={"job_ids": [waiting]})
    await bob.post("/queue", json={"delete": [name, waiting], "clear": True})
    assert ids((await ada.get("/queue")).json()) == ([name], [waiting])
    assert ids((await bob.get("/queue")).json()) == ([], [])
    # The same name of bob's is another job.
    await post(bob, 4, prompt_id=name)
    await bob.post("/queue", json={"delete": [name]})
    assert ids((await ada.get("/queue")).json()) == ([name], [waiting])
    await ada.post("/interrupt")
    await api.stores.jobs.request_cancel(waiting)
    job_id = await api.stores.jobs.by_prompt("ada", name)
    assert job_id is not None
    job = await api.stores.jobs.get(job_id)
    assert job is not None and job.status is JobStatus.CANCELING
