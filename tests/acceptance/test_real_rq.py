"""RQ's own client on a fleet whose node is a real ComfyUI."""

import time
from collections.abc import Iterator
from typing import Any

import httpx
import orjson
import pytest
import redis as sync_redis
from rq import Queue
from rq.command import send_stop_job_command
from rq.job import Job
from rq.serializers import JSONSerializer

from tests.acceptance.up import Up, start_fleet, stop_fleet
from tests.comfyui_server import ComfyServer

pytestmark = [pytest.mark.comfyui, pytest.mark.timeout(240)]

GRAPH: dict[str, Any] = {
    "1": {
        "class_type": "EmptyImage",
        "inputs": {"width": 64, "height": 64, "batch_size": 1, "color": 7},
        "_meta": {"title": "$width $height $count.batch_size"},
    },
    "2": {"class_type": "ImageBlur", "inputs": {"image": ["1", 0], "blur_radius": 31, "sigma": 10.0}},
    "3": {"class_type": "SaveImage", "inputs": {"images": ["2", 0], "filename_prefix": "shop/pic"}},
}


@pytest.fixture(scope="module")
def up(comfyui_server: ComfyServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    folder = tmp_path_factory.mktemp("rq")
    made = folder / "workflows" / "blur"
    made.mkdir(parents=True)
    (made / "workflow.json").write_bytes(orjson.dumps(GRAPH))
    env = {"FLEET_WORKFLOWS": str(folder / "workflows")}
    fleet = start_fleet(folder / "data", "--node", f"real={comfyui_server.url}", env=env)
    yield fleet
    stop_fleet(fleet)


@pytest.fixture
def queue(up: Up) -> Iterator[Queue]:
    with sync_redis.Redis(unix_socket_path=str(next(up.data.rglob("redis.sock")))) as connection:
        yield Queue("fleet", connection=connection, serializer=JSONSerializer)


def becomes(job: Job, *statuses: str) -> str:
    deadline = time.monotonic() + 120
    while (status := str(job.get_status().value)) not in statuses:
        assert time.monotonic() < deadline, status
        time.sleep(0.05)
    return status


def test_a_picture_comes_back_as_a_return_value(queue: Queue) -> None:
    job = queue.enqueue("comfy_fleet.run", kwargs={"workflow": "blur", "params": {"width": 96}})
    assert becomes(job, "finished", "failed") == "finished", job.latest_result()
    value = job.return_value()
    assert value is not None
    (output,) = value["outputs"]
    assert output["content_type"] == "image/png"
    picture = httpx.get(output["url"], timeout=30).content
    assert picture[:4] == b"\x89PNG" and picture[16:20] == (96).to_bytes(4, "big")
    assert job.get_meta()["progress"]["value"] == 1


def test_a_run_is_stopped_by_rqs_command(queue: Queue) -> None:
    large = {"width": 1024, "height": 1024, "count": 64}
    job = queue.enqueue("comfy_fleet.run", kwargs={"workflow": "blur", "params": large})
    becomes(job, "started")
    job = Job.fetch(job.id, connection=queue.connection, serializer=JSONSerializer)
    send_stop_job_command(queue.connection, job.id, JSONSerializer)
    assert becomes(job, "stopped", "finished", "failed") == "stopped"
