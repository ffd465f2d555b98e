"""What processes know of each other's websockets while writes are slow, fail, or are a process's last."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import orjson
import pytest
from redis.asyncio import Redis

from comfy_fleet.adapters.redis.sockets import RedisSocketStore
from comfy_fleet.domain.errors import StoreDown
from comfy_fleet.domain.jobs.client_messages import ClientMessage
from comfy_fleet.ports.sockets import ClientSocket
from comfy_fleet.services.client_hub import ClientHub
from comfy_fleet.services.owner_clients import HubDeps
from tests.factories import picture
from tests.fleet import until
from tests.integration.api_kit import Api, running


@pytest.fixture(autouse=True)
def clean(redis: Redis) -> None:
    """Every test begins with an empty database."""


class Told:
    """A websocket that takes all at once."""

    def __init__(self) -> None:
        self.metadata = False
        self.on_told: Callable[[Sequence[str]], None] = lambda _: None
        self.types: list[str] = []
        self.ends: list[str] = []

    def send(self, messages: Sequence[ClientMessage]) -> None:
        self.types += [orjson.loads(one.data)["type"] for one in messages if one.text]
        ends = [one.ends for one in messages if one.ends]
        self.ends += ends
        self.on_told(ends)

    def untold(self) -> Sequence[str]:
        return []


class SlowStore(RedisSocketStore):
    """The real store; each write waits for a test's word.

    Attributes:
        writes: What was begun and done, in order: clients, and whether it is done.
        slow: Cleared: writes wait.
        down: Set: they fail instead.
    """

    writes: list[tuple[str, bool]]
    slow: asyncio.Event
    down = False

    async def keep(self, sockets: Sequence[ClientSocket]) -> None:
        self.writes += [(one.client_id, False) for one in sockets]
        await self.slow.wait()
        if self.down:
            raise StoreDown("Redis is away")
        await super().keep(sockets)
        self.writes += [(one.client_id, True) for one in sockets]


@asynccontextmanager
async def hub_of(api: Api) -> AsyncIterator[tuple[ClientHub, SlowStore]]:
    """Yield a second hub beside the API's, as if it were another process."""
    store = SlowStore(api.stores.redis)
    store.writes, store.slow = [], asyncio.Event()
    store.slow.set()
    deps = HubDeps(
        jobs=api.deps.jobs,
        events=api.deps.events,
        sockets=store,
        clock=time.time,
        monotonic=time.monotonic,
    )
    hub = ClientHub(deps)
    try:
        yield hub, store
    finally:
        store.slow.set()
        await hub.close()


async def submit(api: Api, client_id: str, color: int = 1) -> str:
    answer = await api.client.post("/prompt", json={"prompt": picture(color), "client_id": client_id})
    return str(answer.json()["prompt_id"])


async def test_states_are_written_one_after_the_other(redis_port: int, tmp_path: Path) -> None:
    async with running(redis_port, tmp_path) as api, hub_of(api) as (hub, store):
        store.slow.clear()
        first = asyncio.create_task(hub.attach("local", "a", Told()))
        await until(lambda: store.writes, what="the first is being written")
        told = Told()
        second = asyncio.create_task(hub.attach("local", "b", told))
        await until(lambda: told.types, what="the second is open")
        for _ in range(20):  # whatever it does now, it has had the time for it
            await api.stores.redis.ping()
        store.slow.set()
        await asyncio.gather(first, second)
        assert store.writes[:4] == [("a", False), ("a", True), ("b", False), ("b", True)]


async def test_a_prompt_that_comes_while_a_process_writes_its_last_word_ends_for_its_client(
    redis_port: int, tmp_path: Path
) -> None:
    async with running(redis_port, tmp_path) as api, hub_of(api) as (dying, store):
        await api.add_node()
        store.slow.clear()
        attaching = asyncio.create_task(dying.attach("local", "a", Told()))
        await until(lambda: store.writes, what="the state without prompts is being written")
        prompt = await submit(api, "a")
        store.slow.set()
        await attaching
        store.down = True  # as if it were killed now
        kept = await store.last("local", "a")
        assert kept is not None and kept.open and not kept.untold
        await api.client.post("/queue", json={"delete": [prompt]})
        told = Told()
        await api.deps.clients.attach("local", "a", told)
        await until(lambda: told.ends == [prompt], what="its end is told")


async def test_a_short_prompt_whose_end_its_client_has_got_is_not_told_again(
    redis_port: int, tmp_path: Path
) -> None:
    async with running(redis_port, tmp_path) as api, hub_of(api) as (dying, store):
        await api.add_node()
        told = Told()
        await dying.attach("local", "a", told)
        known = await submit(api, "a")
        await api.client.post("/queue", json={"delete": [known]})
        await until(lambda: told.ends == [known], what="it has got the end")
        await dying.newest("local")  # which writes all that has changed
        store.down = True  # as if it were killed now
        later = await submit(api, "a", 2)
        await api.client.post("/queue", json={"delete": [later]})
        again = Told()
        await api.deps.clients.attach("local", "a", again)
        await until(lambda: again.ends, what="the other one's end is told")
        assert again.ends == [later]


async def test_a_websocket_that_could_not_be_made_known_is_let_go(
    redis_port: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("comfy_fleet.services.owner_clients.LINGER_S", 0.01)
    async with running(redis_port, tmp_path) as api, hub_of(api) as (hub, store):
        before = await api.stores.redis.pubsub_channels()

        async def unfollowed() -> bool:
            return await api.stores.redis.pubsub_channels() == before

        store.down = True
        with pytest.raises(StoreDown):
            await hub.attach("local", "a", Told())
        assert not await unfollowed()
        await until(unfollowed, what="nobody is followed any more")


async def test_a_state_that_could_not_be_written_is_written_later(redis_port: int, tmp_path: Path) -> None:
    async with running(redis_port, tmp_path) as api, hub_of(api) as (hub, store):
        await api.add_node()
        detach = await hub.attach("local", "a", Told())
        store.down = True
        before = len(store.writes)
        detach()
        await until(lambda: len(store.writes) > before, what="Redis refuses it")
        store.down = False

        async def known() -> bool:
            kept = await store.last("local", "a")
            return kept is not None and not kept.open

        await until(known, what="all processes know that it has gone")


async def test_a_clients_prompt_is_found_behind_hundreds_of_others(redis_port: int, tmp_path: Path) -> None:
    async with running(redis_port, tmp_path) as api, hub_of(api) as (dying, store):
        await api.add_node()
        await dying.attach("local", "a", Told())
        store.down = True  # as if it were killed now
        prompt = await submit(api, "a")
        others = [await submit(api, "another", color) for color in range(2, 125)]
        await api.client.post("/queue", json={"delete": [prompt, *others]})
        told = Told()
        await api.deps.clients.attach("local", "a", told)
        await until(lambda: told.ends, what="its end is told")
        assert told.ends == [prompt]
