"""Jobs and runs in memory."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from itertools import count
from typing import Any

from comfy_fleet.domain.errors import LeaseLost
from comfy_fleet.domain.jobs.asset import Asset
from comfy_fleet.domain.jobs.job import Job, JobError, JobEvent, JobStatus, Output, Placement, Progress
from comfy_fleet.domain.jobs.output_names import NumberGroup, OutputId, SavedFile
from comfy_fleet.domain.nodes.pool import PATIENCE_S
from comfy_fleet.ports.jobs import JobSnapshot
from comfy_fleet.ports.runs import NOTHING_SAID, Claim, Refused, StagedInput, StoredOutput, Waiting
from tests.factories import running_job
from tests.fakes.base import Fake, unplayed
from tests.fakes.nodes import FakeNodeRegistry


class FakeEvents(Fake):
    """Live events of jobs.

    Attributes:
        subscribers: How many follow each job.
    """

    def __init__(self) -> None:
        super().__init__()
        self.subscribers: Counter[str] = Counter()
        self._queues: dict[str, list[asyncio.Queue[JobEvent]]] = {}

    def tell(self, event: JobEvent) -> None:
        """Publish an event."""
        for queue in self._queues.get(event.job_id, ()):
            queue.put_nowait(event)

    def unread(self, job_id: str) -> int:
        """Return how many events of a job were not read yet."""
        return sum(queue.qsize() for queue in self._queues.get(job_id, ()))

    frames = clients = want_frames = take_client = unplayed

    @asynccontextmanager
    async def subscribe(self, job_id: str) -> AsyncIterator[AsyncIterator[JobEvent]]:
        self.answer("subscribe")
        queue: asyncio.Queue[JobEvent] = asyncio.Queue()
        self._queues.setdefault(job_id, []).append(queue)
        self.subscribers[job_id] += 1
        try:
            yield _all(queue)
        finally:
            self._queues[job_id].remove(queue)
            self.subscribers[job_id] -= 1


@dataclass(frozen=True, kw_only=True)
class Finished:
    """What a run's end was written with."""

    status: JobStatus
    error: JobError | None
    duration_s: float | None
    speed: float | None
    models: Sequence[str]
    ran_s: float | None
    warm: bool
    reused: bool
    progress: Progress | None
    ui: str
    outputs: Sequence[Output] = ()


@dataclass(frozen=True, kw_only=True)
class Requeued:
    """What a job was given back with."""

    counts: bool
    reason: JobError
    rerun_nodes: frozenset[str]
    placement: Placement | None
    progress: Progress | None
    ui: str


@dataclass
class FakeRun:
    """A run that is not over.

    Attributes:
        on_node: Whether it has its node's lease.
    """

    claim: Claim
    on_node: bool = True
    outputs: dict[tuple[str, str, int], Output] = field(default_factory=dict)


class FakeRunStore(Fake):
    """Queues of placement classes, and runs that are fenced by their tokens.

    Attributes:
        registry: Which nodes may be claimed; None: any.
        queues: The jobs that wait in each class, best first.
        runs: Those that are not over.
        offered: What each claim was asked for.
        progressed: Every progress that was stored.
        previews: Every preview that was published.
        waiting_for: What each note said that a run waits for.
        events: Who follows the jobs.
        finished: Every end that was written.
        requeued: Every job that was given back.
        broken: Claims that meet a job that can't be read: it ends.
        files: The records of committed outputs, by id.
        names: What was drawn for each job and place; all jobs are one owner's.
        numbers: The last number of each counter.
        asked: What each claim said of its node.
        vain: Nodes on which no job is worth its load: an idle node that has the models, or empty, and in how
            many seconds it is worth another look.
        results: The node that has the results of a job, by its id, and for how long it waits for that.
        staged: Where files belong on their nodes, by asset.
        kept_s: For how long each was to stay there.
    """

    def __init__(self, registry: FakeNodeRegistry | None = None) -> None:
        super().__init__()
        self.registry = registry
        self.queues: dict[Placement, list[Job]] = {}
        self.runs: dict[str, FakeRun] = {}
        self.offered: list[Sequence[Placement]] = []
        self.sparing: list[tuple[str, bool]] = []
        self.progressed: list[Progress] = []
        self.previews: list[Mapping[str, Any]] = []
        self.waiting_for: list[str | None] = []
        self.events = FakeEvents()
        self.finished: list[Finished] = []
        self.requeued: list[Requeued] = []
        self.broken = 0
        self.files: dict[str, Asset] = {}
        self.names: dict[tuple[str, OutputId], SavedFile] = {}
        self.numbers: Counter[str] = Counter()
        self.asked: list[Mapping[str, Any]] = []
        self.vain: dict[str, tuple[str, float]] = {}
        self.results: dict[str, tuple[str, float]] = {}
        self.staged: dict[str, StagedInput] = {}
        self.kept_s: list[float] = []
        self._ids = count(1)

    # -- what a test says -----------------------------------------------------------------------------

    def queue(self, jobs: int, placement: Placement | None = None) -> None:
        """Have some more jobs wait."""
        placement = placement or Placement()
        waiting = self.queues.setdefault(placement, [])
        for _ in range(jobs):
            waiting.append(
                running_job(id=f"j{next(self._ids)}", placement=placement, status=JobStatus.QUEUED)
            )

    def hold(self, claim: Claim) -> None:
        """Have a run hold its node, whoever claimed it."""
        self.runs[claim.run] = FakeRun(claim)
        self._show(claim.node)

    def lose(self, run: str) -> None:
        """Have another dispatcher take a run over."""
        held = self.runs[run]
        held.claim = replace(held.claim, token=f"{held.claim.token}'")

    # -- the port -------------------------------------------------------------------------------------

    async def waiting(self) -> Sequence[Waiting]:
        self.answer("waiting")
        return [
            Waiting(placement=placement, count=len(jobs), head_score=float(at))
            for at, (placement, jobs) in enumerate(self.queues.items())
            if jobs
        ]

    async def claim(
        self,
        *,
        node: str,
        placements: Sequence[Placement],
        run: str,
        token: str,
        dispatcher: str,
        line: str = "",
        ttl_s: float,
        pool: str = "",
        peers: int = 1,
        speed: float = 1.0,
        ram: int = 0,
        patience_s: float = PATIENCE_S,
        unawaited: Sequence[str] = (),
        able: Mapping[Placement, Sequence[str]] = NOTHING_SAID,
        unable: Mapping[Placement, Sequence[str]] = NOTHING_SAID,
        spare: bool = False,
        ready: bool = False,
        runs: Sequence[str] = (),
    ) -> Claim | Refused:
        self.offered.append(placements)
        self.sparing.append((node, spare))
        self.asked.append(
            {
                "node": node,
                "pool": pool,
                "peers": peers,
                "speed": speed,
                "ram": ram,
                "patience_s": patience_s,
                "able": able,
                "unable": unable,
            }
        )
        self.answer("claim")
        if self.registry is not None:
            state = self.registry.held.get(node)
            if state is None:
                return Refused(why="removed")
            if state.node.cordoned:
                return Refused(why="cordoned")
        if (holder := self._holder(node)) is not None:
            return Refused(why="leased", run=holder)
        waiting = [self.queues.get(placement, []) for placement in placements]
        found = [(job, jobs) for jobs in waiting for job in jobs]
        if not found:
            return Refused(why="empty")
        if (vain := self.vain.get(node)) is not None:
            return Refused(why="nothing", node=vain[0], left_s=vain[1])
        here = [one for one in found if self.results.get(one[0].id, (node, 0))[0] in (node, *unawaited)]
        if not here:
            there, left_s = self.results[found[0][0].id]
            return Refused(why="waits", node=there, left_s=left_s)
        job, jobs = here[0]
        jobs.remove(job)
        if self.broken:
            self.broken -= 1
            return Refused(why="broken")
        claim = Claim(
            job=replace(job, status=JobStatus.RUNNING, run=run, node=node),
            graph=b"{}",
            run=run,
            node=node,
            token=token,
            attempt=job.attempt,
            jobs_behind=sum(len(self.queues.get(placement, ())) for placement in placements),
        )
        self.hold(claim)
        return claim

    async def stage(
        self, claim: Claim, asset_ids: Sequence[str], *, keep_s: float
    ) -> Mapping[str, StagedInput]:
        self.answer("stage")
        self.owned(claim.run, claim.token)
        self.kept_s.append(keep_s)
        return {asset_id: self.staged[asset_id] for asset_id in asset_ids if asset_id in self.staged}

    async def known(self, run: str) -> bool:
        self.answer("known")
        return run in self.runs

    async def lease_of(self, node: str) -> str | None:
        self.answer("lease_of")
        return self._holder(node)

    async def occupied(self, nodes: Sequence[str]) -> frozenset[str]:
        self.answer("occupied")
        await asyncio.sleep(0)
        return frozenset(node for node in nodes if self._holder(node) is not None)

    async def progress(self, claim: Claim, progress: Progress) -> None:
        self.answer("progress")
        self.owned(claim.run, claim.token)
        self.progressed.append(progress)

    async def followed(self, claim: Claim) -> bool:
        self.answer("followed")
        return bool(self.events.subscribers[claim.job.id])

    async def preview(self, claim: Claim, data: Mapping[str, Any]) -> None:
        self.answer("preview")
        self.owned(claim.run, claim.token)
        self.previews.append(data)

    async def commit(self, claim: Claim, made: StoredOutput) -> Asset:
        self.answer("commit")
        return self._commit(claim, made)

    def _commit(self, claim: Claim, made: StoredOutput) -> Asset:
        run, output = self.owned(claim.run, claim.token), made.output
        run.outputs.setdefault((output.node_id, output.key, output.index), output)
        return self.files.setdefault(made.asset.id, made.asset)

    async def name_outputs(self, claim: Claim, groups: Sequence[NumberGroup]) -> Mapping[OutputId, SavedFile]:
        self.answer("name_outputs")
        self.owned(claim.run, claim.token)
        made = {}
        for group in groups:
            number = 0
            for id_, file in group.files.items():
                place = (claim.job.id, id_)
                if place not in self.names and file.unnumbered and self.numbers[file.unnumbered] == 0:
                    self.numbers[file.unnumbered] = 1
                    self.names[place] = SavedFile.parse(file.unnumbered)
                elif place not in self.names:
                    if not number:
                        self.numbers[group.counter] += 1
                        number = self.numbers[group.counter]
                    before, after = file.around
                    self.names[place] = SavedFile.parse(f"{before}{number:05}{after}")
                made[id_] = self.names[place]
        return made

    async def waits(self, claim: Claim, why: str | None) -> None:
        self.answer("waits")
        self.owned(claim.run, claim.token)
        self.waiting_for.append(why)

    async def left(self, claim: Claim, manifest: Sequence[Mapping[str, Any]], *, ui: str = "") -> None:
        self.answer("left")
        self.owned(claim.run, claim.token).on_node = False
        self._show(claim.node)

    async def finish(
        self,
        claim: Claim,
        status: JobStatus,
        *,
        error: JobError | None,
        duration_s: float | None,
        speed: float | None = None,
        models: Sequence[str] = (),
        ran_s: float | None = None,
        warm: bool = False,
        reused: bool = False,
        progress: Progress | None = None,
        ui: str = "",
        outputs: Sequence[StoredOutput] = (),
        times: str = "",
    ) -> JobStatus:
        self.answer("finish")
        for made in outputs:
            self._commit(claim, made)
        self._end(claim)
        self.finished.append(
            Finished(
                status=status,
                error=error,
                duration_s=duration_s,
                speed=speed,
                models=models,
                ran_s=ran_s,
                warm=warm,
                reused=reused,
                progress=progress,
                ui=ui,
                outputs=tuple(made.output for made in outputs),
            )
        )
        return status

    async def requeue(
        self,
        claim: Claim,
        *,
        counts: bool,
        reason: JobError,
        rerun_nodes: frozenset[str] = frozenset(),
        placement: Placement | None = None,
        progress: Progress | None = None,
        ui: str = "",
        times: str = "",
    ) -> JobStatus:
        self.answer("requeue")
        self._end(claim)
        self.requeued.append(
            Requeued(
                counts=counts,
                reason=reason,
                rerun_nodes=rerun_nodes,
                placement=placement,
                progress=progress,
                ui=ui,
            )
        )
        job = replace(claim.job, attempt=claim.job.attempt + counts, run=None, node=None)
        if counts and job.attempt >= job.max_attempts:
            return JobStatus.FAILED
        where = placement or job.placement
        self.queues.setdefault(where, []).insert(0, replace(job, placement=where, status=JobStatus.QUEUED))
        return JobStatus.QUEUED

    check_schema = beat = accepted = hand_over = take_over = secret = frames = unplayed
    overdue = forgettable = postpone = forget = tend = unplayed

    def _holder(self, node: str) -> str | None:
        return next((run for run, it in self.runs.items() if it.on_node and it.claim.node == node), None)

    def _end(self, claim: Claim) -> None:
        self.owned(claim.run, claim.token)
        del self.runs[claim.run]
        self._show(claim.node)

    def _show(self, node: str) -> None:
        """Have the registry show what a node does."""
        if self.registry is not None and node in self.registry.held:
            self.registry.put(node, run=self._holder(node))

    def owned(self, run: str, token: str) -> FakeRun:
        """Return a run that a token holds; raises LeaseLost."""
        held = self.runs.get(run)
        if held is None or held.claim.token != token:
            raise LeaseLost(f"run {run} belongs to another dispatcher now")
        return held


class FakeJobStore(Fake):
    """The jobs as clients see them.

    Attributes:
        held: By id.
        places: Where in the queue each waits.
    """

    def __init__(self, *jobs: Job) -> None:
        super().__init__()
        self.held = {job.id: job for job in jobs}
        self.places: dict[str, int] = {}

    async def get(self, job_id: str) -> Job | None:
        self.answer("get")
        return self.held.get(job_id)

    async def position(self, job: Job) -> int | None:
        self.answer("position")
        found = self.held.get(job.id)
        return None if found is None or found.status is not JobStatus.QUEUED else self.places.get(job.id, 1)

    async def snapshot(self, job_id: str) -> JobSnapshot | None:
        self.answer("snapshot")
        found = self.held.get(job_id)
        if found is None:
            return None
        place = self.places.get(job_id, 1) if found.status is JobStatus.QUEUED else None
        return JobSnapshot(job=found, position=place)

    submit = made_by = replayed = graph = find = ids = request_cancel = depth = unplayed
    with_ui = by_prompt = live = live_count = hide = withdraw = saved = saved_files = unplayed
    made_since = positions = remove = keep = waits = load = briefs = first_outputs = unplayed


async def _all(queue: asyncio.Queue[JobEvent]) -> AsyncIterator[JobEvent]:
    while True:
        yield await queue.get()
