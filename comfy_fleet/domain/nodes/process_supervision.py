"""When to start, restart and recycle a ComfyUI process. Pure: observations in, orders out; no process, no
clock.

*Frozen* means: neither HTTP nor the websocket answers, and nothing else shows progress. A model load
starves ComfyUI's event loop for a minute while its process computes or reads: that is not frozen. A process
that is busy and silent is given up only after a much longer limit.

*Broken* means: the thread that runs prompts has died. ComfyUI then still answers, but runs nothing.
"""

from dataclasses import dataclass, replace
from enum import StrEnum

from comfy_fleet.domain.backoff import Backoff

BACKOFF = Backoff(first_s=0.2, longest_s=60.0)


class ProcessPhase(StrEnum):
    """The state of a process."""

    STOPPED = "stopped"
    STARTING = "starting"
    UP = "up"
    LEAVING = "leaving"
    """It gets no new job and is restarted once no run needs it."""
    STOPPING = "stopping"
    WAITING = "waiting"
    """It ended on its own and is started again after a pause."""


class Order(StrEnum):
    """What has to be done now."""

    START = "start"
    STOP = "stop"
    KILL = "kill"


@dataclass(frozen=True, kw_only=True)
class RestartLimits:
    """When a process is restarted.

    Attributes:
        start_s: How long it may take before its first answer.
        frozen_s: How long it may be silent without any progress.
        hung_s: How long it may be silent at all.
        rss_bytes: Host memory of its own (mapped files don't count) at which it is recycled; None: never.
        jobs: Number of jobs after which it is recycled; 0: never.
        backoff: Pauses after crashes in a row.
        steady_s: After a process has been up for this long, pauses start over at the first.
    """

    start_s: float = 600.0
    frozen_s: float = 30.0
    hung_s: float = 600.0
    rss_bytes: int | None = None
    jobs: int = 0
    backoff: Backoff = BACKOFF
    steady_s: float = 60.0


@dataclass(frozen=True, kw_only=True)
class Look:
    """One observation of a process.

    Attributes:
        now: Monotonic seconds.
        running: Whether the process lives.
        ended: How it ended, in words, if it does not.
        ready: Whether it has answered ``/object_info`` since it was started.
        heard_at: When HTTP or the websocket last answered; None: never.
        effort: Grows while it computes, reads or uses its GPU: seconds of work since its start.
        rss_bytes: Host memory of its own; None if unknown.
        jobs: Prompts that it has finished since it was started.
        needed: Whether anything runs on it, or a run still fetches its files.
        turn: Whether it may be recycled now. The processes of a host grow alike and would otherwise all be
            recycled at once.
        broken: Why it can no longer work although it lives and answers; empty if it can.
    """

    now: float
    running: bool
    ended: str = ""
    broken: str = ""
    ready: bool = False
    heard_at: float | None = None
    effort: float = 0.0
    rss_bytes: int | None = None
    jobs: int = 0
    needed: bool = True
    turn: bool = True


@dataclass(frozen=True, kw_only=True)
class Watch:
    """What is kept between two observations of a process.

    Attributes:
        phase: Its state.
        since: When it came into this state.
        why: Why it is not up, in words.
        crashes: How often it ended on its own without having been up steadily in between.
        restarts: How often it was started after the first time.
        effort: Its effort when that last grew by more than an idle process does.
        effort_at: When that was.
        up_at: When it last came up.
    """

    phase: ProcessPhase = ProcessPhase.STOPPED
    since: float = 0.0
    why: str = "not started"
    crashes: int = 0
    restarts: int = -1
    effort: float = 0.0
    effort_at: float = 0.0
    up_at: float | None = None

    def recycle(self, why: str, now: float) -> "Watch":
        """Ask for a restart as soon as nobody needs the process."""
        if self.phase is not ProcessPhase.UP:
            return self
        return replace(self, phase=ProcessPhase.LEAVING, since=now, why=why)


IDLE_RATE = 0.05
"""Seconds of work per second below which a process counts as idle: waiting threads wake up, too."""

_LEAKS_ON = 1.2
"""A process this far above its memory limit is recycled without waiting for its turn."""

SETTLE_S = 2.0
"""By then HAProxy has heard ``drain``, and every lease granted before has led to a claim."""


def step(watch: Watch, look: Look, limits: RestartLimits) -> tuple[Watch, Order | None]:
    """Handle one observation, and return what to do."""
    match watch.phase:
        case ProcessPhase.STOPPED:
            return _start(watch, look), Order.START
        case ProcessPhase.WAITING:
            if look.now - watch.since < limits.backoff.pause_s(watch.crashes):
                return watch, None
            return _start(watch, look), Order.START
        case ProcessPhase.STOPPING:
            if look.running:
                return watch, None
            return _start(replace(watch, crashes=0), look), Order.START
    if not look.running:
        return _ended(watch, look, limits), None
    if look.broken:
        return _kill(watch, look, look.broken, limits)
    if look.effort - watch.effort >= IDLE_RATE * max(look.now - watch.effort_at, 0.1):
        watch = replace(watch, effort=look.effort, effort_at=look.now)
    if watch.phase is ProcessPhase.STARTING:
        if look.ready:
            return replace(watch, phase=ProcessPhase.UP, since=look.now, up_at=look.now, why=""), None
        if look.now - watch.since >= limits.start_s:
            return _kill(watch, look, f"did not answer within {limits.start_s:g} s of its start", limits)
        return watch, None
    silent_s = look.now - max(look.heard_at or watch.since, watch.up_at or watch.since)
    if silent_s >= limits.frozen_s and look.now - watch.effort_at >= limits.frozen_s:
        return _kill(watch, look, f"frozen: silent and without progress for {silent_s:.0f} s", limits)
    if silent_s >= limits.hung_s:
        return _kill(watch, look, f"hung: busy but silent for {silent_s:.0f} s", limits)
    if watch.phase is ProcessPhase.UP:
        return watch.recycle(why, look.now) if (why := _worn(look, limits)) else watch, None
    if look.now - watch.since >= SETTLE_S and not look.needed:
        return replace(watch, phase=ProcessPhase.STOPPING, since=look.now), Order.STOP
    return watch, None


def _start(watch: Watch, look: Look) -> Watch:
    return replace(
        watch,
        phase=ProcessPhase.STARTING,
        since=look.now,
        why=f"ComfyUI is starting ({watch.why})" if watch.restarts >= 0 else "ComfyUI is starting",
        restarts=watch.restarts + 1,
        effort=0.0,
        effort_at=look.now,
        up_at=None,
    )


def _ended(watch: Watch, look: Look, limits: RestartLimits) -> Watch:
    steady = watch.up_at is not None and look.now - watch.up_at >= limits.steady_s
    return replace(
        watch,
        phase=ProcessPhase.WAITING,
        since=look.now,
        why=look.ended or "ended by itself",
        crashes=1 if steady else watch.crashes + 1,
    )


def _kill(watch: Watch, look: Look, why: str, limits: RestartLimits) -> tuple[Watch, Order]:
    return _ended(watch, replace(look, ended=why), limits), Order.KILL


def _worn(look: Look, limits: RestartLimits) -> str:
    if limits.rss_bytes is not None and look.rss_bytes is not None and look.rss_bytes > limits.rss_bytes:
        held, limit = look.rss_bytes / 2**30, limits.rss_bytes / 2**30
        if look.turn or held > limit * _LEAKS_ON:
            return f"holds {held:.1f} GiB of host memory, the limit is {limit:.1f}"
    if limits.jobs and look.jobs >= limits.jobs and look.turn:
        return f"is recycled after {look.jobs} jobs"
    return ""
