"""What batches are made of, on a real API and Redis: forms, errors, limits, keys, kills. Nothing runs."""

import asyncio
import io
import json
import unicodedata
import zipfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from comfy_fleet.domain.errors import StoreDown
from comfy_fleet.services import batch_keeper
from tests.fleet import until
from tests.integration.api_kit import Api, code, running, upload
from tests.integration.batch_kit import PATH, folder, item, keys, post, queued, show
from tests.integration.test_input_urls import png
from tests.integration.test_limits import ANN, ART, OPS, bearer, limited


@pytest.fixture
async def api(redis_port: int, redis: Any, tmp_path: Path) -> AsyncIterator[Api]:
    async with running(redis_port, tmp_path / "data", workflows=folder(tmp_path)) as made:
        await made.add_node()
        await upload(made, png(), "cat.png")
        yield made


# -- errors ------------------------------------------------------------------


async def test_all_errors_come_in_one_answer_and_nothing_is_queued(api: Api) -> None:
    items = [
        {"custom_id": "good", **item()},
        {"custom_id": "wide", **item(width=9999, prefix="x" * 30)},
        {"custom_id": "good", **item()},
        {"custom_id": "lost", **item("nowhere.png")},
        {"custom_id": "odd", **item(), "prioriti": 1},
        {"custom_id": "high", **item(), "priority": "much"},
        {"custom_id": "store", **item(), "output": {"store": "shop"}},
        "text",
        {"custom_id": "\n", **item()},
        {"custom_id": "url", **item("http://10.0.0.1/a.png")},
    ]
    refused = (await post(api, {"items": items}, 422))["error"]
    assert refused["code"] == "invalid_batch"
    assert refused["message"].startswith(
        "9 of 10 items can't be taken, so none is queued: item 'wide', params."
    )
    assert refused["message"].endswith("; and 9 more")
    alone = (await post(api, {"items": [items[6]]}, 422))["error"]
    assert "item 'store', output.store: " in alone["message"]
    assert alone["message"].count("output.store") == 1, alone["message"]
    faults = [(one["custom_id"], one["item"], one["field"]) for one in refused["details"]["errors"]]
    assert faults == [
        ("wide", 1, "params.prefix"),
        ("wide", 1, "params.width"),
        ("good", 2, "custom_id"),
        ("lost", 3, "params.picture"),
        ("odd", 4, "prioriti"),
        ("high", 5, "priority"),
        ("store", 6, "output.store"),
        (None, 7, "item"),
        (None, 8, "custom_id"),
        ("url", 9, "params.picture"),
    ]
    assert await api.stores.jobs.depth() == 0
    assert await keys(api, "fleet:batch*") == []
    assert await keys(api, "fleet:asset:hold:*") == []


async def test_errors_are_bounded_and_partial_leaves_the_wrong_ones_out(api: Api) -> None:
    items = [item(width=1) for _ in range(150)]
    refused = (await post(api, {"items": items}, 422))["error"]
    assert len(refused["details"]["errors"]) == 100
    assert (refused["details"]["more"], refused["details"]["refused"]) == (50, 150)
    assert refused["message"].endswith("; and 149 more")
    assert (await post(api, {"items": items, "partial": True}, 422))["error"]["code"] == "invalid_batch"
    items = [{"custom_id": f"n{n}", **item(width=1 if n == 1 else 64)} for n in range(3)]
    batch = await post(api, {"items": items, "partial": True})
    assert [one["custom_id"] for one in batch["errors"]] == ["n1"]
    found = await queued(api, batch, 2)
    assert (found["total"], found["counts"]["refused"]) == (3, 1)
    (one,) = (await show(api, batch, "?status=refused"))["items"]
    assert (one["custom_id"], one["job_id"]) == ("n1", None)
    assert one["errors"][0]["field"] == "params.width"


@pytest.mark.parametrize(
    ("body", "status", "why"),
    [
        ([], 400, "must be a JSON object, not a list"),
        ({}, 422, "items must be a list"),
        ({"items": {}}, 422, "items must be a list"),
        ({"items": []}, 422, "there are no items"),
        ({"items": [item()], "defaults": 3}, 422, "defaults must be an object"),
        ({"items": [item()], "defaults": {"custom_id": "x"}}, 422, "custom_id is each item's own"),
        ({"items": [item()], "partial": "yes"}, 422, "partial"),
        (
            {"items": [item()], "webhook": "x"},
            422,
            "webhook: there is no such field; there are defaults, files, items, partial, webhook_url",
        ),
        ({"items": [item()], "defaults": {"params": []}}, 422, "defaults.params must be an object"),
        ({"items": [item()], "defaults": {"output": "shop"}}, 422, "defaults.output must be an object"),
        ({"items": [None]}, 422, "items[0], item: must be an object"),
        ({"items": [item()], "webhook_url": "ftp://x"}, 422, "webhook_url"),
        ({"items": [item()], "files": "x"}, 422, "there is no asset 'x'"),
        ({"items": [item()] * 41}, 422, "more than 40 items (FLEET_MAX_BATCH_ITEMS)"),
    ],
)
async def test_what_is_wrong_with_the_whole(
    redis_port: int, redis: Any, tmp_path: Path, body: Any, status: int, why: str
) -> None:
    async with running(redis_port, tmp_path / "data", workflows=folder(tmp_path), max_batch_items=40) as api:
        await api.add_node()
        answer = await api.client.post(PATH, json=body)
        assert answer.status_code == status, answer.text
        assert why in answer.json()["error"]["message"]


# -- forms -------------------------------------------------------------------


async def test_csv_has_a_column_for_each_parameter(api: Api) -> None:
    table = (
        "\ufeffcustom_id;picture;width;strength;prefix;metadata.sku;priority;\r\n"
        'A;cat.png;128;0,5;"semi;colon";S-1;7;\r\n'
        "\r\n"
        'B;cat.png;;;"two\r\nlines";;;\r\n'
        "C;cat.png;64.5;much;;;x;\r\n"
        "D;cat.png;64;1;a;b;1;;too many\r\n"
    )
    headers = {"Content-Type": "text/csv; charset=utf-8"}
    answer = await api.client.post(PATH, content=table.encode(), headers=headers)
    assert answer.status_code == 422, answer.text
    faults = [(e["custom_id"], e["line"], e["field"]) for e in answer.json()["error"]["details"]["errors"]]
    assert faults == [("C", 6, "priority"), (None, 7, "item")]
    answer = await api.client.post(f"{PATH}?partial=true", content=table.encode(), headers=headers)
    assert answer.status_code == 201, answer.text
    found = await queued(api, answer.json(), 2)
    by_name = {one["custom_id"]: one for one in found["items"]}
    jobs = {name: await api.stores.jobs.get(by_name[name]["job_id"]) for name in ("A", "B")}
    assert jobs["A"] is not None and jobs["B"] is not None
    assert {**jobs["A"].params} == {
        "picture": "cat.png",
        "width": 128,
        "strength": 0.5,
        "prefix": "semi;colon",
    }
    assert (jobs["A"].metadata, jobs["A"].priority) == ({"sku": "S-1"}, 7)
    assert (jobs["B"].params["prefix"], jobs["B"].params["width"]) == ("two\r\nlines", 64)


@pytest.mark.parametrize(
    ("table", "why"),
    [
        (b"", "the table is empty"),
        (b"picture,hight\ncat.png,3\n", "line 1: the column 'hight' is no parameter"),
        (b"picture,picture\n", "is there twice"),
        (b"picture,params.picture\n", "two columns are the parameter"),
        (b"picture\n\xff.png\n", "line 2 is not UTF-8"),
        (b"picture\n", "there are no items"),
        (b'picture,prefix\ncat.png,"open\n', "line 2, item: can't be read: it opens a quote that is never"),
        (b'picture,prefix\ncat.png,"a "quote" b"\n', 'each `"` in it twice'),
        (b"sep=;\r\npicture;hight\r\n", "line 2: the column 'hight' is no parameter"),
    ],
)
async def test_tables_that_can_t_be_read(api: Api, table: bytes, why: str) -> None:
    answer = await api.client.post(PATH, content=table, headers={"Content-Type": "text/csv"})
    assert answer.status_code == 422, answer.text
    assert why in answer.json()["error"]["message"]


async def test_excel_may_name_the_separator_first(api: Api) -> None:
    table = 'sep=;\r\ncustom_id;picture;prefix\r\nA;cat.png;"x, ""y"""\r\nB;cat.png;"1";2\r\n'
    url = f"{PATH}?partial=true"
    answer = await api.client.post(url, content=table.encode(), headers={"Content-Type": "text/csv"})
    assert answer.status_code == 201, answer.text
    assert [one["line"] for one in answer.json()["errors"]] == [4]
    found = await queued(api, answer.json(), 1)
    (job,) = await api.stores.jobs.load([one["job_id"] for one in found["items"] if one["job_id"]])
    assert job is not None and job.params["prefix"] == 'x, "y"'


async def test_what_stands_in_the_wrong_place_is_not_lost(api: Api) -> None:
    """A query beside a JSON body, and a query with a mistake, would leave out what its sender relies on."""
    body = {"items": [item()]}
    answer = await api.client.post(f"{PATH}?webhook_url=http://shop.test/", json=body)
    assert answer.status_code == 422
    assert answer.json()["error"]["details"]["field"] == "webhook_url"
    headers = {"Content-Type": "text/csv"}
    answer = await api.client.post(f"{PATH}?webhok_url=x", content=b"picture\ncat.png\n", headers=headers)
    assert answer.status_code == 422
    assert "there are defaults, files, partial, webhook_url" in answer.json()["error"]["message"]
    answer = await api.client.post(PATH, content=b"picture\ncat.png\n", headers={"Content-Type": ""})
    assert answer.status_code == 400
    assert "`Content-Type: text/csv`" in answer.json()["error"]["message"]


async def test_json_lines_and_defaults(api: Api) -> None:
    lines = [
        json.dumps({"custom_id": "a", **item()}),
        "",
        "{nonsense",
        "[1]",
        json.dumps(item(width=1)),
        '{"metadata": {"a": "\\ud800"}}',
    ]
    answer = await api.client.post(
        PATH, content="\n".join(lines), headers={"Content-Type": "application/x-ndjson"}
    )
    faults = answer.json()["error"]["details"]["errors"]
    assert [(one["line"], one["custom_id"]) for one in faults] == [(3, None), (4, None), (5, "4"), (6, None)]
    defaults = {"params": {"picture": "cat.png", "width": 128}, "metadata": {"who": "me"}, "priority": 3}
    body = {
        "defaults": defaults,
        "items": [{"params": {"width": 64}, "metadata": {"n": "1"}}, {"priority": 1}],
    }
    found = await queued(api, await post(api, body), 2)
    jobs = await api.stores.jobs.load([one["job_id"] for one in found["items"]])
    assert [(one.params["width"], one.metadata, one.priority, one.tier) for one in jobs if one] == [
        (64, {"who": "me", "n": "1"}, 3, 2),
        (128, {"who": "me"}, 1, 2),
    ]
    assert [one["custom_id"] for one in found["items"]] == ["1", "2"]


async def test_files_from_a_zip(api: Api) -> None:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("photos/a.png", png(1))
        archive.writestr("photos/b.png", png(2))
        archive.writestr("../evil.png", png(3))
        archive.writestr(unicodedata.normalize("NFD", "photos/Grün ä.png"), png(1))
        archive.writestr("more/b.png", png(2))
        archive.writestr("unnamed.bin", b"\0" * 10_000_000)
    files = str(
        (await upload(api, packed.getvalue(), "photos.zip", content_type="application/zip")).json()["id"]
    )
    body = {
        "files": files,
        "items": [item("@photos/a.png"), item("@photos/b.png"), item("@../evil.png"), item("@a.png")],
    }
    found = await queued(api, await post(api, body), 4)
    jobs = await api.stores.jobs.load([one["job_id"] for one in found["items"]])
    pictures = [str(one.params["picture"]) for one in jobs if one]
    assert (len(set(pictures)), pictures[0]) == (3, pictures[3]), "each file is unpacked once"
    names = [one.file_path for name in pictures if (one := await api.assets.get(name))]
    assert all(name.startswith("fetched/") and ".." not in name for name in names)
    refused = await post(api, {"files": files, "items": [item("@none.png")]}, 422)
    assert "no file 'none.png' in the zip" in refused["error"]["message"]
    refused = await post(api, {"files": files, "items": [item("@b.png")]}, 422)
    assert "name one, @photos/b.png, @more/b.png" in refused["error"]["message"]
    await queued(api, await post(api, {"files": files, "items": [item("@Grün ä.png")]}), 1)
    refused = await post(api, {"items": [item("@a.png")]}, 422)
    assert "the batch has none" in refused["error"]["message"]
    picture = str((await upload(api, png(5), "b.png")).json()["id"])
    refused = await post(api, {"files": picture, "items": [item("@a.png")]}, 422)
    assert refused["error"]["message"] == "files: the asset is no zip"


async def test_hostile_zips_are_refused_and_cost_little(redis_port: int, redis: Any, tmp_path: Path) -> None:
    bomb = io.BytesIO()
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("bomb.png", b"\0" * 20_000_000)
        archive.writestr("cut.png", png() * 50)
        archive.writestr("links.png", "/etc/passwd")
    listed = b"PK\x05\x06" + b"\0" * 8 + (2**31).to_bytes(4, "little") + b"\0" * 6
    cut = bomb.getvalue().replace(png()[20:40], b"\xff" * 20)
    async with running(
        redis_port, tmp_path / "data", workflows=folder(tmp_path), fetch_bytes=1_000_000
    ) as api:
        await api.add_node()
        for packed, name, why in (
            (bomb.getvalue(), "bomb.png", "is larger than 1000000 bytes (FLEET_FETCH_BYTES)"),
            (listed, "a.png", "has too many files, or is too large"),
            (b"PK\x05\x06" + b"\0" * 18, "a.png", "no file 'a.png' in the zip"),
            (bomb.getvalue()[:-30], "bomb.png", "is no zip"),
            (b"", "a.png", "is no zip"),
            (cut, "bomb.png", ""),
        ):
            zip_ = str((await upload(api, packed, "x.zip", content_type="application/zip")).json()["id"])
            refused = await post(api, {"files": zip_, "items": [item(f"@{name}")]}, 422)
            assert why in refused["error"]["message"], refused
        assert await api.stores.jobs.depth() == 0
        assert [
            path for path in (tmp_path / "data").rglob("*") if path.is_file() and path.name.startswith("tmp")
        ] == []


async def test_graphs_of_their_own(api: Api) -> None:
    graph = {
        "1": {"class_type": "EmptyImage", "inputs": {"width": 8, "height": 8, "batch_size": 1, "color": 1}}
    }
    saves = {"2": {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": "x"}}}
    items = [{"custom_id": "a", "workflow": {**graph, **saves}}, {"custom_id": "b", "workflow": saves}, {}]
    answer = await api.client.post("/api/v2/batches", json={"items": items})
    faults = answer.json()["error"]["details"]["errors"]
    assert [(one["custom_id"], one["field"], one["code"]) for one in faults] == [
        ("b", "workflow", "invalid_workflow"),
        ("3", "workflow", "invalid_request"),
    ]
    answer = await api.client.post("/api/v2/batches", json={"items": items[:1]})
    assert answer.status_code == 201, answer.text
    assert answer.json()["workflow"] is None
    await queued(api, answer.json(), 1)
    table = await api.client.post("/api/v2/batches", content="a\n", headers={"Content-Type": "text/csv"})
    assert code(table) == (415, "unsupported_media_type")


# -- once --------------------------------------------------------------------


async def test_a_key_gets_the_same_answer(api: Api) -> None:
    body = {"items": [item(prefix="a"), item(prefix="b")]}
    first, second = await asyncio.gather(
        *(api.client.post(PATH, json=body, headers={"Idempotency-Key": "k"}) for _ in range(2))
    )
    assert (first.status_code, second.status_code) == (201, 201), (first.text, second.text)
    assert first.json()["id"] == second.json()["id"]
    await queued(api, first.json(), 2)
    again = await api.client.post(PATH, json=body, headers={"Idempotency-Key": "k"})
    assert again.headers["Idempotency-Replayed"] == "true"
    assert again.json()["id"] == first.json()["id"]
    assert await api.stores.jobs.depth() == 2
    other = await api.client.post(PATH, json={"items": [item()]}, headers={"Idempotency-Key": "k"})
    assert code(other) == (422, "idempotency_key_reuse")


async def test_a_process_that_dies_leaves_a_batch_to_the_next_or_nothing(
    redis_port: int, redis: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the last script of a process was: then another process goes on with what exists."""
    workflows = folder(tmp_path)
    async with running(redis_port, tmp_path / "data", workflows=workflows) as api:
        await api.add_node()
        await upload(api, png(), "cat.png")
        monkeypatch.setattr(batch_keeper, "QUEUED_AT_ONCE", 1)
        scripts = vars(api.deps.batches)["_scripts"]
        call, calls = scripts.begin, 0

        async def dies(name: str, *blobs: Any, **args: Any) -> Any:
            nonlocal calls
            if name == "queue_batch" and (calls := calls + 1) > 3:
                raise StoreDown("this process is dead")
            return await call(name, *blobs, **args)

        monkeypatch.setattr(scripts, "begin", dies)
        batch = await post(api, {"items": [item(prefix=f"n{n}") for n in range(10)]})
        await until(lambda: calls > 3, what="some items are queued")
        assert 0 < await api.stores.jobs.depth() < 10
        monkeypatch.undo()
        # One that dies before a batch has begun: nothing of it is seen, and what was staged goes by itself.
        begin = scripts.begin

        async def never(name: str, *blobs: Any, **args: Any) -> Any:
            if name == "begin_batch":
                raise StoreDown("this process is dead")
            return await begin(name, *blobs, **args)

        scripts.begin = never
        assert (await api.client.post(PATH, json={"items": [item()]})).status_code == 503
        listed = (await api.client.get("/api/v1/batches")).json()["batches"]
        assert [one["id"] for one in listed] == [batch["id"]]
        client: Any = api.stores.redis
        staged = [key for key in await keys(api, "fleet:batch:*") if batch["id"].encode() not in key]
        assert staged and all([0 < await client.ttl(key) <= 3600 for key in staged])
    async with running(redis_port, tmp_path / "data", workflows=workflows) as api:
        found = await queued(api, batch, 10)
        assert [one["custom_id"] for one in found["items"]] == [str(n) for n in range(1, 11)]
        assert len({one["job_id"] for one in found["items"]}) == 10
        assert await api.stores.jobs.depth() == 10


# -- limits ------------------------------------------------------------------


async def test_limits_decide_before_anything_is_queued(redis_port: int, redis: Any, tmp_path: Path) -> None:
    limits = "submit: queued=5 submits=3/1h; artist: workflows=card"
    async with limited(redis_port, tmp_path, limits, workflows=folder(tmp_path), max_batch_waiting=8) as api:
        for who in (ANN, ART):
            await upload(api, png(), "cat.png", headers=bearer(who))
        answer = await api.client.post(PATH, json={"items": [item()] * 6}, headers=bearer(ANN))
        assert code(answer) == (429, "limit_reached")
        assert "limit 'queued' is 5" in answer.text
        assert await api.stores.jobs.depth() == 0
        answer = await api.client.post(PATH, json={"items": [item()] * 4}, headers=bearer(ANN))
        assert answer.status_code == 201, answer.text
        answer = await api.client.post(PATH, json={"items": [item()] * 2}, headers=bearer(ANN))
        assert code(answer) == (429, "limit_reached"), "also those that are not queued yet count"
        answer = await api.client.post(PATH, json={"items": [item()]}, headers=bearer(ANN))
        assert answer.status_code == 201, "a batch counts as one submit"
        answer = await api.client.post(PATH, json={"items": [item()] * 9}, headers=bearer(ART))
        assert code(answer) == (429, "queue_full")
        assert "more than may ever wait to be queued: 8 (FLEET_MAX_BATCH_WAITING)" in answer.text
        graph: dict[str, Any] = {"items": [{"workflow": {}}]}
        answer = await api.client.post("/api/v2/batches", json=graph, headers=bearer(ART))
        assert code(answer) == (403, "not_allowed")


async def test_a_batch_waits_for_room_in_the_queue(redis_port: int, redis: Any, tmp_path: Path) -> None:
    more: dict[str, Any] = {"queue_depth": 20, "max_batch_waiting": 40}
    async with limited(redis_port, tmp_path, workflows=folder(tmp_path), **more) as api:
        for who in (ANN, ART):
            await upload(api, png(), "cat.png", headers=bearer(who))

        async def send(who: str, count: int, status: int = 201, **all_: Any) -> dict[str, Any]:
            body = {"items": [item(prefix=f"n{n}") for n in range(count)], "defaults": all_}
            answer = await api.client.post(PATH, json=body, headers=bearer(who))
            assert answer.status_code == status, answer.text
            found: dict[str, Any] = answer.json()
            return found

        async def waiting(who: str, batch: dict[str, Any], count: int) -> dict[str, Any]:
            found: dict[str, Any] = {}

            async def there() -> bool:
                nonlocal found
                found = (
                    await api.client.get(f"/api/v1/batches/{batch['id']}?limit=100", headers=bearer(who))
                ).json()
                return bool(found["waiting"] == count)

            await until(there, what=f"{count} items wait")
            return found

        anns = await send(ANN, 30)
        found = await waiting(ANN, anns, 20)
        assert (found["status"], found["counts"]["queued"], found["counts"]["pending"]) == (
            "queueing",
            10,
            20,
        )
        text = (await api.client.get("/metrics/fleet", headers=bearer(OPS))).text
        assert "fleet_batch_items_waiting 20\n" in text
        refused = (await send(ANN, 21, 429))["error"]
        assert refused["code"] == "queue_full" and "FLEET_MAX_BATCH_WAITING" in refused["message"]
        assert refused["details"] == {"waiting": 20, "limit": 40, "jobs": 21}
        single = await api.client.post(
            "/api/v1/workflows/card/jobs", json=item(prefix="single"), headers=bearer(ANN)
        )
        assert single.status_code == 201, "half of the queue is for single jobs"
        arts = await send(ART, 4)
        assert (await waiting(ART, arts, 2))["counts"]["queued"] == 2, "a tenth of the queue is anybody's"
        for one in [one for one in found["items"] if one["status"] == "queued"][:5]:
            await api.client.post(f"/api/v1/jobs/{one['job_id']}/cancel", headers=bearer(ANN))
        batches = api.deps.batches

        async def fed() -> bool:
            two = [await batches.get(one["id"]) for one in (anns, arts)]
            return sum(one.waiting for one in two if one is not None) == 20

        await until(fed, what="as many are queued as there is room for")
        assert await api.stores.jobs.depth() == 10
        canceled = await api.client.post(f"/api/v1/batches/{anns['id']}/cancel", headers=bearer(ANN))
        assert canceled.json()["counts"]["canceled"] == 30
        assert (await waiting(ART, arts, 0))["counts"]["queued"] == 4
        # The time to start by begins with the batch, not when an item comes into the queue.
        late = await send(ART, 30, ttl_s=2)
        found = await waiting(ART, late, 0)
        assert found["counts"]["expired"] >= 20 and found["counts"]["pending"] == 0
        ended = [one for one in found["items"] if one["status"] == "expired"]
        assert {one["error"]["code"] for one in ended} == {"deadline_exceeded"}


async def test_only_its_owner_sees_a_batch(redis_port: int, redis: Any, tmp_path: Path) -> None:
    async with limited(redis_port, tmp_path, workflows=folder(tmp_path)) as api:
        await upload(api, png(), "cat.png", headers=bearer(ANN))
        batch = (await api.client.post(PATH, json={"items": [item()]}, headers=bearer(ANN))).json()
        base = f"/api/v1/batches/{batch['id']}"
        asked: list[tuple[str, str]] = [
            *(("GET", base + rest) for rest in ("", "/events", "/outputs.zip")),
            *(("POST", base + rest) for rest in ("/cancel", "/retry")),
            ("DELETE", base),
        ]
        for method, path in asked:
            answer = await api.client.request(method, path, headers=bearer(ART))
            assert code(answer) == (404, "not_found"), path
        assert (await api.client.get("/api/v1/batches?all=true", headers=bearer(ART))).json()["batches"] == []
        everybodys = (await api.client.get("/api/v1/batches?all=true", headers=bearer(OPS))).json()["batches"]
        assert [one["id"] for one in everybodys] == [batch["id"]]
        assert (await api.client.post(f"{base}/cancel", headers=bearer(OPS))).json()["status"] == "completed"
        trail = (await api.client.get("/api/v1/audit", headers=bearer(OPS))).json()
        assert "batch.canceled" in json.dumps(trail)
