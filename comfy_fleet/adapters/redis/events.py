"""Live events and wake-ups over Redis pub/sub: one connection for a whole process."""

import asyncio
import contextlib
import hashlib
import logging
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from typing import Any, Protocol
from urllib.parse import quote, unquote

import orjson

from comfy_fleet.adapters.redis.client import FleetRedis
from comfy_fleet.adapters.redis.keys import Keyspace
from comfy_fleet.domain.errors import StoreDown
from comfy_fleet.domain.jobs.frames import RawFrame
from comfy_fleet.domain.jobs.job import JobEvent, JobStatus, OwnerEvent
from comfy_fleet.domain.records import UNREADABLE, from_fields
from comfy_fleet.ports.changes import StatusChange
from comfy_fleet.ports.jobs import ClientFrame, ClientTaken
from comfy_fleet.timeouts import Timeout

logger = logging.getLogger(__name__)

MOST_WAITING, MOST_WAITING_BYTES = 256, 8 * 1024 * 1024
"""Most messages of one channel that wait for a slow reader."""
_STATUSES = frozenset(status.value for status in JobStatus)
MOST_FRAMES = 4096
"""The same for frames, of which there are more."""
LINGER_S = 0.1
"""How long a channel without readers is kept, so that several are left at once, and nobody waits for that."""
MOST_FEED, MOST_FEED_BYTES = 20_000, 32 * 1024 * 1024
"""The same for all clients of an owner together. Beyond it, frames are left out, and beyond twice as many
messages, events, too."""


class RedisEvents:
    """Multiplexes all subscriptions of this process onto one connection (port ``Events``).

    While there is no connection, subscribers get nothing; they read the record now and then anyway. A slow
    reader loses its oldest events, never its newest.
    """

    def __init__(self, redis: FleetRedis) -> None:
        self._redis = redis
        self._keys = redis.keyspace
        self._queues: dict[str, set[_Reader]] = defaultdict(set)
        self._pubsub = redis.pubsub(ignore_subscribe_messages=False)
        self._pump: asyncio.Task[None] | None = None
        self._asked: set[str] = set()  # channels that Redis was asked for; lost connections ask again
        self._confirmed: dict[str, asyncio.Event] = {}
        self._since: dict[str, tuple[int, float]] = {}  # on which connection, and since when
        self._wanted = asyncio.Event()
        self._connecting = asyncio.Lock()  # two subscriptions at once would open two connections
        self._left: set[str] = set()
        self._leaving: asyncio.Task[None] | None = None

    @contextlib.asynccontextmanager
    async def channel(self, name: str, *, most: int = MOST_WAITING) -> AsyncIterator[asyncio.Queue[bytes]]:
        """Subscribe to a channel; the subscription is in force when the block begins.

        Args:
            name: The channel.
            most: Messages that wait for a slow reader.
        """
        queue = _Newest(most)
        try:
            await self._join(name, queue)
            yield queue
        finally:
            self._leave(name, queue)

    async def _join(self, name: str, queue: "_Reader") -> None:
        """Subscribe a reader to a channel; at the latest after five seconds without Redis, it goes on."""
        self._queues[name].add(queue)
        confirmed = self._confirmed.setdefault(name, asyncio.Event())
        with contextlib.suppress(StoreDown):  # asked again as soon as Redis is back
            await self._ask(name)
        self._wanted.set()
        if self._pump is None:
            self._pump = asyncio.create_task(self._read(), name="events")
        with contextlib.suppress(TimeoutError):
            async with Timeout(5):
                await confirmed.wait()

    def _leave(self, name: str, queue: "_Reader") -> None:
        readers = self._queues.get(name)
        if readers is None:
            return
        readers.discard(queue)
        if not readers:
            del self._queues[name]
            self._confirmed.pop(name, None)
            self._since.pop(name, None)
            self._asked.discard(name)
            if not self._queues:
                self._wanted.clear()
            self._left.add(name)
            if self._leaving is None:
                self._leaving = asyncio.create_task(self._unsubscribe(), name="channels are left")

    async def _unsubscribe(self) -> None:
        """Unsubscribe in a moment from the channels that nobody reads any more."""
        await asyncio.sleep(LINGER_S)
        self._leaving = None
        async with self._connecting:  # nobody subscribes between the look and the command
            unread = [name for name in self._left if name not in self._queues]
            self._left.clear()
            if unread:
                with contextlib.suppress(StoreDown):
                    await self._pubsub.unsubscribe(*unread)

    async def _ask(self, *names: str) -> None:
        """Subscribe to channels, unless that is done."""
        async with self._connecting:
            # The reader that came first may have been canceled while it asked; the last one may have left.
            new = {
                name: self._queues[name] for name in names if name in self._queues and name not in self._asked
            }
            if new:
                await self._pubsub.subscribe(*new)
                # Of a channel that was left meanwhile, the present reader is not subscribed yet.
                self._asked.update(name for name, readers in new.items() if self._queues.get(name) is readers)

    def unbroken_since(self, name: str) -> float | None:
        """Return since when a subscription has been in force without a break (monotonic seconds).

        None: it is not, as far as is known.
        """
        connection, since = self._since.get(name, (-1, 0.0))
        return since if connection == self._pubsub.reconnects and self._pubsub.connected else None

    @contextlib.asynccontextmanager
    async def wakes(self) -> AsyncIterator[asyncio.Queue[bytes]]:
        """Subscribe to messages for dispatchers."""
        async with self.channel(self._keys.wake) as queue:
            yield queue

    @contextlib.asynccontextmanager
    async def subscribe(self, job_id: str) -> AsyncIterator[AsyncIterator[JobEvent]]:
        """Yield a job's events from now on."""
        async with self.channel(self._keys.events(job_id)) as queue:
            yield _job_events(job_id, queue)

    @contextlib.asynccontextmanager
    async def frames(self, job_id: str) -> AsyncIterator[AsyncIterator[RawFrame]]:
        """Yield the frames of a job's runs from now on."""
        async with self.channel(self._keys.frames(job_id), most=MOST_FRAMES) as queue:
            with contextlib.suppress(StoreDown):  # the next beat shows it
                await self._redis.publish(self._keys.wake, f"frames {job_id}")
            yield _frames(queue)

    @contextlib.asynccontextmanager
    async def clients(self, owner: str) -> AsyncIterator["RedisClientFeed"]:
        """Yield a feed of an owner's clients; see the port."""
        feed = RedisClientFeed(owner, self._keys, self._join, self._leave)
        try:
            await feed.open()
            yield feed
        finally:
            await feed.close()

    @contextlib.asynccontextmanager
    async def statuses(self) -> AsyncIterator[AsyncIterator[StatusChange]]:
        """Yield each status of everybody's jobs from now on."""
        async with self.channel(self._keys.changes, most=MOST_FEED) as queue:
            yield _statuses(queue)

    async def want_frames(self, job_ids: Iterable[str]) -> None:
        """Tell dispatchers that somebody listens to jobs that run already."""
        for job_id in job_ids:
            await self._redis.publish(self._keys.wake, f"frames {job_id}")

    async def take_client(self, owner: str, client_id: str, socket: str) -> None:
        """Tell all processes which websocket is a client's from now on."""
        told = orjson.dumps([client_id, socket])
        await self._redis.publish(client_channel(self._keys, owner, client_id), b"!" + told)

    async def close(self) -> None:
        """Stop reading."""
        tasks = [task for task in (self._pump, self._leaving) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._pubsub.aclose()  # type: ignore[no-untyped-call]  # the library left it untyped

    async def _read(self) -> None:
        while True:
            await self._wanted.wait()
            try:
                if len(self._asked) < len(self._queues):  # Redis was away when somebody subscribed
                    await self._ask(*self._queues)
                replies = await self._pubsub.replies(timeout_s=30)
            except StoreDown as error:
                logger.warning("event connection lost", extra={"error": str(error)})
                await asyncio.sleep(0.5)
                continue
            except Exception:  # any error: if the reader ended, every stream would be silent for good
                logger.exception("reading events failed")
                await asyncio.sleep(0.5)
                continue
            for kind, channel, data in replies:
                self._take(kind, channel.decode(), data)

    def _take(self, kind: bytes, name: str, data: Any) -> None:
        readers = self._queues.get(name, ())
        if kind == b"message":
            for reader in readers:
                reader.add(data)
        elif kind == b"subscribe" and (event := self._confirmed.get(name)):
            self._since[name] = (self._pubsub.reconnects, time.monotonic())
            if event.is_set():  # the connection is a new one
                for reader in readers:
                    reader.miss()
            event.set()


class _Reader(Protocol):
    """Gets the messages of the channels that it has joined."""

    def add(self, message: bytes) -> None: ...

    def miss(self) -> None: ...


class _Newest(asyncio.Queue[bytes]):
    """Messages for one reader; if there are too many, the oldest are dropped."""

    def __init__(self, most: int) -> None:
        super().__init__(most)
        self._bytes = 0

    def add(self, message: bytes) -> None:
        while self.full() or (self._bytes + len(message) > MOST_WAITING_BYTES and not self.empty()):
            self.get_nowait()
        self.put_nowait(message)

    def miss(self) -> None:
        """Nothing: its reader looks at the record now and then."""

    def _put(self, item: bytes) -> None:
        super()._put(item)
        self._bytes += len(item)

    def _get(self) -> bytes:
        item = super()._get()
        self._bytes -= len(item)
        return item


class RedisClientFeed:
    """The feed of an owner's clients (port ``ClientFeed``): several channels in one queue, in Redis's order.

    Attributes:
        lost: Whether anything was left out because the reader was too slow; the reader resets it.

    Args:
        owner: Whose clients.
        keys: Makes the channels' names.
        join: Subscribes to a channel.
        leave: Ends that.
    """

    def __init__(
        self,
        owner: str,
        keys: Keyspace,
        join: Callable[[str, _Reader], Awaitable[None]],
        leave: Callable[[str, _Reader], None],
    ) -> None:
        self.lost = False
        self._owner = owner
        self._keys = keys
        self._join, self._leave = join, leave
        self._channels: set[str] = set()
        self._waiting: list[bytes] = []
        self._bytes = 0
        self._came = asyncio.Event()

    def add(self, message: bytes) -> None:
        """Take a message."""
        full = self._bytes + len(message) > MOST_FEED_BYTES or len(self._waiting) >= MOST_FEED
        if full and (not message.startswith(b"{") or len(self._waiting) >= 2 * MOST_FEED):
            self.lost = True
            return
        self._waiting.append(message)
        self._bytes += len(message)
        self._came.set()

    def miss(self) -> None:
        """Note that messages may have been lost."""
        self.lost = True
        self._came.set()

    async def open(self) -> None:
        """Begin with the owner's events, and with frames of jobs that are no client's."""
        await self._add(self._keys.owner_events(self._owner))
        await self._add(client_channel(self._keys, self._owner, None))

    async def follow(self, client_id: str) -> None:
        """Follow a client; in force when this returns."""
        await self._add(client_channel(self._keys, self._owner, client_id))

    async def unfollow(self, client_id: str) -> None:
        """Follow a client no longer."""
        await self._drop(client_channel(self._keys, self._owner, client_id))

    async def close(self) -> None:
        """Follow nobody any more."""
        for name in tuple(self._channels):
            await self._drop(name)

    async def news(self) -> list[OwnerEvent | ClientFrame | ClientTaken]:
        """Wait for news, or for a loss, and return all there are."""
        await self._came.wait()
        self._came.clear()
        messages, self._waiting, self._bytes = self._waiting, [], 0
        news: list[OwnerEvent | ClientFrame | ClientTaken] = []
        for message in messages:
            try:
                if message.startswith(b"{"):
                    news.append(from_fields(OwnerEvent, orjson.loads(message)))
                elif message.startswith(b"!"):
                    client_id, socket = orjson.loads(message[1:])
                    news.append(ClientTaken(client_id=client_id, socket=socket))
                else:
                    news += read_client_frames(message)
            except UNREADABLE as error:
                logger.warning("event can't be read", extra={"owner": self._owner, "error": str(error)})
        return news

    async def _add(self, name: str) -> None:
        self._channels.add(name)
        await self._join(name, self)

    async def _drop(self, name: str) -> None:
        self._channels.discard(name)
        self._leave(name, self)


def client_channel(keys: Keyspace, owner: str, client_id: str | None) -> str:
    """Return the channel for frames of a client's jobs; None: of those that are no client's."""
    # Lua has no other hash: the same name is made there.
    if client_id is None:
        return keys.client_frames("", owner)
    text = client_id.encode("utf-8", "surrogatepass")
    return keys.client_frames(hashlib.sha1(text, usedforsecurity=False).hexdigest(), owner)


def frame_message(frame: RawFrame) -> bytes:
    """Return a frame in its published form: ``t`` (text) or ``b`` (binary), its run, a blank, and the
    data. A picture that is an output has its place and its node behind the run.
    """
    place = "" if frame.place is None else f"/{frame.place[1]}/{quote(frame.place[0], safe='')}"
    return b"".join((b"t" if frame.text else b"b", frame.run.encode(), place.encode(), b" ", frame.data))


def read_frame(message: bytes) -> RawFrame:
    """Read :func:`frame_message` back."""
    head, _, data = message.partition(b" ")
    run, *place = head[1:].decode().split("/")
    return RawFrame(
        run=run,
        data=data,
        text=head.startswith(b"t"),
        place=(unquote(place[1]), int(place[0])) if place else None,
    )


def read_client_frames(message: bytes) -> Iterator[ClientFrame]:
    """Read frames of a client's job, as ``frames.lua`` puts them together.

    That is the job's id and a blank, and for each frame its length in bytes, a colon, and what
    :func:`frame_message` returns.
    """
    at = message.index(b" ")
    job_id = message[:at].decode()
    at += 1
    while at < len(message):
        begin = message.index(b":", at) + 1
        at = begin + int(message[at : begin - 1])
        if not begin < at <= len(message):
            raise ValueError("a frame is cut short")
        yield ClientFrame(job_id=job_id, frame=read_frame(message[begin:at]))


async def _frames(queue: asyncio.Queue[bytes]) -> AsyncIterator[RawFrame]:
    while True:
        yield read_frame(await queue.get())


async def _job_events(job_id: str, queue: asyncio.Queue[bytes]) -> AsyncIterator[JobEvent]:
    while True:
        message = await queue.get()
        try:
            event = from_fields(JobEvent, {**orjson.loads(message), "job_id": job_id})
        except UNREADABLE as error:
            logger.warning("event can't be read", extra={"job_id": job_id, "error": str(error)})
        else:
            yield event


async def _statuses(queue: asyncio.Queue[bytes]) -> AsyncIterator[StatusChange]:
    while True:
        status, _, rest = (await queue.get()).decode().partition(" ")
        job_id, _, owner = rest.partition(" ")
        if status in _STATUSES:  # a newer version may have others
            yield StatusChange(job_id=job_id, status=JobStatus(status), owner=owner)
