"""ComfyUI's websocket in front of a fleet: what a client is told of its prompts, and when."""

import asyncio
import json
from typing import Any
from uuid import uuid4

import httpx
import pytest
from redis.asyncio import Redis

from comfy_fleet.domain.jobs.frames import Picture, parse_binary
from comfy_fleet.services import owner_clients
from comfy_fleet.services.socket_client import MOST_STATUS, STATUS_S
from comfy_fleet.sim import SimTiming
from tests.factories import picture, sampled, with_model
from tests.fleet import until
from tests.integration.native.prompts_kit import KEYS
from tests.integration.native.socket_kit import ENDS, client_of, faced, last, shapes
from tests.key_files import write_keys

WHOLE = [
    "execution_start",
    "execution_cached",
    "executing 1",
    "executing 2",
    "executed 2",
    "execution_success",
    "executing None",
]


@pytest.fixture(autouse=True)
def clean(redis: Redis) -> None:
    """Every test begins with an empty database."""


def over_websocket(color: int, pictures: int = 2) -> dict[str, Any]:
    """A graph whose pictures come as messages only."""
    size = {"width": 64, "height": 64, "batch_size": pictures, "color": color}
    return {
        "1": {"class_type": "EmptyImage", "inputs": size},
        "2": {"class_type": "SaveImageWebsocket", "inputs": {"images": ["1", 0]}},
    }


def queue_remaining(type_: str, data: Any) -> int | None:
    return int(data["status"]["exec_info"]["queue_remaining"]) if type_ == "status" else None


def pictures_of(messages: list[tuple[str, Any]], node: str) -> list[bytes]:
    """Return the pictures that a script takes for those of a node: between its `executing` and the next."""
    current, found = None, []
    for type_, data in messages:
        if type_ == "executing":
            current = data["node"]
        elif type_ == "binary" and current == node:
            found.append(data[8:])
    return found


async def test_a_prompt_is_told_as_a_comfyui_tells_it_and_its_files_are_there(redis_port: int) -> None:
    async with faced(redis_port, "g1") as fleet:
        client = await fleet.client()
        for color in (1, 2):
            prompt = await client.post(picture(color), prompt_id=str(uuid4()))
            told = await client.until(lambda type_, _: type_ == "executed")
            (file,) = told[-1][1]["output"]["images"]
            assert (file["filename"], file["type"]) == (f"t_0000{color}_.png", "output")
            answer = await client.http.get("/view", params=file)
            assert (answer.status_code, answer.headers["content-type"]) == (200, "image/png")
            told += await client.until(lambda type_, _: type_ in ENDS)
            history = (await client.http.get(f"/history/{prompt}")).json()
            assert history[prompt]["outputs"]["2"]["images"] == [file]  # the end is a fact by now
            told += await client.ended(prompt)
            assert shapes(told) == WHOLE
            assert {data["prompt_id"] for type_, data in told if "prompt_id" in data} == {prompt}


async def test_a_chosen_prompt_id_of_any_form_is_in_every_message(redis_port: int) -> None:
    name = 'one "of" mine \u00e9'
    async with faced(redis_port, "g1", sim={"previews": True, "models": with_model(1)}) as fleet:
        client = await fleet.client()
        await client.socket.send(
            json.dumps({"type": "feature_flags", "data": {"supports_preview_metadata": True}})
        )
        assert (await client.next())[0] == "feature_flags"
        assert await client.post(sampled(), prompt_id=name) == name
        told = await client.ended(name)
    assert all(data["prompt_id"] == name for type_, data in told if type_ not in ("status", "binary"))
    states = [data for type_, data in told if type_ == "progress_state"]
    assert all(node["prompt_id"] == name for state in states for node in state["nodes"].values())
    pictures = [parse_binary(data) for type_, data in told if type_ == "binary"]
    assert pictures
    for one in pictures:
        assert isinstance(one, Picture)
        assert (one.node_id, one.prompt_id, one.content_type) == ("4", name, "image/jpeg")


async def test_previews_have_the_form_that_the_client_understands(redis_port: int) -> None:
    async with faced(redis_port, "g1", sim={"previews": True, "models": with_model(1)}) as fleet:
        client = await fleet.client()
        prompt = await client.post(sampled())
        frames = [data for type_, data in await client.ended(prompt) if type_ == "binary"]
        assert frames and {frame[:8] for frame in frames} == {b"\0\0\0\1\0\0\0\1"}


async def test_pictures_that_are_outputs_come_between_their_nodes_turn_and_the_next(redis_port: int) -> None:
    async with faced(redis_port, "g1", "g2", sim={"timing": SimTiming(job_s=0.3)}) as fleet:
        client = await fleet.client()
        prompts = [await client.post(over_websocket(color, pictures=3)) for color in range(6)]
        while {data["prompt_id"] for type_, data in client.seen if last(type_, data)} != set(prompts):
            await client.next()
        start = 0
        got: dict[str, list[bytes]] = {prompt: [] for prompt in prompts}
        current = None
        for number, (type_, data) in enumerate(client.seen):
            if type_ == "execution_start":
                current, start = data["prompt_id"], number
            elif type_ == "binary":
                assert current is not None
                got[current] += pictures_of(client.seen[start : number + 1], "2")[-1:]
        assert {len(found) for found in got.values()} == {3}
        assert len({found[0] for found in got.values()}) == 6  # each prompt's own


async def test_one_prompt_is_shown_at_a_time_and_each_is_told_its_end(redis_port: int) -> None:
    sim = {"timing": SimTiming(job_s=0.4)}
    async with faced(redis_port, "g1", "g2", "g3", sim=sim) as fleet:
        client = await fleet.client()
        prompts = [await client.post(picture(color)) for color in range(9)]
        while {data["prompt_id"] for type_, data in client.seen if last(type_, data)} != set(prompts):
            await client.next()
        active: str | None = None
        for type_, data in client.seen:
            if type_ == "execution_start":
                active = data["prompt_id"]
            elif type_ in ENDS or last(type_, data):
                active = None
            elif type_ != "status":
                assert data["prompt_id"] == active
        for prompt in prompts:
            told = client.of(prompt)
            assert told[-2:] == ["execution_success", "executing None"]
            assert told.count("executed 2") == told.count("execution_success") == 1


async def test_a_prompt_that_is_taken_out_of_the_queue_ends_for_whoever_waits_for_it(redis_port: int) -> None:
    async with faced(redis_port, "g1", dispatch=False) as fleet:
        client = await fleet.client()
        prompt = await client.post(picture(1))
        await client.http.post("/queue", json={"delete": [prompt]})
        assert shapes(await client.ended(prompt)) == ["execution_interrupted", "executing None"]
        assert dict(client.seen)["execution_interrupted"]["executed"] == []


async def test_an_interrupted_prompt_and_one_that_fails_end_with_the_nodes_own_words(redis_port: int) -> None:
    async with faced(redis_port, "g1", sim={"timing": SimTiming(job_s=30)}) as fleet:
        client = await fleet.client()
        prompt = await client.post(picture(1))
        await client.until(lambda type_, data: type_ == "executing")
        await client.http.post("/interrupt")  # the one that its websocket shows
        told = await client.ended(prompt)
        assert shapes(told)[-2:] == ["execution_interrupted", "executing None"]
        (end,) = [data for type_, data in told if type_ == "execution_interrupted"]
        assert end["prompt_id"] == prompt and end["node_id"] is not None
        await fleet.fleet.sims["g1"].set_faults({"oom": True})
        prompt = await client.post(sampled(file="sd_xl_base_1.0.safetensors"))
        told = await client.until(lambda type_, data: type_ == "execution_error")
        assert told[-1][1]["prompt_id"] == prompt


async def test_status_counts_ones_own_jobs_at_most_five_times_a_second(redis_port: int) -> None:
    async with faced(redis_port, "g1", dispatch=False) as fleet:
        client = await fleet.client()
        began = asyncio.get_running_loop().time()
        for color in range(40):
            await client.post(picture(color))
        got = await client.until(lambda type_, data: queue_remaining(type_, data) == 40)
        took = asyncio.get_running_loop().time() - began
        assert len(got) <= MOST_STATUS * (took / STATUS_S + 1)
        assert all("sid" not in data for _, data in got)


async def test_each_of_many_short_prompts_shows_in_the_status(redis_port: int) -> None:
    async with faced(redis_port, "g1") as fleet:
        client = await fleet.client()
        for color in range(12):  # as an editor does that runs again as soon as the number is 0
            await client.post(picture(color))
            await client.until(lambda type_, data: queue_remaining(type_, data) == 1)
            await client.until(lambda type_, data: queue_remaining(type_, data) == 0)


async def test_a_prompt_that_begins_later_is_told_with_the_same_number(redis_port: int) -> None:
    async with faced(redis_port, "g1", dispatch=False, sim={"timing": SimTiming(job_s=3)}) as fleet:
        client = await fleet.client()
        for color in range(2):
            await client.post(picture(color))
        await client.until(lambda type_, data: queue_remaining(type_, data) == 2)
        await fleet.fleet.dispatcher()
        await client.until(lambda type_, data: queue_remaining(type_, data) == 2)
        found = (await client.http.get("/queue")).json()
        assert [len(found[name]) for name in ("queue_running", "queue_pending")] == [1, 1]


async def test_each_person_sees_what_is_theirs(redis_port: int, tmp_path: Any) -> None:
    keys = tmp_path / "keys"
    write_keys(keys, "".join(f"{name} {key}\n" for name, key in KEYS.items()))
    async with faced(redis_port, "g1", keys_file=keys) as fleet:
        ada, bob = ({"Authorization": f"Bearer {key}"} for key in KEYS.values())
        hers = await fleet.client(client_id="same", headers=ada)
        his = await fleet.client(client_id="same", headers=bob)
        prompt = await hers.post(picture(1))
        await hers.ended(prompt)
        other = await his.post(picture(2))
        await his.ended(other)
        assert not his.of(prompt) and not hers.of(other)
        assert {queue_remaining(*one) for one in his.seen} <= {None, 0, 1}


async def test_who_comes_back_gets_status_and_then_what_is_shown(redis_port: int) -> None:
    async with faced(redis_port, "g1", sim={"timing": SimTiming(job_s=2)}) as fleet:
        name = uuid4().hex
        async with client_of(fleet.url, name) as first:
            prompt = await first.post(picture(1))
            await first.until(lambda type_, data: type_ == "progress_state")
        async with client_of(fleet.url, name) as again:
            got = [await again.next() for _ in range(3)]
            assert [type_ for type_, _ in again.seen[:1]] == ["status"] and again.seen[0][1]["sid"] == name
            assert shapes(got)[0] == "execution_start" and shapes(got)[1].startswith("executing ")
            assert [type_ for type_, _ in got].count("progress_state") == 1
            told = await again.ended(prompt)
            assert shapes(told)[-2:] == ["execution_success", "executing None"]


async def test_who_comes_to_a_prompt_that_runs_already_is_told_of_it(redis_port: int) -> None:
    async with faced(redis_port, "g1", sim={"timing": SimTiming(job_s=2)}) as fleet:
        name = uuid4().hex
        async with httpx.AsyncClient(base_url=fleet.url) as http:
            body = {"prompt": picture(1), "client_id": name}
            prompt = (await http.post("/prompt", json=body)).json()["prompt_id"]
        await until(lambda: fleet.fleet.sims["g1"].engine.running, what="the prompt runs")
        async with client_of(fleet.url, name) as client:
            told = shapes(await client.ended(prompt))
        assert told[0] == "execution_start" and told.count("execution_start") == 1
        assert told[-3:] == ["executed 2", "execution_success", "executing None"]


@pytest.mark.parametrize("place", ["the same process", "another process"])
async def test_of_two_websockets_of_one_client_the_newer_is_told(redis_port: int, place: str) -> None:
    async with faced(redis_port, "g1", apis=2) as fleet:
        older = await fleet.client(client_id="tab")
        newer = await fleet.client(1 if place == "another process" else 0, client_id="tab")
        first = await newer.post(picture(1))
        await newer.ended(first)
        await older.socket.close()
        second = await newer.post(picture(2))
        assert shapes(await newer.ended(second)) == WHOLE
        assert not older.of(first)


async def test_an_api_process_gets_prompts_of_clients_that_are_at_another(redis_port: int) -> None:
    async with faced(redis_port, "g1", apis=2) as fleet:
        here, there = await fleet.client(0), await fleet.client(1)
        async with httpx.AsyncClient(base_url=fleet.apis[1].url) as http:
            body = {"prompt": picture(1), "client_id": here.client_id}
            prompt = (await http.post("/prompt", json=body)).json()["prompt_id"]
            assert shapes(await here.ended(prompt)) == WHOLE
        assert not there.of(prompt)


async def test_interrupting_without_an_id_is_about_what_the_newest_websocket_shows(redis_port: int) -> None:
    async with faced(redis_port, "g1", "g2", apis=2, sim={"timing": SimTiming(job_s=30)}) as fleet:
        older, newer = await fleet.client(0), await fleet.client(1)
        kept, stopped = await older.post(picture(1)), await newer.post(picture(2))
        for client in (older, newer):
            await client.until(lambda type_, data: type_ == "executing")
        await until_shown(fleet, stopped)
        await older.http.post("/interrupt", json={})
        await newer.ended(stopped)
        assert kept in str((await older.http.get("/queue")).json()["queue_running"])


async def until_shown(fleet: Any, prompt: str) -> None:
    async def shown() -> bool:
        newest = await fleet.apis[0].deps.clients.newest("local")
        return newest is not None and newest.shown == prompt

    await until(shown, what="every process knows what is shown")


async def test_a_run_that_is_given_back_ends_without_a_word_and_the_next_starts_over(redis_port: int) -> None:
    async with faced(redis_port, "g1", "g2", sim={"timing": SimTiming(job_s=1.5)}) as fleet:
        client = await fleet.client()
        prompt = await client.post(picture(1))
        await client.until(lambda type_, data: type_ == "executing")
        (busy,) = [sim for sim in fleet.fleet.sims.values() if sim.engine.running]
        await busy.crash()
        await client.ended(prompt)
        told = client.of(prompt)
        assert told.count("execution_start") == 2
        assert told.count("execution_success") == told.count("executing None") == 1
        assert not {"execution_error", "execution_interrupted"} & set(told)
        assert told[-3:] == ["executed 2", "execution_success", "executing None"]


async def test_a_prompt_of_nobodys_tells_its_progress_to_all_of_its_owner(redis_port: int) -> None:
    async with faced(redis_port, "g1", sim={"timing": SimTiming(job_s=0.5)}) as fleet:
        one, two = await fleet.client(), await fleet.client()
        async with httpx.AsyncClient(base_url=fleet.url) as http:
            prompt = (await http.post("/prompt", json={"prompt": picture(1)})).json()["prompt_id"]
        for client in (one, two):
            await client.until(lambda type_, data: type_ == "progress_state" and data["prompt_id"] == prompt)
            await client.until(lambda type_, data: queue_remaining(type_, data) == 0)
            assert {type_ for type_, _ in client.seen} == {"status", "progress_state"}


async def test_a_loss_of_messages_costs_nobody_its_end(redis_port: int, redis: Redis) -> None:
    async with faced(redis_port, "g1", sim={"timing": SimTiming(job_s=2)}) as fleet:
        client = await fleet.client()
        prompt = await client.post(picture(1))
        await client.until(lambda type_, data: type_ == "executing")
        for _ in range(20):
            await redis.client_kill_filter(_type="pubsub")
            await asyncio.sleep(0.1)
        told = await client.ended(prompt)
        assert shapes(told)[-3:] == ["executed 2", "execution_success", "executing None"]


@pytest.mark.parametrize("linger_s", [10.0, 0.0])
async def test_what_ended_while_a_client_was_away_is_told_when_it_comes_back(
    redis_port: int, monkeypatch: pytest.MonkeyPatch, linger_s: float
) -> None:
    monkeypatch.setattr(owner_clients, "LINGER_S", linger_s)
    async with faced(redis_port, "g1", apis=2, sim={"timing": SimTiming(job_s=0.7)}) as fleet:
        name = uuid4().hex
        async with client_of(fleet.url, name) as first:
            prompt = await first.post(picture(1))
            await first.until(lambda type_, data: type_ == "executing")
        await fleet.fleet.ended(prompt)
        async with client_of(fleet.apis[0 if linger_s else 1].url, name) as again:
            told = shapes(await again.ended(prompt))
            assert told[-2:] == ["execution_success", "executing None"]


async def test_without_a_websocket_no_frame_goes_to_redis(redis_port: int, redis: Redis) -> None:
    async with faced(redis_port, "g1") as fleet:
        other = await fleet.client()
        async with redis.pubsub() as pubsub:
            await pubsub.psubscribe("*clients:*", "*frames:*")
            async with httpx.AsyncClient(base_url=fleet.url) as http:
                body = {"prompt": picture(1), "client_id": "somebody who has no websocket"}
                prompt = (await http.post("/prompt", json=body)).json()["prompt_id"]
            await fleet.fleet.ended(prompt)
            while (message := await pubsub.get_message(timeout=0.5)) is not None:
                assert message["type"] == "psubscribe"
        assert not other.of(prompt)


async def test_an_end_is_told_once_whatever_is_heard_of_its_job_later(redis: Redis, redis_port: int) -> None:
    async with faced(redis_port, "g1") as fleet:
        client = await fleet.client()
        done = await client.post(picture(1))
        await client.ended(done)
        job = await fleet.fleet.job(done)
        said = {"job_id": done, "client_id": client.client_id, "prompt_id": done, "run": job.run, "live": 0}
        for status in ("running", "succeeded"):  # as after a look at the records that overtook them
            await redis.publish("fleet:owner:local", json.dumps({**said, "status": status}))
        after = await client.post(picture(2))
        await client.ended(after)
        assert client.of(done).count("execution_success") == 1
        assert client.of(after).count("execution_success") == 1
