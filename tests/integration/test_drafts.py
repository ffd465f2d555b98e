"""Drafts of what people save and run in the editor, over the running API and on a real Redis."""

import asyncio
import copy
import gzip
import json
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import orjson
import pytest

from comfy_fleet.adapters.redis.seen_graphs import RedisSeenGraphs
from comfy_fleet.adapters.redis.userdata import RedisUserData
from comfy_fleet.bootstrap import Stores
from comfy_fleet.domain.errors import StoreDown
from comfy_fleet.domain.graphs.editor_graph import stamped
from comfy_fleet.domain.graphs.stored import NewVersion, WorkflowContent
from comfy_fleet.domain.user_data import UserFile
from comfy_fleet.ports.editor import KEPT_S, MOST_SEEN, UNREAD, SavedGraph
from comfy_fleet.ports.userdata import UserData
from comfy_fleet.services.draft_names import editor_name
from comfy_fleet.services.drafts import MAX_EDITOR_BYTES, MOST_RUNS_EACH, Drafts
from comfy_fleet.services.user_files import UserFiles
from tests.factories import new_job
from tests.fleet import until
from tests.integration.api_kit import Api, running

GRAPHS: dict[str, dict[str, Any]] = json.loads(
    gzip.decompress((Path(__file__).parents[1] / "data" / "editor_graphs.json.gz").read_bytes())
)
OLD, NEW = GRAPHS["plain 0.3.64"], GRAPHS["subgraph 0.33.0"]
PROMPT: dict[str, Any] = OLD["prompt"]


@pytest.fixture
async def api(redis_port: int, redis: object, tmp_path: Path) -> AsyncIterator[Api]:
    async with running(redis_port, tmp_path) as api:
        await api.add_node(info=False)
        yield api


async def run(api: Api, ui: object, prompt: dict[str, Any] = PROMPT) -> str:
    """Run a graph as the editor does; return the job."""
    body = {"prompt": prompt, "client_id": "c", "extra_data": {"extra_pnginfo": {"workflow": ui}}}
    answer = await api.client.post("/prompt", json=body)
    assert answer.status_code == 200, answer.text
    await api.deps.drafts.settled()
    return str(answer.json()["prompt_id"])


def text(ui: object) -> bytes:
    return json.dumps(ui).encode()


async def test_a_save_and_then_a_run_make_a_draft(api: Api) -> None:
    await api.deps.drafts.look_at("local", "My Workflow.json", text(OLD["saved"]))
    assert await api.stores.workflows.draft("local", "my_workflow") is None
    waiting = await api.deps.drafts.unrun("local", "my_workflow")
    assert waiting is not None and waiting.file == "My Workflow.json"
    job = await run(api, OLD["run"])
    draft = await api.stores.workflows.draft("local", "my_workflow")
    assert draft is not None
    assert (draft.graph, draft.ui, draft.job_id) == (PROMPT, OLD["run"], job)
    assert draft.editor_name == "My Workflow"
    assert await api.deps.drafts.unrun("local", "my_workflow") is None


async def test_a_run_and_then_a_save_make_a_draft_although_the_seed_was_drawn_anew(api: Api) -> None:
    job = await run(api, OLD["run"])
    await api.deps.drafts.look_at("local", "a/b.app.json", text(OLD["saved_after"]))
    draft = await api.stores.workflows.draft("local", "a_b")
    assert draft is not None
    assert (draft.graph, draft.ui, draft.job_id) == (PROMPT, OLD["saved_after"], job)


async def test_a_change_since_the_run_makes_none_and_keeps_the_draft_before(api: Api) -> None:
    await run(api, OLD["run"])
    await api.deps.drafts.look_at("local", "w.json", text(OLD["saved"]))
    other = copy.deepcopy(OLD["saved"])
    other["nodes"][2]["widgets_values"] = ["elsewhere"]
    await api.deps.drafts.look_at("local", "w.json", text(other))
    draft = await api.stores.workflows.draft("local", "w")
    assert draft is not None and draft.ui == OLD["saved"]
    waiting = await api.deps.drafts.unrun("local", "w")
    assert waiting is not None and waiting.saved_at > draft.saved_at
    # What ran before is no draft of the file any more, but the same again is.
    await run(api, OLD["run"])
    assert (await api.stores.workflows.draft("local", "w")) == draft


async def test_one_run_makes_drafts_of_all_files_that_hold_the_graph(api: Api) -> None:
    for file in ("a.json", "b.json"):
        await api.deps.drafts.look_at("local", file, text(NEW["saved"]))
    await run(api, NEW["run"])
    assert set(await api.stores.workflows.drafts("local")) == {"a", "b"}


async def test_what_others_save_and_run_is_none_of_ones_own(api: Api) -> None:
    await api.deps.drafts.look_at("ann", "w.json", text(OLD["saved"]))
    await run(api, OLD["run"])
    assert await api.stores.workflows.draft("ann", "w") is None
    assert await api.stores.workflows.draft("local", "w") is None


async def test_a_draft_is_based_on_the_version_that_was_opened(api: Api) -> None:
    version = "sha256:" + "ab" * 32
    await run(api, stamped(OLD["run"], "w", version))
    await api.deps.drafts.look_at("local", "w.json", text(stamped(OLD["saved"], "w", version)))
    await api.deps.drafts.look_at("local", "other.json", text(stamped(OLD["saved"], "w", version)))
    for name, base in (("w", version), ("other", "")):
        draft = await api.stores.workflows.draft("local", name)
        assert draft is not None and draft.base_version == base


async def test_two_files_that_become_one_id_are_both_known(api: Api) -> None:
    await run(api, OLD["run"])
    await save(api, "My Flow.json", OLD["saved"])
    await save(api, "my_flow.json", OLD["saved"])
    assert await api.deps.drafts.files("local", "my_flow") == ["my_flow.json", "My Flow.json"]
    draft = await api.stores.workflows.draft("local", "my_flow")
    assert draft is not None and draft.editor_name == "My Flow"  # the first keeps it


async def save(api: Api, file: str, ui: object) -> None:
    """Save a graph as the editor does."""
    path = f"/userdata/workflows%2F{quote(file)}?overwrite=true"
    answer = await api.client.post(path, content=text(ui))
    assert answer.status_code == 200, answer.text
    await api.deps.drafts.settled()


async def move(api: Api, file: str, to: str) -> None:
    answer = await api.client.post(
        f"/userdata/workflows%2F{quote(file)}/move/workflows%2F{quote(to)}?overwrite=true"
    )
    assert answer.status_code == 200, answer.text
    await api.deps.drafts.settled()


def other_prompt(text_: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return a changed graph, as it is saved, and as it runs."""
    saved = copy.deepcopy(OLD["saved"])
    saved["nodes"][2]["widgets_values"] = [text_]
    prompt = copy.deepcopy(PROMPT)
    next(iter(prompt.values()))["_meta"] = {"title": text_}
    return saved, prompt


@pytest.mark.parametrize("published", [False, True])
async def test_a_file_that_is_renamed_within_its_id_takes_its_draft_along(api: Api, published: bool) -> None:
    await save(api, "Red Fox.json", OLD["saved"])
    await run(api, OLD["saved"])
    draft = await api.stores.workflows.draft("local", "red_fox")
    assert draft is not None and draft.editor_name == "Red Fox"
    if published:
        content = WorkflowContent(graph=draft.graph, manifest={})
        new = NewVersion(content=content, author="local", editor_name="Red Fox")
        await api.stores.workflows.publish("red_fox", new, expected=None)
    await move(api, "Red Fox.json", "red-fox.json")
    await move(api, "red-fox.json", "red fox.json")
    assert await api.deps.drafts.files("local", "red_fox") == ["red fox.json"]
    changed, prompt = other_prompt("elsewhere")
    await save(api, "red fox.json", changed)
    await run(api, changed, prompt)
    draft = await api.stores.workflows.draft("local", "red_fox")
    assert draft is not None and (draft.editor_name, draft.graph) == ("red fox", prompt)
    assert await api.deps.drafts.unrun("local", "red_fox") is None
    body = {"name": "RED FOX", "graph": PROMPT, "ui": OLD["saved"]}
    taken = await api.client.post("/api/v1/drafts", json=body)
    assert taken.status_code == 409, taken.text  # while "red fox" is there


async def test_a_folder_that_is_moved_takes_its_drafts_along(api: Api) -> None:
    await run(api, OLD["run"])
    for file in ("cats/red.json", "cats/deep/blue.json", "cats/away.json"):
        answer = await api.client.post(f"/userdata/workflows%2F{quote(file, '')}", json=OLD["saved"])
        assert answer.status_code == 200
    await api.client.post("/userdata/workflows%2Fdogs%2Fplain.json", json={})
    await api.deps.drafts.settled()
    assert set(await api.stores.workflows.drafts("local")) == {"cats_red", "cats_deep_blue", "cats_away"}
    moved = await api.client.post("/userdata/workflows%2Fcats%2Faway.json/move/elsewhere%2Faway.json")
    assert moved.status_code == 200
    moved = await api.client.post("/userdata/workflows%2Fcats/move/workflows%2Fdogs")  # there is one already
    assert moved.status_code == 200, moved.text
    await api.deps.drafts.settled()
    assert set(await api.stores.workflows.drafts("local")) == {"dogs_cats_red", "dogs_cats_deep_blue"}
    draft = await api.stores.workflows.draft("local", "dogs_cats_red")
    assert draft is not None and draft.editor_name == "dogs/cats/red"
    assert [one.file for one in await api.deps.drafts.all_unrun("local")] == ["dogs/plain.json"]
    await api.client.post("/userdata/workflows%2Fdogs/move/backup")
    await api.deps.drafts.settled()
    assert set(await api.stores.workflows.drafts("local")) == set()


async def test_a_renamed_file_takes_its_draft_to_another_id_and_a_deleted_one_leaves_none(api: Api) -> None:
    await save(api, "cat.json", OLD["saved"])
    await run(api, OLD["saved"])
    await move(api, "cat.json", "dog.json")
    assert set(await api.stores.workflows.drafts("local")) == {"dog"}
    answer = await api.client.delete("/userdata/workflows%2Fdog.json")
    assert answer.status_code == 204, answer.text
    assert await api.stores.workflows.drafts("local") == {}
    assert await api.deps.drafts.unrun("local", "dog") is None


DEEP = b"[" * 100_000 + b"]" * 100_000


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"null",
        b"\xff\xfe{}",
        b'{"nodes": 1}',
        b'{"nodes": [{"id": {}}]}',
        DEEP,
        b'{"nodes": [' + DEEP + b"]}",
        b"x" * (MAX_EDITOR_BYTES + 1),
        b'{"nodes": [' + b"1," * 2_100_000 + b"1]}",
    ],
    ids=["empty", "cut", "null", "binary", "shape", "id", "deep", "deep node", "large", "many"],
)
async def test_a_save_of_anything_is_taken_and_is_no_graph(api: Api, content: bytes) -> None:
    await api.deps.drafts.look_at("local", "w.json", content)
    waiting = await api.deps.drafts.unrun("local", "w")
    assert waiting is not None and not waiting.signature


@pytest.mark.parametrize("file", ["w.txt", "", ".json", "w\n.json", "w" * 300 + ".json", "\ud800.json"])
async def test_other_files_are_passed_over(api: Api, file: str) -> None:
    await api.deps.drafts.look_at("local", file, text(OLD["saved"]))
    assert await api.stores.redis.keys("*editor*") == []


@pytest.mark.parametrize("ui", [None, [], {}, {"nodes": 7}, {"nodes": [7]}, {"nodes": [], "links": 7}])
async def test_a_run_with_anything_beside_it_is_a_run(api: Api, ui: object) -> None:
    await run(api, ui)
    assert await api.stores.workflows.drafts("local") == {}


async def test_a_save_is_none_the_worse_for_a_store_that_is_away(stores: Stores) -> None:
    class Away(RedisSeenGraphs):
        async def save(self, owner: str, saved: SavedGraph) -> str | None:
            raise StoreDown("away")

    drafts = Drafts(Away(stores.redis), stores.workflows, stores.jobs, stores.userdata, clock=lambda: 1.0)
    await drafts.look_at("ann", "w.json", text(OLD["saved"]))
    await drafts.saved("ann", "w.json")
    await drafts.settled()
    assert await stores.workflows.drafts("ann") == {}


async def test_of_a_save_and_a_run_at_once_at_least_one_sees_the_other(stores: Stores) -> None:
    drafts = Drafts(
        RedisSeenGraphs(stores.redis), stores.workflows, stores.jobs, stores.userdata, clock=lambda: 1000.0
    )
    for number in range(20):
        owner = f"ann{number}"
        job = new_job(PROMPT, owner=owner)
        await stores.jobs.submit(job, idempotency=None, depth_limit=100)
        drafts.ran(owner, job.id, {"extra_pnginfo": {"workflow": OLD["run"]}})
        await asyncio.gather(drafts.look_at(owner, "w.json", text(OLD["saved"])), drafts.settled())
        draft = await stores.workflows.draft(owner, "w")
        assert draft is not None and draft.job_id == job.id


async def test_what_is_seen_is_limited_and_forgotten(stores: Stores) -> None:
    seen = RedisSeenGraphs(stores.redis)
    for number in range(MOST_SEEN + 5):
        await seen.save(
            "ann", SavedGraph(file=f"{number}.json", workflow="w", signature="s", saved_at=number)
        )
        await seen.run("ann", f"s{number}", "j", number)
    assert [one.saved_at for one in await seen.saves("ann")] == [
        float(n) for n in range(MOST_SEEN + 4, 4, -1)
    ]
    assert await seen.run("ann", "s", "j", 50.0)
    late = SavedGraph(file="late.json", workflow="w", signature="s0", saved_at=200.0)
    assert await seen.save("ann", late) is None  # the oldest runs are gone
    assert await seen.save("ann", SavedGraph(**{**vars(late), "signature": "s104"})) == "j"
    assert await seen.run("ann", "s", "j", 2 * KEPT_S) == []
    assert (
        await seen.save("ann", SavedGraph(**{**vars(late), "signature": "s104", "saved_at": 2 * KEPT_S}))
        is None
    )
    keys = await stores.redis.keys("*editor*")
    assert len(keys) == 2
    for key in keys:
        assert 0 < await stores.redis.ttl(key) <= KEPT_S


async def test_broken_memories_are_passed_over(stores: Stores) -> None:
    seen = RedisSeenGraphs(stores.redis)
    keys = stores.redis.keyspace
    for field, raw in (("a", b"{"), ("b", b"{}"), ("c", b'{"at": "x"}'), ("d", b'{"at": 1}')):
        await stores.redis.hset(keys.editor_saves("ann"), field, raw)
        await stores.redis.hset(keys.editor_runs("ann"), field, raw)
    await stores.redis.hset(keys.editor_saves("ann"), b"\xff", orjson.dumps({"at": 1}))
    assert await seen.saves("ann") == []
    for name in "abcd":
        assert await seen.save("ann", SavedGraph(file="w", workflow="w", signature=name, saved_at=1)) is None


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("a.json", "a"),
        ("a/B c.JSON", "a/B c"),
        ("a.app.json", "a"),
        ("a.txt", ""),
        (".json", ""),
        ("json", ""),
    ],
)
def test_the_editor_calls_a_graph_as_its_file(file: str, name: str) -> None:
    assert editor_name(file) == name


async def test_the_editor_s_own_requests_make_a_draft(api: Api) -> None:
    """Save and run as the editor does over HTTP."""
    saved = await api.client.post("/userdata/workflows%2FMy%20Workflow.json", content=text(NEW["saved"]))
    assert saved.status_code == 200, saved.text
    await run(api, NEW["run"], NEW["prompt"])
    assert (await api.client.get("/api/v1/workflows/my_workflow/draft")).status_code == 200
    draft = await api.stores.workflows.draft("local", "my_workflow")
    assert draft is not None and draft.graph == NEW["prompt"]
    moved = await api.client.post(
        "/api/userdata/workflows%2FMy%20Workflow.json/move/workflows%2Fother.json",
        params={"overwrite": "true"},
    )
    assert moved.status_code == 200, moved.text
    await api.deps.drafts.settled()
    draft = await api.stores.workflows.draft("local", "other")
    assert draft is not None and draft.ui == NEW["run"]


def beside(stores: Stores, files: UserData | None = None) -> Drafts:
    """Return another process's."""
    seen = RedisSeenGraphs(stores.redis)
    return Drafts(seen, stores.workflows, stores.jobs, files or stores.userdata, clock=time.time)


class Slow(RedisUserData):
    """Reads when it is told to."""

    def __init__(self, stores: Stores) -> None:
        super().__init__(stores.redis, most_bytes=10**9)
        self.gate = asyncio.Event()
        self.reads: list[tuple[str, str]] = []

    async def read(self, owner: str, path: str) -> tuple[UserFile, bytes] | None:
        self.reads.append((owner, path))
        await self.gate.wait()
        return await super().read(owner, path)


async def test_a_save_waits_for_nobody_and_its_draft_is_made_when_there_is_room(stores: Stores) -> None:
    slow = Slow(stores)
    drafts = beside(stores, slow)
    files = UserFiles(slow, drafts)
    for number in range(20):
        await files.save("ann", f"workflows/a{number}.json", text(OLD["saved"]), overwrite=True)
        await files.save("ann", "workflows/a0.json", text(OLD["saved"]), overwrite=True)
    await files.save("bob", "workflows/b.json", text(OLD["saved"]), overwrite=True)
    # They are known at once, and nobody is offered an older draft without a word.
    assert {one.signature for one in await RedisSeenGraphs(stores.redis).saves("ann")} == {UNREAD}
    await until(lambda: len(slow.reads) == 2, what="two are looked at")
    assert {owner for owner, _ in slow.reads} == {"ann", "bob"}  # who has many is not before who has one
    slow.gate.set()
    job = new_job(PROMPT, owner="ann")
    await stores.jobs.submit(job, idempotency=None, depth_limit=100)
    drafts.ran("ann", job.id, {"extra_pnginfo": {"workflow": OLD["run"]}})
    await drafts.settled()
    assert set(await stores.workflows.drafts("ann")) == {f"a{number}" for number in range(20)}
    assert len(slow.reads) <= 22  # each once, but for one that was saved anew while it was read


async def test_who_asks_for_a_draft_waits_for_the_save_that_is_looked_at(stores: Stores) -> None:
    slow = Slow(stores)
    drafts = beside(stores, slow)
    job = new_job(PROMPT, owner="ann")
    await stores.jobs.submit(job, idempotency=None, depth_limit=100)
    drafts.ran("ann", job.id, {"extra_pnginfo": {"workflow": OLD["run"]}})
    await drafts.settled()
    await UserFiles(slow, drafts).save("ann", "workflows/w.json", text(OLD["saved"]), overwrite=True)
    asked = asyncio.create_task(drafts.unrun("ann", "w"))
    await until(lambda: bool(slow.reads), what="it is looked at")
    slow.gate.set()
    assert await asked is None
    assert await stores.workflows.draft("ann", "w") is not None


async def test_a_save_whose_process_was_killed_makes_a_draft_all_the_same(stores: Stores) -> None:
    slow = Slow(stores)
    killed = beside(stores, slow)
    await UserFiles(slow, killed).save("ann", "workflows/w.json", text(OLD["saved"]), overwrite=True)
    other = beside(stores)
    job = new_job(PROMPT, owner="ann")
    await stores.jobs.submit(job, idempotency=None, depth_limit=100)
    other.ran("ann", job.id, {"extra_pnginfo": {"workflow": OLD["run"]}})
    await other.settled()
    await other.unrun("ann", "w")
    assert await stores.workflows.draft("ann", "w") is not None
    slow.gate.set()
    await killed.settled()


async def test_one_owners_runs_leave_room_for_others(
    stores: Stores, caplog: pytest.LogCaptureFixture
) -> None:
    drafts = beside(stores)
    for number in range(MOST_RUNS_EACH + 1):
        drafts.ran("ann", f"j{number}", {"extra_pnginfo": {"workflow": OLD["run"]}})
    drafts.ran("bob", "j", {"extra_pnginfo": {"workflow": OLD["run"]}})
    await drafts.settled()
    passed_over = [one for one in caplog.records if "too many wait" in one.message]
    assert [vars(one)["owner"] for one in passed_over] == ["ann"]
