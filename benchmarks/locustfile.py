"""What people and programs do to a fleet, for locust. ``scripts/load`` runs it, and so does ``locust -f``.

Two kinds of users, half each: an application that submits graphs over Comfy API v2 and asks for them every
half second, and a program that was written for one ComfyUI and speaks its own interface. Either waits for its
picture, reads its bytes, pauses, and begins again.

``LOAD_KEY`` is an API key, if the fleet asks for one.
"""

import os
import random
import time
from typing import Any
from uuid import uuid4

from locust import HttpUser, between, events, task

POLL_S = 0.5
PICTURE_S = 300.0
PNG = b"\x89PNG\r\n\x1a\n"


def graph() -> dict[str, Any]:
    """Return a small graph that is never equal to an earlier one, so that nothing is cached."""
    picture = {"width": 64, "height": 64, "batch_size": 1, "color": random.randrange(1 << 24)}
    saved = {"images": ["1", 0], "filename_prefix": f"load-{uuid4().hex[:12]}"}
    return {
        "1": {"class_type": "EmptyImage", "inputs": picture},
        "2": {"class_type": "SaveImage", "inputs": saved},
    }


class FleetUser(HttpUser):
    """What both kinds share."""

    abstract = True
    wait_time = between(0.5, 2.0)

    def on_start(self) -> None:
        if key := os.environ.get("LOAD_KEY"):
            self.client.headers["Authorization"] = f"Bearer {key}"

    def ended(self, began: float, wrong: str = "") -> None:
        """Count a picture, from the submit to its bytes."""
        events.request.fire(
            request_type="job",
            name=f"{type(self).__name__}: submit → picture",
            response_time=(time.monotonic() - began) * 1000,
            response_length=0,
            exception=RuntimeError(wrong) if wrong else None,
            context={},
        )


class Application(FleetUser):
    """Speaks Comfy API v2."""

    @task
    def picture(self) -> None:
        began = time.monotonic()
        answer = self.client.post("/api/v2/jobs", json={"workflow": graph()}, name="POST /api/v2/jobs")
        if answer.status_code != 201:
            self.ended(began, f"submit answered {answer.status_code}")
            return
        job = answer.json()
        while job["status"] in ("queued", "running") and time.monotonic() - began < PICTURE_S:
            time.sleep(POLL_S)
            answer = self.client.get(f"/api/v2/jobs/{job['id']}", name="GET /api/v2/jobs/ID")
            if answer.status_code != 200:
                continue
            job = answer.json()
        if job["status"] != "succeeded" or not job["outputs"]:
            self.ended(began, f"the job is {job['status']}")
            return
        content = self.client.get(job["outputs"][0]["url"], name="GET picture").content
        self.ended(began, "" if content.startswith(PNG) else "no picture came")


class ComfyProgram(FleetUser):
    """Speaks ComfyUI's own interface."""

    @task
    def picture(self) -> None:
        began = time.monotonic()
        answer = self.client.post("/prompt", json={"prompt": graph()}, name="POST /prompt")
        if answer.status_code != 200:
            self.ended(began, f"submit answered {answer.status_code}")
            return
        prompt_id = answer.json()["prompt_id"]
        entry: dict[str, Any] = {}
        while not entry and time.monotonic() - began < PICTURE_S:
            time.sleep(POLL_S)
            answer = self.client.get(f"/history/{prompt_id}", name="GET /history/ID")
            entry = answer.json().get(prompt_id, {}) if answer.status_code == 200 else {}
        images = [image for output in entry.get("outputs", {}).values() for image in output.get("images", ())]
        if not images:
            self.ended(began, "no picture in /history")
            return
        where = {name: images[0][name] for name in ("filename", "subfolder", "type")}
        content = self.client.get("/view", params=where, name="GET /view").content
        self.ended(began, "" if content.startswith(PNG) else "no picture came")
