"""Drafts and saves that follow moved files and folders, on a real Redis."""

import asyncio
import copy
import gzip
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from comfy_fleet.adapters.redis.seen_graphs import RedisSeenGraphs
from comfy_fleet.adapters.redis.userdata import RedisUserData
from comfy_fleet.bootstrap import Stores
from comfy_fleet.domain.graphs import workflow_names
from comfy_fleet.domain.graphs.stored import Draft, NewVersion, WorkflowContent
from comfy_fleet.domain.user_data import UserTree
from comfy_fleet.ports.editor import MOST_SEEN, UNREAD, FileMove, SavedGraph
from comfy_fleet.services import draft_names
from comfy_fleet.services.drafts import Drafts
from comfy_fleet.services.user_files import UserFiles
from tests.factories import new_job

GRAPHS: dict[str, dict[str, Any]] = json.loads(
    gzip.decompress((Path(__file__).parents[1] / "data" / "editor_graphs.json.gz").read_bytes())
)
GRAPH: dict[str, Any] = GRAPHS["plain 0.3.64"]
PROMPT: dict[str, Any] = GRAPH["prompt"]


def text(ui: object) -> bytes:
    return json.dumps(ui).encode()


def changed(word: str) -> dict[str, Any]:
    """Return another graph than :data:`GRAPH`."""
    ui: dict[str, Any] = copy.deepcopy(GRAPH["saved"])
    ui["nodes"][2]["widgets_values"] = [word]
    return ui


class Editor:
    """What one person does in the editor, with a process of its own behind it."""

    def __init__(self, stores: Stores, seen: RedisSeenGraphs | None = None) -> None:
        self.stores = stores
        self.seen = seen or RedisSeenGraphs(stores.redis)
        self.drafts = Drafts(self.seen, stores.workflows, stores.jobs, stores.userdata, clock=time.time)
        self.files = UserFiles(stores.userdata, self.drafts)

    async def save(self, file: str, ui: object) -> None:
        await self.files.save("ann", f"workflows/{file}", text(ui), overwrite=True)
        await self.drafts.settled()

    async def run(self, ui: object) -> None:
        job = new_job(PROMPT, owner="ann")
        await self.stores.jobs.submit(job, idempotency=None, depth_limit=100)
        self.drafts.ran("ann", job.id, {"extra_pnginfo": {"workflow": ui}})
        await self.drafts.settled()

    async def move(self, source: str, dest: str) -> None:
        await self.files.move("ann", source, dest, overwrite=True)
        await self.drafts.settled()

    async def put(self, name: str, editor_name: str, ui: dict[str, Any] | None = None) -> Draft:
        """Store a draft as the editor's menu does, which saves no file."""
        draft = Draft(graph=PROMPT, ui=ui or changed(editor_name), editor_name=editor_name)
        return await self.stores.workflows.save_draft("ann", name, draft)

    async def names(self) -> dict[str, str]:
        return dict(await self.seen.draft_names("ann"))

    async def saves(self) -> dict[str, SavedGraph]:
        return {one.file: one for one in await self.seen.saves("ann")}


@pytest.fixture
def ann(stores: Stores) -> Editor:
    return Editor(stores)


async def test_a_moved_folder_costs_what_is_known_and_not_what_is_in_it(
    ann: Editor, monkeypatch: pytest.MonkeyPatch
) -> None:
    await ann.save("many/known.json", GRAPH["saved"])
    record = '{"size":0,"created":1,"modified":1,"version":"v"}'
    names: dict[Any, Any] = {f"workflows/many/{n}.json": record for n in range(5000)}
    await ann.stores.redis.hset(ann.stores.redis.keyspace.user_files("ann"), mapping=names)
    asked = []
    slug = workflow_names.slug

    def counted(name: str) -> str:
        asked.append(name)
        return slug(name)

    async def no_tree(self: RedisUserData, owner: str) -> UserTree:
        raise AssertionError("all files were read")

    monkeypatch.setattr("comfy_fleet.services.draft_names.slug", counted)
    monkeypatch.setattr(RedisUserData, "tree", no_tree)
    await ann.move("workflows/many", "workflows/more")
    assert set(await ann.saves()) == {"more/known.json"}
    assert 0 < len(asked) < 10
    await ann.move("workflows/more", "elsewhere")
    await ann.move("elsewhere", "workflows/back")
    assert len(await ann.saves()) == MOST_SEEN
    assert len(asked) < 1000


@pytest.mark.parametrize("inside", [False, True])
async def test_a_moved_folder_pushes_out_no_save(ann: Editor, inside: bool) -> None:
    await ann.save("flow.json", GRAPH["saved"])
    await ann.run(GRAPH["saved"])
    await ann.save("flow.json", changed("not run"))
    source = "workflows/backup" if inside else "backup"
    for number in range(MOST_SEEN + 5):
        await ann.stores.userdata.save("ann", f"{source}/{number}.json", b"{}")
    await ann.move(source, "workflows/here")
    unrun = await ann.drafts.unrun("ann", "flow")
    assert unrun is not None and unrun.file == "flow.json"
    assert len(await ann.saves()) == (1 if inside else MOST_SEEN)


@pytest.mark.parametrize("folder", [False, True])
async def test_a_move_is_no_save(ann: Editor, folder: bool) -> None:
    await ann.save("a/w.json", GRAPH["saved"])
    await ann.run(GRAPH["saved"])
    before = (await ann.saves())["a/w.json"]
    newer = await ann.put("a_w", "a/w")
    await (
        ann.move("workflows/a", "workflows/b")
        if folder
        else ann.move("workflows/a/w.json", "workflows/b/w.json")
    )
    after = await ann.saves()
    assert set(after) == {"b/w.json"}
    assert after["b/w.json"].signature == before.signature
    assert after["b/w.json"].saved_at == pytest.approx(before.saved_at, abs=1e-5)
    assert after["b/w.json"].workflow == "b_w"
    assert await ann.drafts.unrun("ann", "b_w") is None
    draft = await ann.stores.workflows.draft("ann", "b_w")
    assert draft is not None and (draft.ui, draft.saved_at) == (newer.ui, newer.saved_at)


@pytest.mark.parametrize("draft", [False, True])
async def test_what_comes_onto_a_file_from_elsewhere_is_told(ann: Editor, draft: bool) -> None:
    await ann.save("w.json", GRAPH["saved"])
    if draft:
        await ann.run(GRAPH["saved"])
    await ann.stores.userdata.save("ann", "elsewhere.json", text(changed("other")))
    await ann.move("elsewhere.json", "workflows/w.json")
    unrun = await ann.drafts.unrun("ann", "w")
    assert unrun is not None and unrun.signature not in ("", UNREAD)
    await ann.run(changed("other"))
    assert await ann.drafts.unrun("ann", "w") is None


async def test_a_file_that_gets_a_name_of_its_own_gets_its_draft(ann: Editor) -> None:
    await ann.save("My Flow.json", GRAPH["saved"])
    await ann.run(GRAPH["saved"])
    await ann.save("my_flow.json", GRAPH["saved"])  # of the same id: the first keeps the draft
    await ann.move("workflows/my_flow.json", "workflows/free.json")
    assert await ann.names() == {"my_flow": "My Flow", "free": "free"}


async def test_a_process_that_dies_after_a_move_leaves_it_to_the_next(stores: Stores, ann: Editor) -> None:
    await ann.save("a/w.json", GRAPH["saved"])
    await ann.save("x.json", GRAPH["saved"])
    await ann.run(GRAPH["saved"])
    for source, dest in (("workflows/a", "workflows/b"), ("workflows/b", "workflows/c")):
        await stores.userdata.move("ann", source, dest)  # and nobody is told
    await stores.userdata.move("ann", "workflows/x.json", "workflows/y.json")
    other = Editor(stores)
    await other.drafts.ready("ann")
    assert await other.names() == {"c_w": "c/w", "y": "y"}
    assert set(await other.saves()) == {"c/w.json", "y.json"}
    assert await other.seen.moves("ann") == []


async def test_a_file_that_is_saved_or_deleted_before_its_move_is_followed(
    stores: Stores, ann: Editor
) -> None:
    for name in ("gone", "again", "new"):
        await ann.save(f"a/{name}.json", GRAPH["saved"])
    await ann.run(GRAPH["saved"])
    await stores.userdata.move("ann", "workflows/a", "workflows/b")
    later = time.time() + 1
    new = SavedGraph(file="b/new.json", workflow="b_new", signature="s", saved_at=later)
    await ann.seen.save("ann", new)
    made = await ann.put("b_new", "b/new")
    await stores.userdata.save("ann", "workflows/a/again.json", text(GRAPH["saved"]))
    await ann.files.delete("ann", "workflows/b/gone.json")
    await ann.drafts.settled()
    # Both files of "again" have the graph that was run.
    assert await ann.names() == {"a_again": "a/again", "b_again": "b/again", "b_new": "b/new"}
    assert set(await ann.saves()) == {"a/again.json", "b/again.json", "b/new.json"}
    assert (await ann.saves())["b/new.json"].signature == "s"
    draft = await stores.workflows.draft("ann", "b_new")
    assert draft is not None and draft.saved_at == made.saved_at


async def test_two_processes_follow_a_move_once(stores: Stores, ann: Editor) -> None:
    await ann.save("a/w.json", GRAPH["saved"])
    await ann.run(GRAPH["saved"])
    for number in range(10):
        source, dest = ("a", "b") if number % 2 == 0 else ("b", "a")
        await stores.userdata.move("ann", f"workflows/{source}", f"workflows/{dest}")
        await asyncio.gather(*(Editor(stores).drafts.moved("ann") for _ in range(3)))
        assert await ann.names() == {f"{dest}_w": f"{dest}/w"}


async def test_a_move_of_a_folder_that_is_sent_again_is_the_same(stores: Stores) -> None:
    store = RedisUserData(stores.redis, most_bytes=10**6, new_version=lambda: "the same")
    await stores.userdata.save("ann", "workflows/a/w.json", b"{}")
    await stores.userdata.save("ann", "workflows/b/v.json", b"{}")
    first = await store.move("ann", "workflows/a", "workflows/b")
    assert first.path == "workflows/b/a"
    assert await store.move("ann", "workflows/a", "workflows/b") == first
    assert len(await RedisSeenGraphs(stores.redis).moves("ann")) == 1


@pytest.mark.parametrize("files", [("b/c.json", "c.json"), ("c.json", "b/c.json")])
async def test_drafts_of_a_folder_may_take_each_others_ids(ann: Editor, files: Sequence[str]) -> None:
    for file in files:
        name = file.removesuffix(".json")
        await ann.stores.userdata.save("ann", f"workflows/a_b/{file}", text(changed(name)))
        await ann.put(f"a_b_{name.replace('/', '_')}", f"a_b/{name}", changed(name))
    await ann.move("workflows/a_b", "workflows/a")
    assert await ann.names() == {"a_b_c": "a/b/c", "a_c": "a/c"}
    for name, graph in (("a_b_c", "b/c"), ("a_c", "c")):
        draft = await ann.stores.workflows.draft("ann", name)
        assert draft is not None and draft.ui == changed(graph)


async def test_two_that_become_one_id_are_both_kept(ann: Editor) -> None:
    first, second = "\u6f22/x y", "\u6f22/x_y"
    ids = [draft_names.workflow_of(f"{name}.json") for name in (first, second)]
    for name, workflow in zip((first, second), ids, strict=True):
        await ann.stores.userdata.save("ann", f"workflows/{name}.json", text(changed(name)))
        await ann.put(workflow, name)
    await ann.move("workflows/\u6f22", "workflows/a")
    assert await ann.names() == {"a_x_y": "a/x_y", ids[0]: first}  # the one that was saved last


async def test_a_draft_leaves_another_files_alone_and_takes_over_what_it_is_based_on(
    stores: Stores, ann: Editor
) -> None:
    content = WorkflowContent(graph=PROMPT, manifest={})
    other = await stores.workflows.publish("b", NewVersion(content=content, author="ben"), expected=None)
    await stores.userdata.save("ann", "workflows/A.json", b"{}")
    await stores.userdata.save("ann", "workflows/B.json", b"{}")
    await ann.put("a", "A")
    await ann.put("b", "B")
    await ann.move("workflows/A.json", "workflows/a.json")
    assert await ann.names() == {"b": "B", "a": "a"}
    await ann.move("workflows/a.json", "workflows/b.json")
    assert await ann.names() == {"b": "B", "a": "a"}  # B is another file
    await stores.userdata.delete("ann", "workflows/B.json")
    await ann.move("workflows/b.json", "workflows/a.json")
    await ann.move("workflows/a.json", "workflows/b.json")
    draft = await stores.workflows.draft("ann", "b")
    assert draft is not None and (draft.ui, draft.base_version) == (changed("A"), other.version)
    assert await ann.names() == {"b": "b"}


async def test_a_draft_whose_file_leaves_is_forgotten_but_not_what_it_was_based_on(
    stores: Stores, ann: Editor
) -> None:
    content = WorkflowContent(graph=PROMPT, manifest={})
    first = await stores.workflows.publish("w", NewVersion(content=content, author="ben"), expected=None)
    await stores.userdata.save("ann", "workflows/w.json", b"{}")
    await ann.put("w", "w")
    await ann.move("workflows/w.json", "away.json")
    assert await stores.workflows.drafts("ann") == {}
    content = WorkflowContent(graph=PROMPT, manifest={"title": "other"})
    await stores.workflows.publish("w", NewVersion(content=content, author="ben"), expected=first.version)
    assert (await ann.put("w", "w")).base_version == first.version


async def test_a_move_is_made_whatever_becomes_of_the_drafts(stores: Stores) -> None:
    class Broken(RedisSeenGraphs):
        async def moves(self, owner: str) -> Sequence[FileMove]:
            raise RuntimeError("not of this fleet's own")

    ann = Editor(stores, Broken(stores.redis))
    await stores.userdata.save("ann", "workflows/a/w.json", b"{}")
    await ann.move("workflows/a", "workflows/b")
    assert set((await stores.userdata.tree("ann")).files) == {"workflows/b/w.json"}
    assert len(await RedisSeenGraphs(stores.redis).moves("ann")) == 1


async def test_words_that_nobody_can_read_stop_no_other(stores: Stores, ann: Editor) -> None:
    key = stores.redis.keyspace.user_moves("ann")
    for junk in (b"{", b"[]", b"{}", b"\xff", b'{"source":"a","dest":"b","folder":true,"at":1,"new":7}'):
        await stores.redis.rpush(key, junk)
    await ann.save("a/w.json", GRAPH["saved"])
    await ann.move("workflows/a", "workflows/b")
    assert set(await ann.saves()) == {"b/w.json"}
    assert not await stores.redis.exists(key)
