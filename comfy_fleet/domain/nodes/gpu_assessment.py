"""Does a GPU's state let its nodes get new jobs? A pure rule with a memory of its own.

**Two thresholds for foreign memory**; the lower one counts.

- 90 % of the card: beyond that no useful job fits.
- What leaves less than the smallest job needs. If the operator has not set that need, it is two thirds of
  what the card can give. Jobs are matched to cards by size, and cards come in steps of about that ratio (24,
  16, 12, 8 GB): a card with less than two thirds left is smaller than the one that its jobs were meant for. A
  desktop's gigabyte or two stays well below; 10 GB on a 24 GB card do not. A host's memory has many uses
  besides jobs on the CPU, so there only the 90 % count.

**The reserve** is memory that no model can use although nobody else holds it: each node's CUDA context (half
a GiB), and 2 % of the card for fragmentation and for a desktop that grows while a job runs.

**Hysteresis**: a drained GPU returns only below a second threshold (lower by 5 % of the card), and only after
it has stayed below it for the whole dwell time. The dwell time delays only the return; a drain takes effect
at once. Faults are treated in the same way.

**The weight** is the lower of what heat and measured speed allow: speed that was measured in the heat
includes its effect already.
"""

from dataclasses import dataclass, replace

from comfy_fleet.domain.nodes.agent_state import AgentState, Readiness
from comfy_fleet.domain.nodes.gpu import Gpu, Recovery, Throttle
from comfy_fleet.domain.nodes.vram import CONTEXT_BYTES, GIB, Source, Usage

FATAL_XIDS = frozenset({46, 48, 54, 62, 64, 79, 95, 110, 119, 120, 140, 143, 158})
"""Xids after which a GPU needs a reset or a repair (NVIDIA's "Xid Errors"). The others are mostly a program's
fault (13, 31, 43, 45), contained (94), or about links between GPUs (74), which ComfyUI does not use."""

_HEAT_PERCENT = {
    Throttle.SOFT_THERMAL: 60,
    Throttle.HARD_THERMAL: 30,  # hardware halves the clocks or worse
    Throttle.HARD: 30,
    Throttle.POWER_BRAKE: 30,
}


@dataclass(frozen=True, kw_only=True)
class Policy:
    """What an operator may set; the module's docstring explains the defaults.

    Attributes:
        need_bytes: What the smallest job of the pool needs; None: two thirds of what the card can give.
        reserve_bytes: Never counted as available; None: half a GiB for each node and 2 % of the card.
        foreign_share: The share of the card above which foreign memory always drains the node.
        band_share: How far below the threshold, as a share of the card, a drained GPU must fall to return.
        dwell_s: How long it must have been fit before it returns.
        blind_s: How long a GPU that can't be judged keeps its nodes; a model load may delay a node's answers
            for a minute.
        ecc_limit: Uncorrected memory errors since the driver was loaded at which a GPU is taken out; 0:
            never.
        context_bytes: What CUDA takes for each node.
    """

    need_bytes: int | None = None
    reserve_bytes: int | None = None
    foreign_share: float = 0.9
    band_share: float = 0.05
    dwell_s: float = 10.0
    blind_s: float = 120.0
    ecc_limit: int = 1
    context_bytes: int = CONTEXT_BYTES

    def reserve(self, total: int, nodes: int) -> int:
        """Return the bytes that are never available on a card of this size with this many nodes."""
        if self.reserve_bytes is not None:
            return self.reserve_bytes
        return max(1, nodes) * self.context_bytes + total // 50

    def drain_at(self, total: int, nodes: int, source: Source = Source.PROCESSES) -> int:
        """Return the foreign bytes at which a card drains; 0 or less: it is too small even if empty."""
        usable = max(0, total - self.reserve(total, nodes))
        need = self.need_bytes
        if need is None:
            need = 0 if source is Source.HOST else usable * 2 // 3
        return min(int(total * self.foreign_share), usable - need)

    def return_at(self, total: int, nodes: int, source: Source = Source.PROCESSES) -> int:
        """Return the foreign bytes up to which a drained card may return."""
        limit = self.drain_at(total, nodes, source)
        return limit - min(int(total * self.band_share), limit // 2) - 1 if limit > 0 else -1


@dataclass(frozen=True, kw_only=True)
class State:
    """What one assessment passes to the next.

    Attributes:
        taken: Whether the GPU was taken out by the last assessment.
        well_since: Since when it has been fit to return, without interruption.
        blind_since: Since when it could not be judged.
        seen: Whether it could be judged at least once.
    """

    taken: bool = False
    well_since: float | None = None
    blind_since: float | None = None
    seen: bool = False


@dataclass(frozen=True, kw_only=True)
class Assessment:
    """What a GPU's state means for the nodes on it.

    Attributes:
        readiness: ready, drain, down, or hold if nothing is known.
        weight: Percent of a node's own weight: up to 100 for what heat leaves, up to 400 for a fast one.
        reason: The reason in words; with ready, only what lowers the weight.
        available_bytes: What is available to all of the fleet's nodes on this GPU together; None if unknown.
        foreign_bytes: What other programs hold; None if unknown.
        source: Where the numbers come from.
    """

    readiness: Readiness
    weight: int = 100
    reason: str = ""
    available_bytes: int | None = None
    foreign_bytes: int | None = None
    source: Source = Source.NONE

    @property
    def verdict(self) -> AgentState:
        """The same as an agent state, to be combined with what the node's record says."""
        ready = self.readiness is Readiness.READY
        return AgentState(
            readiness=self.readiness, weight=self.weight if ready else 0, reason="" if ready else self.reason
        )


def assess(
    gpu: Gpu | None,
    use: Usage,
    state: State,
    *,
    now_s: float,
    nodes: int = 1,
    policy: Policy | None = None,
) -> tuple[Assessment, State]:
    """Decide whether the nodes on a GPU may get new jobs.

    Args:
        gpu: What NVML saw; None without NVML.
        use: Who holds its memory.
        state: The state from the assessment before; ``State()`` at first.
        now_s: Seconds on a clock that never goes back.
        nodes: How many fleet nodes share the GPU.
        policy: Thresholds.

    Returns:
        The assessment, and the state for the next one.
    """
    policy = policy or Policy()
    trouble = _trouble(gpu, use, policy, nodes, taken=state.taken)
    weight, slow = _weight(gpu)
    available = None
    if use.total is not None and use.certain and use.foreign is not None:
        available = max(0, use.total - use.foreign - policy.reserve(use.total, nodes))

    def say(readiness: Readiness, reason: str = "") -> Assessment:
        return Assessment(
            readiness=readiness,
            weight=weight,
            reason=reason,
            available_bytes=available,
            foreign_bytes=use.foreign if use.certain else None,
            source=use.source,
        )

    if trouble is not None and trouble.readiness is not Readiness.HOLD:
        return say(trouble.readiness, trouble.reason), State(taken=True, seen=True)
    if trouble is not None:
        blind_since = now_s if state.blind_since is None else state.blind_since
        after = State(taken=state.taken, blind_since=blind_since, seen=state.seen)
        if state.taken:
            return say(Readiness.DRAIN, trouble.reason), after
        if state.seen and now_s - blind_since > policy.blind_s:
            reason = f"{trouble.reason} for {now_s - blind_since:.0f} s"
            return say(Readiness.DRAIN, reason), State(taken=True, blind_since=blind_since, seen=True)
        return say(Readiness.HOLD, trouble.reason), after
    if state.taken:
        well_since = now_s if state.well_since is None else state.well_since
        left = policy.dwell_s - (now_s - well_since)
        if left > 0:
            return say(Readiness.DRAIN, f"well again, returns in {left:.0f} s"), State(
                taken=True, well_since=well_since, seen=True
            )
    return say(Readiness.READY, slow), State(seen=True)


def paced(judgement: Assessment, speed: float | None) -> Assessment:
    """Return an assessment whose weight takes a node's measured speed into account.

    Args:
        judgement: The assessment of the GPU's state.
        speed: Measured speed; 1.0 means as fast as the node's weight promises. None while it is not known.
    """
    if speed is None:
        return judgement
    percent = max(1, round(100 * speed))
    if judgement.weight < 100:  # it is hot
        return replace(judgement, weight=min(judgement.weight, percent))
    return replace(judgement, weight=percent)


def _trouble(gpu: Gpu | None, use: Usage, policy: Policy, nodes: int, *, taken: bool) -> AgentState | None:
    """Return what forbids new jobs, or ``hold`` if nothing is known; None if all is well."""
    if gpu is not None:
        if gpu.lost:
            return AgentState(
                readiness=Readiness.DOWN, reason="the GPU has fallen off the bus; see `dmesg`, reset it"
            )
        fault = _fault(gpu, policy)
        if fault:
            return AgentState(readiness=Readiness.DRAIN, reason=fault)
    if use.source is Source.UNSEEN:
        return None
    if use.total is None or use.foreign is None:
        return AgentState(readiness=Readiness.HOLD, reason="its memory can't be read")
    limit = policy.drain_at(use.total, nodes, use.source)
    if limit <= 0:
        need = "" if policy.need_bytes is None else f": the smallest job needs {_gib(policy.need_bytes)}"
        return AgentState(readiness=Readiness.DRAIN, reason=f"{_gib(use.total)} are too little{need}")
    back = policy.return_at(use.total, nodes, use.source)
    if use.foreign < limit and (not taken or use.foreign <= back):
        return None
    if not use.certain:
        return AgentState(readiness=Readiness.HOLD, reason="the owner of its memory is unknown")
    return AgentState(readiness=Readiness.DRAIN, reason=_held(use, limit))


def _fault(gpu: Gpu, policy: Policy) -> str:
    fatal = [xid for xid in gpu.xids or () if xid in FATAL_XIDS]
    if fatal:
        return f"the driver reported Xid {', '.join(map(str, fatal))}; reset the GPU"
    if gpu.recovery is not None and gpu.recovery is not Recovery.NONE:
        return f"the driver asks for {gpu.recovery}"
    if gpu.remap_failed:
        return "it has no spare memory rows left; replace the card"
    if policy.ecc_limit and (gpu.ecc_uncorrected or 0) >= policy.ecc_limit:
        return f"{gpu.ecc_uncorrected} uncorrected memory errors since the driver was loaded; reset the GPU"
    return ""


def _held(use: Usage, limit: int) -> str:
    words = f"other programs hold {_gib(use.foreign or 0)} of {_gib(use.total or 0)}, limit {_gib(limit)}"
    if use.others:
        pid, name, held = use.others[0]
        words += f" ({name or 'process'} {pid}: {_gib(held)})"
    return words


def _weight(gpu: Gpu | None) -> tuple[int, str]:
    percent, reason = 100, ""
    for throttle in sorted(gpu.throttles or ()) if gpu is not None else ():
        if _HEAT_PERCENT[throttle] < percent:
            percent, reason = _HEAT_PERCENT[throttle], f"throttled: {throttle}"
    return percent, reason


def _gib(count: int) -> str:
    return f"{count / GIB:.1f} GiB"
