"""The websockets of one owner's clients at one API process, and what happens to that owner's jobs.

Frames are quick, the record is the truth: an end is told from the record, and with it whatever results were
not told before. After a loss (Redis was away, this process was too slow) the records are read again.
"""

import asyncio
import contextlib
import logging
from collections import Counter, OrderedDict, defaultdict
from collections.abc import Callable, Coroutine, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

from comfy_fleet.domain.errors import StoreDown
from comfy_fleet.domain.jobs import client_messages
from comfy_fleet.domain.jobs.client_messages import ClientMessage
from comfy_fleet.domain.jobs.job import Job, JobStatus, OwnerEvent
from comfy_fleet.domain.jobs.shown_prompt import PromptEnd, PromptMessage, Topic
from comfy_fleet.ports.jobs import ClientFeed, ClientFrame, ClientTaken, Events, JobStore
from comfy_fleet.ports.sockets import SocketStore
from comfy_fleet.services.job_frames import JobFrames, is_for_anybody, prompt_end
from comfy_fleet.services.kept_sockets import KeptSockets
from comfy_fleet.services.socket_client import (
    MOST_STATUS,
    MOST_UNTOLD,
    STATUS_S,
    LiveJob,
    Receiver,
    SocketClient,
)
from comfy_fleet.tasks import forever, start

logger = logging.getLogger(__name__)

STATUS_GAP_S, CROWD = 0.2, 50
"""Between two rounds of ``status`` of an owner with more clients than this."""
LINGER_S = 10.0
"""How long a client without a websocket is followed: it connects again after a moment."""
AGAIN_S = 1.0
"""Before a record is read again that could not be read."""
LOOK_S = 5.0
"""Between two looks at whether the number of live jobs agrees with what was heard."""
REFRESH_S = 30.0
"""How often what each websocket shows is written down for other processes, changed or not."""
AT_ONCE = 50
"""Records of ended jobs that are read at once: of a client that comes back, thousands may have ended."""
MOST_OVER = 32_768
"""Jobs whose end is remembered; more than events that may wait to be read."""
_A_TURN, _TURNS = 256, 30


@dataclass(frozen=True, kw_only=True)
class HubDeps:
    """What the hub works with.

    Attributes:
        clock: Unix seconds.
        monotonic: Monotonic seconds.
    """

    jobs: JobStore
    events: Events
    sockets: SocketStore
    clock: Callable[[], float]
    monotonic: Callable[[], float]


class OwnerClients:
    """The clients of one owner that have a websocket here."""

    def __init__(
        self, name: str, process: str, deps: HubDeps, on_closed: Callable[["OwnerClients"], None]
    ) -> None:
        self.name = name
        self.closed = False
        self._process = process
        self._deps = deps
        self._on_closed = on_closed
        self._clients: dict[str, SocketClient] = {}
        self._live: dict[str, LiveJob] = {}
        self._count = 0
        self._jobs_of: defaultdict[str, dict[str, None]] = defaultdict(dict)
        self._anybodys: dict[str, JobFrames] = {}
        self._over: OrderedDict[str, None] = OrderedDict()  # jobs that ended of late: nothing follows an end
        self._feed: ClientFeed | None = None
        self._opened: asyncio.Task[None] | None = None
        self._block = AsyncExitStack()
        self._tasks: set[asyncio.Task[None]] = set()
        self._status_due: asyncio.TimerHandle | None = None
        self._status_at = float("-inf")
        self._begun = 0
        self._kept = KeptSockets(name, deps.sockets, deps.jobs, deps.monotonic, self._is_here)
        self._reads = asyncio.Semaphore(AT_ONCE)
        self._attaching: Counter[str] = Counter()
        self._closing: asyncio.Task[None] | None = None

    # -- websockets come and go ------------------------------------------------------------------------

    async def attach(self, client_id: str, socket: str, receiver: Receiver) -> SocketClient | None:
        """Take a client's newest websocket; None if this has closed meanwhile."""
        self._attaching[client_id] += 1
        try:
            if self._opened is None:
                self._opened = asyncio.create_task(self._open())
            await asyncio.shield(self._opened)
            if self.closed or self._feed is None:
                return None
            await self._feed.follow(client_id)
            missed = [] if client_id in self._clients else await self._kept.missed(client_id)
            client = self._attached(client_id, socket, receiver, missed)
            try:
                await self._deps.events.take_client(self.name, client_id, socket)
                await self.keep()  # if this process dies from now on, others know of the websocket
            except BaseException:
                self.detach(client, socket)
                raise
            return client
        finally:
            self._attaching[client_id] -= 1
            if not self._attaching[client_id]:
                del self._attaching[client_id]
            self._close_if_idle()

    def _attached(
        self, client_id: str, socket: str, receiver: Receiver, untold: Sequence[str]
    ) -> SocketClient:
        known = (client := self._clients.get(client_id)) is not None
        if client is None:
            client = self._clients[client_id] = SocketClient(client_id, jobs=self._jobs_of[client_id])
        if client.leaving is not None:
            client.leaving.cancel()
            client.leaving = None
        if client.receiver is not None:  # the client gave it up, or has lost it without our knowing
            client.missed += client.receiver.untold()
        client.socket, client.newest = socket, False
        client.receiver, client.since = receiver, self._deps.clock()
        receiver.on_told = partial(self._told, client)
        client.told_live, client.told_begun = self._count, self._begun
        client.told_live_at.append(self._deps.monotonic())
        client.send([client_messages.status(self._count, sid=client_id), *client.view.again()])
        missed, client.missed = client.missed, []
        if not known:
            running = [job_id for job_id in client.jobs if self._live[job_id].status is not JobStatus.QUEUED]
            if running:
                self._spawn(self._resume(client, running))
            missed = [job_id for job_id in untold if job_id not in self._live]
        for job_id in dict.fromkeys(missed):
            self._end(client, job_id)
        self._kept.note(client)
        return client

    def _told(self, client: SocketClient, job_ids: Sequence[str]) -> None:
        got = frozenset(job_ids)
        client.missed = [job_id for job_id in client.missed if job_id not in got]
        now = self._deps.monotonic()
        client.told.extend((now, job_id) for job_id in job_ids)
        self._kept.note(client)

    async def _resume(self, client: SocketClient, running: Sequence[str]) -> None:
        """Show a client that comes anew what runs: as far as the records say, and then its frames."""
        for job_id in running:
            job = await self._deps.jobs.get(job_id)
            live = self._live.get(job_id)
            if job is None or live is None or job.run is None or job.status.terminal:
                continue
            start = client_messages.execution_start(job.prompt_id, job.started_at or self._deps.clock())
            self._heard(client, job_id, job.prompt_id, PromptMessage(job.run, Topic.START, start))
            if job.progress is not None and (node := job.progress.current_node) is not None:
                one = client_messages.executing(job.prompt_id, node)
                heard = PromptMessage(job.run, Topic.EXECUTING, one, (node, None))
                self._heard(client, job_id, job.prompt_id, heard)
        await self._deps.events.want_frames(running)

    def detach(self, client: SocketClient, socket: str) -> None:
        """Note that a websocket is closed. Its client is followed for a moment, as it may come again."""
        if client.socket != socket or client.receiver is None:
            return
        untold = [*client.receiver.untold(), *client.view.drop_held_ends()]
        client.missed, client.receiver = [*client.missed, *untold][-MOST_UNTOLD:], None
        self._kept.note(client)
        client.leaving = asyncio.get_running_loop().call_later(LINGER_S, self._leave, client)

    def _leave(self, client: SocketClient) -> None:
        if self._clients.get(client.client_id) is client:
            del self._clients[client.client_id]
            if not client.jobs:
                self._jobs_of.pop(client.client_id, None)
            self._spawn(self._unfollow(client.client_id))
        self._close_if_idle()

    async def _unfollow(self, client_id: str) -> None:
        if self._feed is not None and client_id not in self._clients and client_id not in self._attaching:
            await self._feed.unfollow(client_id)

    def _close_if_idle(self) -> None:
        if not self._clients and not self._attaching and not self.closed:
            self.closed = True
            self._on_closed(self)
            self._closing = start(self.close())

    async def close(self) -> None:
        """Follow nobody any more."""
        self.closed = True
        self._on_closed(self)
        timers = [self._status_due, *(client.leaving for client in self._clients.values())]
        for timer in timers:
            if timer is not None:
                timer.cancel()
        await self._kept.close()
        current = asyncio.current_task()
        tasks = [task for task in self._tasks if task is not current]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._block.aclose()

    async def _open(self) -> None:
        feed = await self._block.enter_async_context(self._deps.events.clients(self.name))
        try:
            await self._reread(feed)
        except BaseException:
            await self._block.aclose()
            raise
        self._feed = feed
        self._spawn(forever(lambda: self._follow(feed), name="client feed"))
        self._spawn(forever(lambda: self._look(feed), name="live jobs"))
        self._spawn(forever(self._refresh, name="websockets"))

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = start(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # -- what happens to jobs --------------------------------------------------------------------------

    async def _follow(self, feed: ClientFeed) -> None:
        while True:
            if feed.lost:
                await self._reread(feed)
            for number, news in enumerate(await feed.news()):
                match news:
                    case ClientFrame():
                        self._framed(news)
                    case OwnerEvent():
                        self._happened(news)
                    case ClientTaken():
                        self._taken(news)
                if number % _A_TURN == _A_TURN - 1:
                    await asyncio.sleep(0)

    def _framed(self, news: ClientFrame) -> None:
        live = self._live.get(news.job_id)
        if live is None:
            return
        if live.client_id is None:
            if is_for_anybody(news.frame):
                self._for_all(news, live)
            return
        client = self._clients.get(live.client_id)
        if client is None or news.job_id in client.ending:
            return
        frames = client.frames.get(news.job_id)
        if frames is None:
            frames = client.frames[news.job_id] = JobFrames(live.prompt_id)
        heard = frames.read(news.frame, metadata=client.metadata)
        if heard is not None and (client.receiver is not None or heard.topic is not Topic.RESULT):
            self._heard(client, news.job_id, live.prompt_id, heard)

    def _heard(self, client: SocketClient, job_id: str, prompt_id: str, heard: PromptMessage) -> None:
        shown = client.view.shown
        client.send(client.view.heard(job_id, prompt_id, heard, self._deps.clock()))
        if client.view.shown != shown:
            self._kept.note(client)

    def _for_all(self, news: ClientFrame, live: LiveJob) -> None:
        frames = self._anybodys.get(news.job_id)
        if frames is None:
            frames = self._anybodys[news.job_id] = JobFrames(live.prompt_id)
        heard = frames.read(news.frame, metadata=False)
        if heard is not None:
            for client in self._clients.values():
                client.send(client.view.apart(heard.message))

    def _happened(self, event: OwnerEvent) -> None:
        self._count = event.live
        if event.job_id in self._over:  # found in the records before its event was read
            self._say_status()
            return
        before = self._live.get(event.job_id)
        client = self._clients.get(event.client_id) if event.client_id is not None else None
        if event.status.terminal:
            self._live.pop(event.job_id, None)
            self._anybodys.pop(event.job_id, None)
            self._over[event.job_id] = None
            while len(self._over) > MOST_OVER:
                self._over.popitem(last=False)
            if event.client_id is not None:
                mine = self._jobs_of[event.client_id]
                mine.pop(event.job_id, None)
                if not mine and client is None:
                    del self._jobs_of[event.client_id]
        else:
            if event.client_id is not None:
                self._jobs_of[event.client_id][event.job_id] = None
            if before is not None and before.status is not event.status:
                self._begun += 1
            self._live[event.job_id] = LiveJob(event.prompt_id, event.client_id, event.status, event.run)
        if client is not None:
            if event.status.terminal:
                self._end(client, event.job_id)
            elif event.status is JobStatus.QUEUED and before is not None and before.run is not None:
                client.send(client.view.given_back(event.job_id))
                self._kept.note(client)
            elif event.run is not None:
                client.view.runs(event.job_id, event.run)
            if before is None:
                client.risen = not event.status.terminal
                self._kept.note(client)
        self._say_status()

    def _taken(self, news: ClientTaken) -> None:
        """Leave a client to its newer websocket, which is at another process."""
        client = self._clients.get(news.client_id)
        if client is None:
            return
        if news.socket.startswith(self._process):
            client.newest = client.newest or news.socket == client.socket
        elif client.newest:  # else the other one's news is the older
            client.receiver, client.socket = None, ""
            self._kept.forget(client)
            if client.leaving is not None:
                client.leaving.cancel()
            self._leave(client)

    # -- ends ------------------------------------------------------------------------------------------

    def _end(self, client: SocketClient, job_id: str) -> None:
        if job_id not in client.ending:
            client.ending.add(job_id)
            self._spawn(self._tell_end(client, job_id))

    async def _tell_end(self, client: SocketClient, job_id: str) -> None:
        """Tell a job's end from its record, as soon as that can be read."""
        job, ui = await self._record(job_id)
        client.ending.discard(job_id)
        if client.receiver is None:
            if client.leaving is not None:
                client.missed = [*client.missed, job_id][-MOST_UNTOLD:]
            client.view.ended(job_id, PromptEnd(run="", start=None, last=()))
            return
        if job is None or job.owner != self.name or not job.status.terminal:
            client.send(client.view.ended(job_id, PromptEnd(run="", start=None, last=())))
            self._kept.note(client)
            return
        frames = client.frames.pop(job_id, None) or JobFrames(job.prompt_id)
        waits = client.view.holds_end(job_id, job.run or "")
        end = prompt_end(
            job,
            ui,
            frames,
            told=client.view.told(job_id, job.run or ""),
            metadata=client.metadata,
            live=None if waits else self._status_for(client),
            at=self._deps.clock(),
        )
        client.send(client.view.ended(job_id, end))
        self._say_status()
        self._kept.note(client)

    async def _record(self, job_id: str) -> tuple[Job | None, Mapping[str, Any]]:
        """Return a job and what its nodes returned, as soon as Redis answers."""
        while True:
            try:
                async with self._reads:
                    return await self._deps.jobs.with_ui(job_id)
            except StoreDown:
                await asyncio.sleep(AGAIN_S)

    # -- status ----------------------------------------------------------------------------------------

    def _status_for(self, client: SocketClient) -> ClientMessage | None:
        """Return the client's next status, if it is due and says anything new.

        An editor that is to run a prompt again and again waits for the number to become 0. So whoever has
        submitted something is told of it, even if that is over by now. Editors read their lists again at each
        status, so the same number is told once more when a job has begun, as ComfyUI does it.
        """
        live = 1 if client.risen and self._count == client.told_live == 0 else self._count
        now, sent = self._deps.monotonic(), client.told_live_at
        if (live, self._begun) == (client.told_live, client.told_begun):
            return None
        if len(sent) == MOST_STATUS and now - sent[0] < STATUS_S:
            return None
        client.told_live, client.told_begun, client.risen = live, self._begun, False
        sent.append(now)
        return client_messages.status(live)

    def _say_status(self) -> None:
        """Tell all clients soon how many jobs are live; the newest number reaches each."""
        if self._status_due is None:
            wait = (
                self._status_at + STATUS_GAP_S - self._deps.monotonic() if len(self._clients) > CROWD else 0
            )
            self._status_due = asyncio.get_running_loop().call_later(max(0.0, wait), self._tell_status)

    def _tell_status(self) -> None:
        self._status_due, self._status_at = None, self._deps.monotonic()
        late = False
        for client in self._clients.values():
            if client.receiver is None or not self._has_news(client):
                continue
            if not client.ending and (one := self._status_for(client)) is not None:
                client.send([one])
            late = late or self._has_news(client)
        if late:
            self._status_due = asyncio.get_running_loop().call_later(STATUS_GAP_S, self._tell_status)

    def _has_news(self, client: SocketClient) -> bool:
        return client.risen or (client.told_live, client.told_begun) != (self._count, self._begun)

    # -- losses ----------------------------------------------------------------------------------------

    async def _reread(self, feed: ClientFeed) -> None:
        """Compare what was heard with the records. Raises StoreDown."""
        feed.lost = False
        try:
            await self._compare()
        except BaseException:
            feed.lost = True
            raise

    async def _compare(self) -> None:
        found = {job.id: job for job in await self._deps.jobs.live(self.name)}
        for job_id, live in tuple(self._live.items()):
            if job_id not in found:
                job = await self._deps.jobs.get(job_id)
                if job is None or job.status.terminal:
                    status = JobStatus.FAILED if job is None else job.status
                    self._happened(_event(job_id, live, status, len(found)))
        for job in found.values():
            known = self._live.get(job.id)
            if known is None or known.status is not job.status or known.run != job.run:
                live = LiveJob(job.prompt_id, job.client_id, job.status, job.run)
                self._happened(_event(job.id, live, job.status, len(found)))
        self._count = await self._deps.jobs.live_count(self.name)
        self._say_status()

    async def _look(self, feed: ClientFeed) -> None:
        while True:
            await asyncio.sleep(LOOK_S)
            with contextlib.suppress(StoreDown):
                if await self._deps.jobs.live_count(self.name) != len(self._live):
                    await self._reread(feed)

    # -- for other processes ---------------------------------------------------------------------------

    async def keep(self) -> None:
        """Write what has changed since the last time. Raises StoreDown."""
        await self._kept.keep()

    def _is_here(self, client: SocketClient) -> bool:
        return self._clients.get(client.client_id) is client

    async def _refresh(self) -> None:
        while True:
            clients = tuple(self._clients.values())
            for turn in range(_TURNS):  # a thousand at once would keep everybody's messages waiting
                await asyncio.sleep(REFRESH_S / _TURNS)
                for client in clients[turn::_TURNS]:
                    if client.receiver is not None:
                        self._kept.note(client)


def _event(job_id: str, live: LiveJob, status: JobStatus, count: int) -> OwnerEvent:
    return OwnerEvent(
        job_id=job_id,
        status=status,
        client_id=live.client_id,
        prompt_id=live.prompt_id,
        run=live.run,
        live=count,
    )
