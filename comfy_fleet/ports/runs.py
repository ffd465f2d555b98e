"""Jobs as dispatchers see them: claim, keep alive, end, give back."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from types import MappingProxyType
from typing import Any, Protocol

from comfy_fleet.domain.graphs.merging import MergeMode
from comfy_fleet.domain.jobs.asset import Asset
from comfy_fleet.domain.jobs.frames import RawFrame
from comfy_fleet.domain.jobs.job import Job, JobError, JobStatus, Output, Placement, Progress
from comfy_fleet.domain.jobs.output_names import NumberGroup, OutputId, SavedFile
from comfy_fleet.domain.nodes.pool import PATIENCE_S

MAX_PLACEMENTS = 8
"""Most placement classes that one claim looks at."""

NOTHING_SAID: Mapping[Placement, Sequence[str]] = MappingProxyType({})
"""All nodes of their pools can run all classes."""

TEND_S = 1.0
"""Between two looks after the waiting jobs, in the whole fleet."""

ONLY_CLIENTS = -1
"""Who listens if nobody follows the job itself: its client, or, without one, its owner's websockets."""


@dataclass(frozen=True, kw_only=True)
class Claim:
    """A job, claimed for one run on one node. ``token`` fences every later write.

    Attributes:
        graph: The job's graph as submitted, JSON bytes.
        jobs_behind: How many jobs of the same placement classes wait behind it.
        pool: The node's pool, which may differ from the one that the job named; empty if unknown.
        heard: Whether anybody listened to the job's frames when it was claimed.
        extra_data: What its owner can read of the job's ``extra_data``; empty after a take-over.
        rule: Why this job was chosen, a short constant word
            (:attr:`comfy_fleet.domain.schedule.policy.JobChoice.reason`); empty if it is not known.
        load_s: How long loading its models on the node is expected to take, in seconds.
        merged: How it is merged with other jobs into one prompt; None: it runs alone.
        others: The claims of those jobs. Each has a lease of its own, but only this one's run has the node.
    """

    job: Job
    graph: bytes
    jobs_behind: int = 0
    run: str
    node: str
    token: str
    attempt: int
    pool: str = ""
    heard: bool = False
    extra_data: Mapping[str, Any] = field(default_factory=dict)
    rule: str = ""
    load_s: float = 0.0
    merged: MergeMode | None = None
    others: tuple["Claim", ...] = ()

    @cached_property
    def log_fields(self) -> Mapping[str, str]:
        """The fields of every log line about this run."""
        fields = {"job_id": self.job.id, "run_id": self.run, "node": self.node}
        if self.job.tenant:
            fields["tenant"] = self.job.tenant
        if self.job.traceparent:
            fields["traceparent"] = self.job.traceparent
        return fields


@dataclass(frozen=True, kw_only=True)
class Held:
    """Any run's lease, as it is stored.

    Attributes:
        phase: ``claimed`` (the node may or may not have it), ``accepted``, or ``left`` (only outputs are
            missing).
        manifest: With ``left``: the outputs still to be fetched (JSON-ready).
    """

    claim: Claim
    phase: str
    manifest: Sequence[Mapping[str, Any]] = ()


@dataclass(frozen=True, kw_only=True)
class Waiting:
    """How many jobs of one placement class wait.

    Attributes:
        placement: The class.
        count: How many they are.
        head_score: How far the first of their owners is, in GPU seconds: the class with the least goes first.
    """

    placement: Placement
    count: int
    head_score: float


@dataclass(frozen=True, kw_only=True)
class Beat:
    """What a beat learned.

    Attributes:
        lost: Runs whose lease is gone.
        cancel: Runs whose job is to be canceled.
        release: Runs that are to be taken off their node and put back into the queue.
        heard: Runs whose job's frames have a listener.
    """

    lost: frozenset[str]
    cancel: frozenset[str]
    release: frozenset[str] = frozenset()
    heard: frozenset[str] = frozenset()


@dataclass(frozen=True, kw_only=True)
class StagedInput:
    """Where a file that a graph reads belongs on its node.

    Attributes:
        asset: The file.
        folders: ``FOLDER/FOLDER`` below the fleet's folder of inputs. Only this owner's runs on this node
            have it, and for these bytes only.
        new: Whether it was drawn just now, so that the node has no such file yet.
    """

    asset: Asset
    folders: str
    new: bool


@dataclass(frozen=True, kw_only=True)
class Refused:
    """Why a claim got no job.

    Attributes:
        why: ``leased`` (by ``run``), ``cordoned``, ``removed``, ``unready`` (the lease was held
            ready, and had to be given up meanwhile), ``empty``, ``nothing`` (jobs wait that the node could
            run, but none is worth it now), ``waits`` (for ``node``), ``spared`` (the node, for an
            editor), ``gathers`` (jobs that it could run wait for others to be merged with), ``failover``
            (Redis was failed over, and dispatchers have to hear of it first), or ``broken``:
            the best job could not be read and has ended; others may wait behind it.
        run: Who has the node.
        node: With ``waits``: the node that has the results of the only jobs that could be claimed. With
            ``nothing``: an idle node that has the models of one of them; empty if there is none.
        left_s: With ``waits``, ``spared`` and ``gathers``: for how many seconds they wait for it, leave it
            alone, or wait for others; 0: only if it is free now. With ``nothing``: after how many seconds it
            is worth another look; 0: only when something happens. With ``failover``: for how long.
    """

    why: str
    run: str | None = None
    node: str = ""
    left_s: float = 0.0


@dataclass(frozen=True, kw_only=True)
class StoredOutput:
    """An output whose bytes are stored.

    Attributes:
        output: It.
        asset: The record of its bytes, which is written when the output is committed.
    """

    output: Output
    asset: Asset


class RunStore(Protocol):
    """The jobs, as dispatchers see them. Every write is fenced by the claim's token.

    Every method that takes a claim raises LeaseLost if the token is not the current one.
    """

    async def waiting(self) -> Sequence[Waiting]:
        """Return the placement classes with queued jobs, the one whose turn it is first."""

    async def check_schema(self) -> None:
        """Raise Outdated if a newer version has come, so that this process may take no new work."""

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
        """Choose a job of the given classes for a granted node, and write node and run lease, in one step.

        The rules are those of :mod:`comfy_fleet.domain.schedule`.

        An editor's job is passed over while another node has its graph's results and is worth the wait, but
        not for the nodes in ``unawaited``. With ``spare``, a job that has come less than a quarter of a
        second ago leaves the node to the editor whose results it has.

        Args:
            node: A node that HAProxy has granted.
            placements: At most :data:`MAX_PLACEMENTS` placement classes, the sought one first.
            run: The run's id.
            token: Its fencing token.
            dispatcher: Who claims.
            line: Its life line.
            ttl_s: How long the run's lease holds without a beat.
            pool: The node's pool.
            peers: How many nodes serve the sought class, this one included.
            speed: How fast the node computes compared with one of speed 1.
            ram: Its main memory in bytes; 0: unknown.
            patience_s: For how long a job may be passed over beyond its turn.
            unawaited: Nodes that no editor's job waits for.
            able: Of classes that not every node of their pools can run, those that can: no job is left to
                another node.
            unable: The same, those that can't.
            spare: Whether the node is kept for an editor for a moment.
            ready: Whether the node's lease was held ready, see :mod:`comfy_fleet.ports.ready_leases`.
            runs: Ids of runs for jobs that may be merged with the chosen one, as its workflow allows it.

        Raises:
            Outdated: A newer version works on this store: no more jobs may be claimed.
        """

    async def beat(self, dispatcher: str, claims: Sequence[Claim], *, ttl_s: float) -> Beat:
        """Renew run leases."""

    async def stage(
        self, claim: Claim, asset_ids: Sequence[str], *, keep_s: float
    ) -> Mapping[str, StagedInput]:
        """Return where a run's files belong on its node; those that are gone are left out.

        The same bytes of the same owner have the same place there as long as it is in use: it is given up,
        for good, once ``keep_s`` seconds have passed since the last call and no run needs it. Then the node's
        agent deletes what is there.
        """

    async def accepted(self, claim: Claim) -> None:
        """Note that the node took the prompt; the attempt may count from now on."""

    async def progress(self, claim: Claim, progress: Progress) -> None:
        """Store and publish a progress snapshot."""

    async def followed(self, claim: Claim) -> bool:
        """Return True if anybody listens to the job's events."""

    async def preview(self, claim: Claim, data: Mapping[str, Any]) -> None:
        """Publish a preview, and keep it for a minute for late listeners; it may be lost with the store."""

    async def frames(self, sent: Sequence[tuple[Claim, Sequence[RawFrame]]]) -> Sequence[int | None]:
        """Publish frames of runs, which are stored nowhere; return for each run how many listen.

        :data:`ONLY_CLIENTS` if nobody follows the job itself; None if the run's lease is lost: then nothing
        of it is published.
        """

    async def commit(self, claim: Claim, made: StoredOutput) -> Asset:
        """Commit one output; the same (node, key, index) again is the same output.

        Returns:
            The record of its bytes. It has another id if the job has the same bytes under the same name
            already, and another path if they are stored for the job already.
        """

    async def name_outputs(self, claim: Claim, groups: Sequence[NumberGroup]) -> Mapping[OutputId, SavedFile]:
        """Draw the names under which the job's owner sees its files; no name is ever drawn twice.

        A place in the job keeps its name in later runs and for other dispatchers, unless its file there has
        another folder type or extension.
        """

    async def waits(self, claim: Claim, why: str | None) -> None:
        """Note that a run waits for something of the fleet's own, or no longer does."""

    async def left(self, claim: Claim, manifest: Sequence[Mapping[str, Any]], *, ui: str = "") -> None:
        """Note that the prompt has left the node; the node's lease ends.

        Args:
            claim: The run.
            manifest: The outputs that are still to be fetched.
            ui: What the graph's nodes handed over, as :attr:`comfy_fleet.domain.jobs.run.Run.ui` gives it;
                empty: as the record says, or nothing.
        """

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
        """End the job and both leases; return its final state (``canceling`` always becomes ``canceled``).

        Args:
            claim: The run that ends.
            status: The final state.
            error: Why it failed, if it did.
            duration_s: How long it took, for estimates.
            speed: Natural logarithm of the node's speed in this run, see
                :mod:`comfy_fleet.domain.nodes.speed`.
            models: The model files that it used.
            ran_s: How long its node had the prompt, in seconds, whatever came of it; None if that is not
                known.
            warm: Whether the node had any of the graph's results in its cache.
            reused: Whether most of the work came from there.
            progress: How far it came; None: as far as the record says.
            ui: As for :meth:`left`.
            outputs: Those that are not committed yet; they are before the job ends, in the same step.
            times: Where its time went, as :meth:`.RunTimes.dump` writes it; empty: unknown.
        """

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
        """Return the job to its place in the queue, or end it if its attempts are used up.

        Args:
            claim: The run that ends here.
            counts: Whether this attempt counts towards ``max_attempts``.
            reason: The job's error if this was the last attempt.
            rerun_nodes: Nodes that must not answer from ComfyUI's cache in the next run.
            placement: Its new placement; None keeps the present one.
            progress: How far it came, kept if it ends here; None: as far as the record says.
            ui: As for :meth:`left`, kept if it ends here.
            times: As for :meth:`finish`.
        """

    async def hand_over(self, claims: Sequence[Claim]) -> None:
        """Make these leases expire now, so that another dispatcher takes the runs over at once."""

    async def take_over(
        self,
        *,
        dispatcher: str,
        line: str = "",
        ttl_s: float,
        gone_s: float | None = None,
        expired: bool = True,
        limit: int,
    ) -> Sequence[Held]:
        """Transfer run leases that nobody holds any more to this dispatcher: new token, same run and attempt.

        Args:
            dispatcher: Who takes them.
            line: Its life line.
            ttl_s: How long leases hold.
            gone_s: A run whose dispatcher's life line is closed is taken if it was not renewed for so long;
                None: such runs are left alone.
            expired: Whether runs are taken whose leases have expired.
            limit: How many at most.
        """

    async def known(self, run: str) -> bool:
        """Return whether there is a record of a run, whoever has it."""

    async def lease_of(self, node: str) -> str | None:
        """Return the run that occupies a node, or None."""

    async def occupied(self, nodes: Sequence[str]) -> frozenset[str]:
        """Return those of the given nodes that a run occupies."""

    async def secret(self, claim: Claim) -> bytes | None:
        """Return the encrypted part of the claimed job's ``extra_data``."""

    async def tend(self, *, every_s: float = TEND_S) -> None:
        """Keep waiting jobs as they should be; see ADRs 6, 22 and 38.

        What claims choose by, and places, are made anew where they were lost. Jobs that an earlier version
        has ended wait no more. RQ's list shows the first thousand. Each call does a little; more while
        something is wrong.

        Args:
            every_s: Nothing is done if another process did so within this time.
        """

    async def overdue(self, limit: int) -> int:
        """End queued jobs that are past their deadline as ``expired``; return how many."""

    async def forgettable(self, limit: int) -> Sequence[str]:
        """Return ids of jobs that are past their retention, or were removed.

        From now on nobody can keep them.
        """

    async def postpone(self, job_id: str, *, seconds: float) -> None:
        """Postpone the removal of a job of :meth:`forgettable` that can't be forgotten yet."""

    async def forget(self, job_id: str) -> None:
        """Remove every trace of a job of :meth:`forgettable` from the store; its files must be gone already.

        A job that is still its owner's stays.
        """
