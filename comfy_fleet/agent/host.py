"""The agent of one GPU host, or the central one: watches nodes and GPUs, and decides each node's state."""

import asyncio
import contextlib
import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import reduce
from itertools import chain, islice
from pathlib import Path
from typing import Any
from uuid import uuid4

import comfy_fleet
from comfy_fleet.adapters.comfyui.direct_node import NodeSession, trust
from comfy_fleet.adapters.nvml import NvmlProbe
from comfy_fleet.adapters.system import procfs
from comfy_fleet.agent.api_client import Answer
from comfy_fleet.agent.cleaner import Cleaner, Folders
from comfy_fleet.agent.comfyui_process import ComfyUIProcess
from comfy_fleet.agent.gpu_assessor import CPU, GpuAssessor, NodeOnGpu, gpu_facts
from comfy_fleet.agent.node_poller import NodePoller
from comfy_fleet.domain.nodes.agent_state import HEAVIEST, AgentState, Readiness, both, record_state
from comfy_fleet.domain.nodes.gpu import Gpus, Nvml
from comfy_fleet.domain.nodes.gpu_assessment import Policy
from comfy_fleet.domain.nodes.host import GpuAllocation, Heartbeat, Joining, NodeReport
from comfy_fleet.domain.nodes.model_fetch import MODELS_FACT, ModelOrder
from comfy_fleet.domain.nodes.node import Node, parse_place
from comfy_fleet.domain.nodes.pool import PoolDefaults
from comfy_fleet.domain.nodes.process_supervision import ProcessPhase
from comfy_fleet.domain.nodes.vram import Counted, Device, MemoryClaim
from comfy_fleet.tasks import forever

logger = logging.getLogger(__name__)

LOOK_S = 0.25
MOST_SEEN = 10_000  # most prompts in one heartbeat; the API takes no more
PROBES_PER_S = 100  # for a central agent: with more nodes, each is looked at less often
_FIND_PID_EVERY_S = 5.0
_WELL = AgentState(readiness=Readiness.READY, weight=100)
_UNSEEN = AgentState(readiness=Readiness.HOLD, reason="was not looked at yet")


@dataclass(kw_only=True)
class Member:
    """A node that the agent looks after.

    Attributes:
        probe: Polls it over HTTP.
        gpu: Its ``CUDA_VISIBLE_DEVICES``; None if it is on another machine or unknown.
        process: Its process, if the agent runs or restarts it.
        joining: Its registration; None if somebody else registered it.
        folders: Its files, if they can be reached.
        models: Its folder ``models``; None if the agent does not see it.
        on_cpu: Whether it computes on the host's processor.
    """

    probe: NodePoller
    gpu: str | None = None
    process: ComfyUIProcess | None = None
    joining: Joining | None = None
    folders: Folders | None = None
    models: Path | None = None
    on_cpu: bool = False
    pids: frozenset[int] = field(default_factory=frozenset)

    @property
    def name(self) -> str:
        """Its name."""
        return self.probe.name


class HostAgent:
    """Watches its nodes and their GPUs, and decides for each whether new jobs may come.

    Attributes:
        host: Its host's name.
        address: ``HOST:PORT`` where agent-checks are answered.
        members: Its nodes by name.
        stopping: Set once no new job may come, because the agent is about to end.
        changed: Set when the API should hear of a change soon; cleared when it is sent.
        instance: Which start of the agent this is.
        fetch: Takes orders to fetch model files; None: nobody does.
    """

    def __init__(
        self,
        host: str,
        *,
        central: bool = False,
        policy: Policy | None = None,
        pools: PoolDefaults | None = None,
        nvml: NvmlProbe | None = None,
        ca_file: Path | None = None,
        credentials: Callable[[Node], str] = lambda _: "",
        grace_s: float = 10.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Set up; nothing is read before :meth:`run`.

        Args:
            host: Its host's name.
            central: Whether its nodes are those that have no agent of their own.
            policy: When a GPU drains.
            pools: Defaults of pools: when idle nodes unload their models.
            nvml: Reads the GPUs; None reads none.
            ca_file: Who may sign the certificates of https nodes; None: whom the machine trusts.
            credentials: Tells the ``USER:PASSWORD`` of a node that somebody else registered; empty for none.
            grace_s: How old the API's last word may be before ``ready`` is no longer said.
            clock: Seconds, monotonic.
        """
        self.members: dict[str, Member] = {}
        self.stopping = False
        self.changed = asyncio.Event()
        self.host = host
        self.address = ""
        self._central = central
        self._pools = pools or PoolDefaults()
        self._nvml = nvml
        self._credentials = credentials
        self._clock = clock
        self._assessor = GpuAssessor(policy)
        self._gpus = Gpus(why=Nvml.NO_DEVICE)
        self.instance = uuid4().hex
        self.fetch: Callable[[Sequence[ModelOrder]], None] | None = None
        self._joined: set[str] = set()
        self._store = ""
        self._records: Mapping[str, Node] = {}
        self._confirmed_at: float | None = None
        self._grace_s = grace_s
        self._neighbours: tuple[float, Mapping[str, GpuAllocation]] | None = None
        self._refused: Mapping[str, str] = {}
        self._cleaner = Cleaner()
        self._logged: dict[str, Readiness] = {}
        self._reported: dict[str, Readiness] = {}
        self._session = NodeSession(trust(ca_file))
        self._looking: dict[str, asyncio.Task[None]] = {}

    def model_folders(self) -> dict[str, Path]:
        """Return the nodes' folders ``models``, as far as the agent sees them."""
        return {name: one.models for name, one in self.members.items() if one.models is not None}

    def probe(self, name: str, url: str, credentials: str = "") -> NodePoller:
        """Return a probe that shares the agent's connections."""
        return NodePoller(name, url, self._session, credentials=credentials, clock=self._clock)

    def add(self, member: Member) -> None:
        """Add a node."""
        self.members[member.name] = member

    async def look_at_gpus(self) -> Gpus:
        """Look once, so that the first heartbeat can name the nodes' GPUs."""
        if self._nvml is not None:
            self._gpus = await self._nvml.look()
        return self._gpus

    def follow(self, nodes: Sequence[Node]) -> None:
        """Watch exactly these nodes, which the API has just confirmed; for the central agent."""
        self._confirm(nodes)
        wanted = {node.name: (node.url.rstrip("/"), self._credentials(node)) for node in nodes}
        for name, member in list(self.members.items()):
            if wanted.get(name) != (member.probe.url, member.probe.credentials):
                self._forget(name)
        for name, (url, credentials) in wanted.items():
            if name not in self.members:
                self.add(Member(probe=self.probe(name, url, credentials)))
                self._look_after(name)

    # ---- what it says --------------------------------------------------------------------------------------

    def confirmed_s_ago(self) -> float | None:
        """Return for how many seconds the API has not answered; None: it never has."""
        return None if self._confirmed_at is None else self._clock() - self._confirmed_at

    def answer(self, name: str) -> AgentState | None:
        """Return a node's state for HAProxy, by its record and by what was observed.

        None if it is not registered here, or the API has never answered.
        """
        node = self._records.get(name)
        if node is None or self._confirmed_at is None:
            return None
        state = record_state(node, age_s=self._clock() - self._confirmed_at, grace_s=self._grace_s)
        state = both(state, self._observed(name))
        state = replace(state, weight=min(HEAVIEST, state.weight))
        if self._logged.get(name) is not state.readiness:
            self._logged[name] = state.readiness
            logger.info(
                "agent says", extra={"node": name, "verdict": state.readiness.value, "why": state.reason}
            )
        return state

    def _observed(self, name: str) -> AgentState:
        """Return a node's state by observation: its answers, its process, its work, its GPU."""
        member = self.members.get(name)
        if member is None:
            return _UNSEEN
        found: list[AgentState] = []
        if self.stopping:
            found.append(AgentState(readiness=Readiness.DRAIN, reason="its agent is stopping"))
        if member.process is not None and not member.process.up:
            found.append(AgentState(readiness=Readiness.DRAIN, reason=member.process.watch.why))
        if member.probe.queue.orphans:
            first = member.probe.queue.orphans[0].id
            reason = (
                f"works on {first[:80]}, which no run explains; if that does not end, restart its ComfyUI"
            )
            found.append(AgentState(readiness=Readiness.DRAIN, reason=reason))
        if member.probe.faults:
            found.append(
                AgentState(readiness=Readiness.DRAIN, reason=next(iter(member.probe.faults.values())))
            )
        if member.probe.heard_at is None:
            # HAProxy considers a server that leaves maintenance healthy until its first checks have failed.
            reason = f"has not answered yet{f': {member.probe.trouble}' if member.probe.trouble else ''}"
            found.append(AgentState(readiness=Readiness.HOLD, reason=reason))
        assessment = self._assessor.of(name)
        if assessment is not None:
            found.append(assessment.verdict)
        return reduce(both, found, _WELL) if found else _UNSEEN

    @property
    def busy(self) -> bool:
        """Whether anything runs or waits on a ComfyUI that ends with the agent."""
        members = self.members.values()
        return any(one.process is not None and one.process.ours and one.probe.queue.busy for one in members)

    def turn(self, name: str) -> bool:
        """Return whether a process may be recycled: one of a host at a time."""
        away = (ProcessPhase.LEAVING, ProcessPhase.STOPPING, ProcessPhase.STARTING)
        processes = {one.name: one.process for one in self.members.values() if one.process is not None}
        return not any(one.watch.phase in away for other, one in processes.items() if other != name)

    def busy_gpu(self, key: str | None) -> int | None:
        """Return how busy a GPU is, in percent; None if that is not known."""
        found = self._gpus.find(key) if key is not None else None
        return None if found is None else found.utilisation

    def heartbeat(self) -> Heartbeat:
        """Return all observations."""
        members = list(self.members.values())
        return Heartbeat(
            host=self.host,
            instance=self.instance,
            central=self._central,
            version=comfy_fleet.__version__,
            agent=self.address,
            gpus=[gpu_facts(gpu) for gpu in self._gpus.gpus],
            gpus_why="" if self._gpus.why is Nvml.OK else self._why_no_gpus(),
            nodes=[self._report(member) for member in self.members.values()],
            seen=list(islice(chain.from_iterable(one.probe.queue.prompts for one in members), MOST_SEEN)),
            leaving=[
                member.name
                for member in self.members.values()
                if member.process is not None and member.process.watch.phase is ProcessPhase.LEAVING
            ],
            deleted=list(self._cleaner.deleted),
        )

    def compose(self) -> tuple[Heartbeat, Sequence[Joining]]:
        """Return the next heartbeat, with the nodes that still have to be registered."""
        joining = [
            member.joining
            for member in self.members.values()
            if member.joining is not None
            and member.name not in self._joined
            and (member.process is None or member.process.watch.phase is not ProcessPhase.STOPPED)
        ]
        beat = self.heartbeat()
        self._reported = {report.name: report.readiness for report in beat.nodes}
        return beat, joining

    def take(self, answer: Answer) -> None:
        """Carry out the orders in an answer of the API."""
        if not self._central:
            self._confirm(answer.nodes)
        self._neighbours = answer.asked_at, answer.neighbours
        asked = {report.name: report.boot_id for report in answer.asked.nodes}
        for member in self.members.values():
            member.probe.queue = member.probe.queue.told(answer.asked.seen, answer.explained, answer.asked_at)
            if member.process is not None and member.name in answer.clear:
                member.process.clear(answer.asked_at)
            # A process that came up while the request was in progress is the restart that was ordered.
            same = asked.get(member.name) == self._boot(member)
            if member.process is not None and member.name in answer.restart and same:
                member.process.recycle("an operator wants it restarted")
        if answer.store and answer.store != self._store:
            if self._store and self._joined:
                logger.warning("the fleet's store was emptied: nodes are registered again")
                self._joined.clear()
                self.changed.set()
            self._store = answer.store
        self._joined |= answer.joined
        if answer.refused != self._refused:
            for name, reason in answer.refused.items():
                logger.error("node can't be registered", extra={"node": name, "reason": reason})
        self._refused = answer.refused
        folders = {name: one.folders for name, one in self.members.items() if one.folders is not None}
        self._cleaner.take(answer.delete, folders)
        if self.fetch is not None:
            self.fetch(answer.fetches)

    def _confirm(self, nodes: Sequence[Node]) -> None:
        self._records = {node.name: node for node in nodes}
        self._logged = {name: readiness for name, readiness in self._logged.items() if name in self._records}
        self._confirmed_at = self._clock()

    def _report(self, member: Member) -> NodeReport:
        state = self.answer(member.name) or _UNSEEN
        probe, process = member.probe, member.process
        now = self._clock()
        facts: dict[str, Any] = {
            "url": probe.url,
            "gpu": member.gpu,
            "weight": state.weight,
            "vram": dict(self._assessor.facts(member.name)),
            "version": probe.version[:80],
            "busy": probe.queue.busy,
            "orphans": [prompt.id for prompt in probe.queue.orphans[:20]],
            "trouble": probe.trouble[:300],
            "answered_s_ago": None if probe.heard_at is None else round(now - probe.heard_at, 1),
            "cleans": member.folders is not None,
            MODELS_FACT: member.models is not None,
        }
        if process is not None:
            facts |= {
                "pid": process.pid,
                "phase": process.watch.phase.value,
                "restarts": max(0, process.watch.restarts),
                "jobs": process.jobs,
                "host_memory_bytes": process.used.own_bytes,
            }
        return NodeReport(
            name=member.name,
            readiness=state.readiness,
            reason=state.reason[:500],
            weight=state.weight,
            freed_id=f"{self.instance}.{probe.frees}" if probe.frees else "",
            boot_id=self._boot(member),
            gpu_allocation=self._allocation(member),
            facts=facts,
            address=parse_place(probe.url).key,
            runs=probe.queue.shown(now),
        )

    def _allocation(self, member: Member) -> GpuAllocation | None:
        gpu = self._gpus.find(member.gpu) if member.gpu is not None and not member.on_cpu else None
        if gpu is None or not gpu.uuid:
            return None
        claim = self._claim(member)
        counted = None if claim.told is None else claim.counted
        return GpuAllocation(
            gpu=gpu.uuid,
            running=claim.running,
            pids=tuple(sorted(claim.pids)),
            own=None if counted is None else counted.own,
            used=None if counted is None else counted.used,
            age_s=0.0 if counted is None else round(counted.age_s, 3),
        )

    def _boot(self, member: Member) -> str:
        process = member.process
        return f"{self.instance}.{process.watch.restarts}" if process is not None and process.up else ""

    def _why_no_gpus(self) -> str:
        if self._nvml is None:
            return "not asked"
        return f"{self._gpus.why.value}: {self._gpus.error}" if self._gpus.error else self._gpus.why.value

    # ---- what it does --------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Look at everything until canceled."""
        for name in self.members.keys() - self._looking.keys():
            self._look_after(name)
        try:
            while True:
                await self.look_at_gpus()
                self.judge_all()
                if not self._central and self._has_news():  # of a thousand nodes one always has
                    self.changed.set()
                await asyncio.sleep(LOOK_S)
        finally:
            for task in self._looking.values():
                task.cancel()
            await asyncio.gather(*self._looking.values(), return_exceptions=True)
            await self._cleaner.stop()
            await self._session.aclose()
            if self._nvml is not None:
                await self._nvml.close()

    def judge_all(self) -> None:
        """Assess every node of the host by present knowledge."""
        if self._neighbours is None and not self._central:
            return  # the owner of memory is unknown until the API has named the other nodes here
        nodes_on_gpus = []
        for member in self.members.values():
            known = self._records.get(member.name)
            nodes_on_gpus.append(
                NodeOnGpu(
                    gpu=CPU if member.on_cpu else member.gpu,
                    claim=self._claim(member),
                    speed=None if known is None else known.pace,
                )
            )
        self._assessor.look(self._gpus, [*nodes_on_gpus, *self._others()], now_s=self._clock())

    def _claim(self, member: Member) -> MemoryClaim:
        process = member.process
        if process is not None:
            member.pids = process.used.pids if process.pid is not None else frozenset()
        rss = process.used.own_bytes if process is not None and member.on_cpu else None
        counted = member.probe.stats.last(rss_bytes=rss)
        if process is not None and not process.up:
            counted = None
        running = process is None or process.running
        return MemoryClaim(node=member.name, pids=member.pids, counted=counted, running=running)

    def _others(self) -> Iterator[NodeOnGpu]:
        """Yield other agents' nodes on these GPUs, by the API's last answer."""
        told_at, allocations = self._neighbours or (0.0, {})
        for name, gpu_allocation in allocations.items():
            if name in self.members:
                continue
            age_s = gpu_allocation.age_s + self._clock() - told_at
            counted = Counted(
                device=Device.CARD, used=gpu_allocation.used, own=gpu_allocation.own, age_s=age_s
            )
            pids = frozenset(gpu_allocation.pids)
            claim = MemoryClaim(
                node=name, pids=pids, counted=counted, running=gpu_allocation.running, late=True
            )
            yield NodeOnGpu(gpu=gpu_allocation.gpu, claim=claim)

    def _has_news(self) -> bool:
        states = {name: self.answer(name) for name in self._reported if name in self.members}
        return any(state and state.readiness is not self._reported[name] for name, state in states.items())

    def _look_after(self, name: str) -> None:
        what = f"look at {name}"
        looking = forever(lambda: self._watch(name), name=what)
        self._looking[name] = asyncio.create_task(looking, name=what)

    def _forget(self, name: str) -> None:
        del self.members[name]
        if (task := self._looking.pop(name, None)) is not None:
            task.cancel()

    async def _watch(self, name: str) -> None:
        member = self.members[name]
        beside = member.joining is not None and member.process is None
        find_pid_at = self._clock()
        while True:
            process = member.process
            if process is None or process.watch.phase in (ProcessPhase.UP, ProcessPhase.LEAVING):
                await member.probe.look()
                await member.probe.stop_orphans()
                await self._free_if_idle(member)
            if beside and self._clock() >= find_pid_at:
                find_pid_at = self._clock() + _FIND_PID_EVERY_S
                member.pids = await asyncio.to_thread(_pids_of, member.probe.url)
            unheard = member.probe.heard_at is None  # it gets no job before it has answered
            await asyncio.sleep(LOOK_S if unheard else max(LOOK_S, len(self.members) / PROBES_PER_S))

    async def _free_if_idle(self, member: Member) -> None:
        known = self._records.get(member.name)
        idle_s = self._pools.idle_s(known.pool, known.free_idle_s) if known is not None else 0
        if idle_s and await member.probe.free_if_idle(idle_s):
            self.changed.set()


def _pids_of(url: str) -> frozenset[int]:
    """Return the processes of a ComfyUI on this machine; empty if they are hidden."""
    place = parse_place(url)
    if place.proxied:
        return frozenset()  # a proxy listens there
    with contextlib.suppress(OSError):
        pid = procfs.listener(place.port)
        if pid is not None and pid != os.getpid():
            return procfs.family(pid)
    return frozenset()
