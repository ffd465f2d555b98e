"""Clients of other ComfyUI services: with this fleet's URL and key in them they run as they are.

Each sends the calls, waits for the words and reads the fields that clients of its kind do.
"""

import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import httpx
import pytest

from tests.acceptance.up import Up, start_fleet, stop_fleet
from tests.acceptance.wire import ANN, BOB, GENERATE

PATIENCE_S = 60.0


@dataclass(frozen=True)
class Service:
    """What a reader puts into an example client."""

    base: str
    key: str


@pytest.fixture(scope="module")
def open_fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    data = tmp_path_factory.mktemp("published") / "data"
    up = start_fleet(data, "--nodes", "2", "--job-seconds", "0.2", env=GENERATE)
    yield Service(up.url, "your-api-key")
    stop_fleet(up)


@pytest.fixture
def keyed_service(keyed: Up) -> Service:
    return Service(keyed.url, ANN)


@pytest.fixture(params=["open_fleet", "keyed_service"])
def service(request: pytest.FixtureRequest) -> Service:
    found: Service = request.getfixturevalue(request.param)
    return found


class ImageClient:
    """The small SDK: submits, then asks ``/api/v1/result`` until it says ``success``."""

    def __init__(self, base_url: str, api_key: str) -> None:
        self.base_url = base_url
        self.headers = {"Authorization": api_key, "Content-Type": "application/json"}

    def generate(self, prompt: str, size: str = "1024x1024", style: str = "kids_cartoon") -> str:
        payload = {"prompt": prompt, "size": size, "style": style}
        answer = httpx.post(f"{self.base_url}/api/v1/generate", json=payload, headers=self.headers)
        answer.raise_for_status()
        task = answer.json()
        assert task["status"] == "queued"
        assert "estimated_wait_time_sec" in task
        return str(task["task_id"])

    def wait_for_result(self, task_id: str, timeout: float = PATIENCE_S) -> str:
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            answer = httpx.get(
                f"{self.base_url}/api/v1/result", params={"task_id": task_id}, headers=self.headers
            )
            answer.raise_for_status()
            result = answer.json()
            if result["status"] == "success":
                return str(result["image_url"])
            if result["status"] == "failed":
                raise RuntimeError(result["error"])
            time.sleep(0.05)
        raise TimeoutError(task_id)


def wait_while(words: tuple[str, ...], url: str, service: Service, **params: str) -> dict[str, Any]:
    """Ask until the status is none of these, as a script's loop does."""
    deadline = time.monotonic() + PATIENCE_S
    while True:
        answer = httpx.get(url, params=params, headers={"Authorization": service.key})
        answer.raise_for_status()
        told: dict[str, Any] = answer.json()
        if told["status"] not in words:
            return told
        assert time.monotonic() < deadline, told
        time.sleep(0.05)


def assert_picture(url: str, service: Service) -> None:
    picture = httpx.get(url, headers={"Authorization": service.key})
    assert picture.status_code == 200
    assert picture.content.startswith(b"\x89PNG")


def test_the_sdk_class_gets_its_picture(service: Service) -> None:
    client = ImageClient(service.base, service.key)
    task_id = client.generate("a hedgehog baking a cake")
    assert_picture(client.wait_for_result(task_id), service)
    job = httpx.get(f"{service.base}/api/v1/jobs/{task_id}", headers={"Authorization": service.key}).json()
    assert job["status"] == "succeeded"  # jobs keep their own words
    assert job["params"]["style"] == "kids_cartoon"


def test_the_script_that_waits_for_completed_gets_its_picture(service: Service) -> None:
    base = f"{service.base}/api/v1"
    assert httpx.get(f"{base}/health").json()["status"] == "healthy"
    answer = httpx.post(f"{base}/generate", json={"prompt": "a fox"}, headers={"Authorization": service.key})
    task = answer.json()
    told = wait_while(("queued", "processing"), f"{base}/status/{task['task_id']}", service)
    assert told["status"] == "completed"
    assert_picture(told["image_url"], service)


@pytest.mark.parametrize("in_path", [False, True])
def test_the_script_that_waits_for_done_gets_its_picture(service: Service, in_path: bool) -> None:
    answer = httpx.post(
        f"{service.base}/api/submit", json={"prompt": "an owl"}, headers={"Authorization": service.key}
    )
    task = answer.json()
    assert task["status"] == "submitted"
    url = f"{service.base}/api/status"
    asked, params = (f"{url}/{task['task_id']}", {}) if in_path else (url, {"task_id": task["task_id"]})
    told = wait_while(("submitted", "pending"), asked, service, **params)
    assert (told["status"], told["error"]) == ("done", None)
    assert_picture(told["image_url"], service)
    assert httpx.get(task["status_url"], headers={"Authorization": service.key}).json()["status"] == "done"


def test_a_bare_upload_is_named_by_its_file(service: Service) -> None:
    answer = httpx.post(
        f"{service.base}/api/v2/assets",
        files={"file": ("face.png", uuid.uuid4().bytes)},
        headers={"Authorization": service.key},
    )
    assert answer.status_code == 201, answer.text
    assert (answer.json()["file_path"], answer.json()["content_type"]) == ("face.png", "image/png")


def test_the_short_routes_ask_for_a_key_and_keep_owners_apart(keyed_service: Service) -> None:
    base, body = keyed_service.base, {"prompt": "a fox"}
    for shown in ({}, {"Authorization": "no-such-key-0123456789"}, {"Authorization": f"Basic {ANN}"}):
        assert httpx.post(f"{base}/api/submit", json=body, headers=shown).status_code == 401
        assert httpx.get(f"{base}/api/status", params={"task_id": "x"}, headers=shown).status_code == 401
    task = httpx.post(f"{base}/api/submit", json=body, headers={"Authorization": ANN}).json()["task_id"]
    for url in (f"{base}/api/status/{task}", f"{base}/api/status?task_id={task}"):
        assert httpx.get(url, headers={"Authorization": BOB}).status_code == 404


def test_without_keys_the_short_routes_refuse_other_sites(open_fleet: Service) -> None:
    body = {"prompt": "a fox"}
    other_site = {"Origin": "https://evil.example"}
    assert httpx.post(f"{open_fleet.base}/api/submit", json=body, headers=other_site).status_code == 403
    other_name = {"Host": "evil.example"}
    assert httpx.get(f"{open_fleet.base}/api/status/x", headers=other_name).status_code == 403


def test_another_default_workflow_says_where_the_style_is(fleet: Up) -> None:
    for path in ("/api/v1/generate", "/api/submit"):
        body = {"prompt": "a fox", "size": "1024x1024", "style": "kids_cartoon"}
        answer = httpx.post(f"{fleet.url}{path}", json=body)
        error = answer.json()["error"]
        assert (answer.status_code, error["code"]) == (422, "invalid_parameter")
        assert (error["details"]["field"], error["details"]["workflows"]) == (
            "style",
            ["qwen_image_kids_animal"],
        )
        assert '"workflow": "qwen_image_kids_animal"' in error["message"]
        assert "FLEET_GENERATE_WORKFLOW" in error["message"]
        named = httpx.post(f"{fleet.url}{path}", json={**body, "workflow": "qwen_image_kids_animal"})
        assert named.status_code == 202, named.text
