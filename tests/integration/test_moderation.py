"""The moderation hook: what is asked, what is refused, and what nobody gets to see."""

import asyncio
import base64
import io
import json
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image

from comfy_fleet.domain.jobs.job import JobStatus
from comfy_fleet.domain.people import People, Tenant
from tests.children import mortal
from tests.fleet import until
from tests.integration.api_kit import code
from tests.integration.sharing_kit import Sharing, sharing
from tests.integration.test_input_urls import graph, png, uri
from tests.web_site import Site, page, site

ROOT = Path(__file__).parents[2]


class Hook:
    """Who judges: keeps the questions; the test says what the answers are."""

    def __init__(self, web: Site) -> None:
        self._web = web
        self.questions: list[dict[str, Any]] = []
        self.says: Callable[[dict[str, Any]], dict[str, Any]] = lambda _: {"allowed": True}
        self.down = False
        web.pages["/judge"] = self

    async def __call__(self, writer: asyncio.StreamWriter) -> None:
        question = json.loads(self._web.bodies[-1])
        self.questions.append(question)
        if self.down:
            await page(status="500 Broken")(writer)
            return
        await page(json.dumps(self.says(question)).encode())(writer)

    def stages(self) -> list[str]:
        return [one["stage"] for one in self.questions]


@asynccontextmanager
async def judged(
    redis_port: int, folder: Path, manifest: str = "", **settings: Any
) -> AsyncIterator[tuple[Sharing, Hook]]:
    async with AsyncExitStack() as stack:
        web = await stack.enter_async_context(site())
        made = {"moderation_url": web.url("/judge"), "moderation_s": 5.0, **settings}
        world = await stack.enter_async_context(
            sharing(
                redis_port, folder, "g1", manifest=manifest, api={"fetch_allow": "127.0.0.1", **made}, **made
            )
        )
        yield world, Hook(web)


def refuse(stage: str) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda question: {"allowed": question["stage"] != stage, "reason": "not here\x1b"}


async def test_what_is_asked_before_and_after(redis_port: int, redis: Any, tmp_path: Path) -> None:
    async with judged(redis_port, tmp_path) as (world, hook):
        picture = png(9)
        job = await world.done(await world.api.submit(graph(uri(picture))))
        assert hook.stages() == ["prompt", "output"]
        asked, made = hook.questions
        assert (asked["owner"], asked["tenant"], asked["workflow"], asked["job"]) == (
            "local",
            "default",
            None,
            None,
        )
        (file,) = asked["files"]
        assert base64.b64decode(file["data"]) == picture
        assert (file["node_id"], file["input"], file["content_type"]) == ("0", "image", "image/png")
        assert {"node_id": "1", "input": "filename_prefix", "text": "out"} in asked["texts"]
        assert made["job"] == job["id"]
        (output,) = job["outputs"]
        assert not output["withheld"]
        content = await world.client.get(f"/api/v2/assets/{output['id']}/content")
        assert base64.b64decode(made["files"][0]["data"])[:8] == content.content[:8]
        await world.done(await world.submit())
        stored = next(one for one in hook.questions[2:] if one["stage"] == "prompt")
        assert (stored["workflow"], stored["params"]["seed"]) == ("noise", 5)


async def test_a_refused_prompt_is_no_job(redis_port: int, redis: Any, tmp_path: Path) -> None:
    async with judged(redis_port, tmp_path) as (world, hook):
        hook.says = refuse("prompt")
        for face, body in (
            ("/api/v2/jobs", {"workflow": graph(uri(png()))}),
            ("/api/v1/workflows/noise/jobs", {"params": {"seed": 1}}),
        ):
            answer = await world.client.post(face, json=body)
            assert code(answer) == (422, "content_refused")
            assert "this is not allowed here: not here" in answer.json()["error"]["message"]
            assert "\x1b" not in answer.text
        answer = await world.client.post("/prompt", json={"prompt": graph(uri(png()))})
        count = world.api.deps.registry.get_sample_value
        assert count("fleet_judgements_total", {"stage": "prompt", "outcome": "refused"}) == 3
        assert answer.status_code in (400, 422)
        assert "not allowed here" in answer.text
        assert (await world.client.get("/api/v2/jobs")).json()["jobs"] == []
        asked = len(hook.questions)
        broken = await world.client.post("/api/v2/jobs", json={"workflow": {"1": {"class_type": "Nope"}}})
        assert broken.status_code == 422
        assert len(hook.questions) == asked, "nobody is asked about what can't run"


async def test_withheld_pictures_are_nowhere(redis_port: int, redis: Any, tmp_path: Path) -> None:
    async with judged(redis_port, tmp_path) as (world, hook):
        hook.says = refuse("output")
        job = await world.done(await world.submit())
        assert job["status"] == "succeeded"
        assert [one["withheld"] for one in job["outputs"]] == [True, True]
        real = {base64.b64decode(one["files"][0]["data"]) for one in hook.questions if one["job"]}
        assert len(real) >= 1
        faces = [f"/api/v2/assets/{one['id']}/content" for one in job["outputs"]]
        faces += [one["url"] for one in job["outputs"]]
        saved = next(one for one in job["outputs"] if not one["temporary"])
        view = f"/view?filename={saved['name']}&subfolder=art&type=output"
        for url in (*faces, view, f"{view}&preview=webp"):
            answer = await world.client.get(url)
            assert answer.status_code == 200, answer.text
            assert answer.content not in real
            assert Image.open(io.BytesIO(answer.content)).getpixel((0, 0)) in (128, (128, 128, 128))
        shown = (await world.client.get(f"/api/v2/jobs/{job['id']}")).json()
        assert all(one["withheld"] for one in shown["outputs"])
        stored = [
            path.read_bytes() for path in (world.fleet.settings.data / "files").rglob("*") if path.is_file()
        ]
        assert stored
        assert not real & set(stored), "the fleet keeps nothing of it"
        again = await world.submit()
        assert again["cached"]
        assert all(one["withheld"] for one in (await world.job(again))["outputs"])


async def test_nobody_watches_a_picture_that_is_not_judged(
    redis_port: int, redis: Any, tmp_path: Path
) -> None:
    async with judged(redis_port, tmp_path) as (world, _):
        job = await world.submit()
        record = await world.fleet.stores.jobs.get(job["id"])
        assert record is not None
        assert record.moderation == "closed default"
        async with world.client.stream("GET", f"/api/v2/jobs/{job['id']}/events") as stream:
            types = [line async for line in stream.aiter_lines() if line.startswith("event:")]
        assert types
        assert not any("preview" in line for line in types)


@pytest.mark.parametrize("mode", ["closed", "open", "off"])
async def test_while_nobody_answers(
    redis_port: int, redis: Any, tmp_path: Path, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("comfy_fleet.services.moderation.OUTPUT_GAP_S", 0.01)
    async with judged(redis_port, tmp_path, moderation=mode) as (world, hook):
        early = await world.submit()
        await world.done(early)
        hook.down = True
        hook.questions.clear()
        answer = await world.client.post("/api/v1/workflows/noise/jobs", json={"params": {"seed": 6}})
        if mode == "closed":
            assert code(answer) == (503, "moderation_unavailable")
            assert answer.headers["Retry-After"] == "5"
            hook.says, hook.down = _down_for_outputs(hook), False
            answer = await world.client.post("/api/v1/workflows/noise/jobs", json={"params": {"seed": 6}})
        job = await world.done(answer.json())
        assert {one["withheld"] for one in job["outputs"]} == {mode == "closed"}
        if mode == "off":
            assert hook.questions == []
        count = world.api.deps.registry.get_sample_value
        outcome = {"closed": "unanswered_refused", "open": "unanswered_allowed", "off": "unanswered_allowed"}[
            mode
        ]
        found = count("fleet_judgements_total", {"stage": "prompt", "outcome": outcome})
        assert found == (None if mode == "off" else 1)


def _down_for_outputs(hook: Hook) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda question: {"allowed": True} if question["stage"] == "prompt" else {"nonsense": 1}


async def test_tenants_have_their_own_rule(redis_port: int, redis: Any, tmp_path: Path) -> None:
    async with judged(redis_port, tmp_path, moderation="off") as (world, hook):
        ring = world.api.deps.keys.ring
        await world.done(await world.submit())
        assert hook.questions == []
        ring.take(People(tenants={"default": Tenant(name="default", moderation="closed")}))
        hook.says = refuse("prompt")
        answer = await world.client.post("/api/v1/workflows/noise/jobs", json={"params": {"seed": 7}})
        assert code(answer) == (422, "content_refused")


async def test_tenants_have_their_own_classes(redis_port: int, redis: Any, tmp_path: Path) -> None:
    async with judged(redis_port, tmp_path, moderation="off") as (world, _):
        ring = world.api.deps.keys.ring
        ring.take(People(tenants={"default": Tenant(name="default", deny_classes="ImageAddNoise")}))
        answer = await world.client.post("/api/v1/workflows/noise/jobs", json={"params": {"seed": 7}})
        assert code(answer) == (422, "invalid_workflow")
        assert "fleet tenant set default --deny-classes" in answer.text
        allowing = Tenant(name="default", allow_classes="LoadImage,SaveImage")
        ring.take(People(tenants={"default": allowing}))
        answer = await world.client.post("/api/v1/workflows/noise/jobs", json={"params": {"seed": 7}})
        assert code(answer) == (422, "invalid_workflow")
        await world.done(await world.api.submit(graph(uri(png()))))
        unknown = Tenant(name="default", allow_classes="@of-a-newer-version")
        ring.take(People(tenants={"default": unknown}))
        answer = await world.client.post("/api/v2/jobs", json={"workflow": graph(uri(png()))})
        assert code(answer) == (422, "invalid_workflow")


async def test_a_fetched_file_is_judged_before_a_node_gets_it(
    redis_port: int, redis: Any, tmp_path: Path
) -> None:
    async with judged(redis_port, tmp_path) as (world, hook), site() as web:
        web.pages["/a.png"] = page(png(3))
        hook.says = refuse("input")
        job = await world.done(await world.api.submit(graph(web.url("/a.png"))), JobStatus.FAILED)
        assert job["error"]["code"] == "content_refused"
        assert hook.stages() == ["prompt", "input"]
        assert world.runs == 0


@pytest.fixture
async def words() -> AsyncIterator[str]:
    """The example, as a process; yields its URL."""
    argv = [sys.executable, str(ROOT / "scripts" / "moderate_words.py"), "--port", "0"]
    with subprocess.Popen(mortal(argv), stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        line = await asyncio.to_thread(process.stdout.readline)
        yield line.split()[-1]
        process.kill()


@pytest.mark.parametrize(
    ("question", "allowed"),
    [
        ({"texts": [{"text": "A hedgehog baking a cake"}]}, True),
        ({"texts": [{"text": "a BLOODY hedgehog"}]}, False),
        ({"texts": [{"text": "begun, winery, skilled"}]}, True),
        ({"texts": [{"text": "a gu\u200bn"}]}, False),
        ({"texts": [{"text": "a dead-body"}]}, False),
        ({"workflow": "kids", "params": {"prompt": "a fox", "seed": 1}, "texts": [{"text": "blood"}]}, True),
        ({"workflow": "kids", "params": {"prompt": "a knife"}, "texts": []}, False),
        ({"workflow": "kids", "params": {"prompt": "a fox", "avoid": "blood"}, "texts": []}, True),
    ],
)
async def test_the_word_list(words: str, question: dict[str, Any], allowed: bool) -> None:
    async with httpx.AsyncClient() as client:
        answer = await client.post(words, json={"stage": "prompt", "files": [], **question})
    assert answer.json()["allowed"] is allowed


async def test_the_example_answers_the_fleet(redis_port: int, redis: Any, tmp_path: Path, words: str) -> None:
    async with judged(redis_port, tmp_path, moderation_url=words) as (world, _):
        text = {"class_type": "PrimitiveStringMultiline", "inputs": {"value": "a loaded gun"}}
        shows = {"class_type": "PreviewAny", "inputs": {"source": ["8", 0]}}
        answer = await world.client.post("/api/v2/jobs", json={"workflow": {"8": text, "9": shows}})
        assert code(answer) == (422, "content_refused")
        assert "the word 'gun'" in answer.json()["error"]["message"]
        job = await world.done(await world.submit())
        await until(lambda: job["status"] == "succeeded", what="the rest goes on")
