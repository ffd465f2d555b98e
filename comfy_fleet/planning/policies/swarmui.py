"""SwarmUI's rule, as its source of 2025 has it (``BackendHandler``).

A request goes to a backend that has its model, the least used one first; a backend takes two at once, of
which one waits in ComfyUI. Without such a backend the request puts *pressure* on its model: ten points for
each that waits, and one for each second since the first. The model with the most pressure is loaded on a free
backend, once it has waited for 1.5 s, or if that is the only one: on an unused one before one in use, and of
those on the one that was released first. A model that is being loaded is not loaded a second time meanwhile.

Only the main model counts, here the largest file. Fairness, deadlines and memory don't.
"""

from collections import deque
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field

from comfy_fleet.domain.schedule.policy import JobChoice, Nothing
from comfy_fleet.domain.schedule.scheduled_node import ScheduledNode
from comfy_fleet.domain.schedule.waiting_job import WaitingJob
from comfy_fleet.planning.policies.ranked import NOTHING

USES = 2
"""Requests that a backend takes at once: one that computes, and one more (``OverQueue``)."""
PATIENCE_S = 1.5
LOOP_S = 1.0
"""Pause of its loop if nothing happens."""
POINTS = 10


@dataclass(slots=True)
class _Backend:
    node: ScheduledNode
    model: str | None = None
    uses: int = 0
    bound: "deque[WaitingJob]" = field(default_factory=deque)
    reserved: str | None = None
    released: float = 0.0
    loads_until: float = 0.0


@dataclass(slots=True)
class _Pressure:
    first: float
    requests: "deque[WaitingJob]" = field(default_factory=deque)

    def heuristic(self, now: float) -> int:
        return len(self.requests) * POINTS + int(now - self.first)


class SwarmUi:
    """Chooses as SwarmUI does."""

    def __init__(self) -> None:
        self._backends: dict[str, _Backend] = {}
        self._pressures: dict[tuple[str, str], _Pressure] = {}  # by place and model
        self._loading: dict[tuple[str, str], float] = {}  # until when
        self._having: dict[str, dict[str, _Backend]] = {}  # by model and name
        self._place_of: dict[str, tuple[WaitingJob, str | None]] = {}
        self._failed: dict[str, set[str]] = {}

    def submitted(self, job: WaitingJob, now: float) -> None:
        """Look for a backend, or put pressure on the model."""
        model = job.models.family
        if job.id in self._failed or not model:
            able = [b for b in self._able(job.place) if b.node.name not in self._failed.get(job.id, ())]
            if able and (job.id in self._failed or any(b.uses < USES for b in able)):
                self._bind(min(able, key=lambda b: (b.uses, b.released)), job)
                return
        backend = self._with_model(job.place, model, now)
        if backend is not None:
            self._bind(backend, job)
            return
        pressure = self._pressures.get((job.place, model))
        if pressure is None:
            pressure = self._pressures[job.place, model] = _Pressure(now)
        pressure.requests.append(job)
        self._place_of[job.id] = (job, None)
        found = self._to_load(job.place, now)
        if found is not None and found[0].uses:
            found[0].reserved = found[1]  # it loads as soon as it is released

    def withdrawn(self, job_id: str, now: float) -> None:
        """Forget a request."""
        job, name = self._place_of.pop(job_id, (None, None))
        if job is None:
            return
        if name is not None:
            backend = self._backends[name]
            backend.bound.remove(job)
            backend.uses -= 1
            return
        key = (job.place, job.models.family)
        self._pressures[key].requests.remove(job)
        self._release(key)

    def node_up(self, node: ScheduledNode, now: float) -> None:
        """Note a backend."""
        self._backends[node.name] = _Backend(node, released=now)

    def node_down(self, name: str, now: float) -> None:
        """Look for other backends for what was bound to it."""
        for failed in self._failed.values():
            failed.discard(name)  # it was the node's fault, and it comes back
        backend = self._backends.pop(name)
        if backend.model is not None:
            self._having[backend.model].pop(name, None)
        for job in backend.bound:
            self.submitted(job, now)

    def next_for(self, node: str, now: float) -> JobChoice | Nothing:
        """Choose what was bound to the backend, what it has loaded, or the model with the most pressure."""
        backend = self._backends[node]
        for place in backend.node.places:
            self._bind_waiting(place, now)
        if backend.bound:
            job = backend.bound.popleft()
            del self._place_of[job.id]
            return self._chosen(backend, job, now)
        for place in sorted(backend.node.places):
            options = (backend.reserved, "", backend.model)  # requests without a model go anywhere
            wanted = next(
                (one for one in options if one is not None and (place, one) in self._pressures), None
            )
            if wanted is None:
                found = self._to_load(place, now, asked=backend)
                wanted = found[1] if found is not None and found[0] is backend else None
            if wanted is not None:
                backend.reserved = None
                backend.uses += 1
                return self._chosen(backend, self._take(place, wanted), now)
        backend.reserved = None
        return self._later(now)

    def node_for(self, job: WaitingJob, idle: Collection[str], now: float) -> str | Nothing:
        """Choose the backend to which the job was bound, or the one that loads next."""
        self._bind_waiting(job.place, now)
        _, name = self._place_of.get(job.id, (job, None))
        if name is None and (found := self._to_load(job.place, now)) is not None and not found[0].uses:
            found[0].reserved = found[1]
            name = found[0].node.name
        if name is not None:
            return name if name in idle else NOTHING
        return self._later(now)

    def ended(self, job_id: str, node: str, *, load_s: float, run_s: float, ok: bool, now: float) -> None:
        """Note that a backend was released."""
        if ok:
            self._failed.pop(job_id, None)
        else:
            self._failed.setdefault(job_id, set()).add(node)
        backend = self._backends.get(node)
        if backend is not None:
            backend.uses -= 1
            backend.released = now

    def _able(self, place: str) -> Iterator[_Backend]:
        return (backend for backend in self._backends.values() if place in backend.node.places)

    def _takes(self, backend: _Backend, place: str, now: float) -> bool:
        """Return whether a backend takes one more request; one that loads takes none."""
        free = backend.uses < USES and backend.reserved is None and backend.loads_until <= now
        return free and place in backend.node.places

    def _with_model(self, place: str, model: str, now: float) -> _Backend | None:
        """Return the least used backend that has a model and takes one more request."""
        found = None
        for backend in self._having.get(model, {}).values():
            if self._takes(backend, place, now):
                if not backend.uses:
                    return backend
                found = found or backend
        return found

    def _bind_waiting(self, place: str, now: float) -> None:
        """Bind requests that wait to backends that have their model by now."""
        for where, model in list(self._pressures):
            while (
                where == place
                and (place, model) in self._pressures
                and (backend := self._with_model(place, model, now)) is not None
            ):
                self._bind(backend, self._take(place, model))

    def _to_load(self, place: str, now: float, asked: _Backend | None = None) -> tuple[_Backend, str] | None:
        """Return which backend should load which model now."""
        waiting = [
            (pressure.heuristic(now), -pressure.first, model)
            for (where, model), pressure in self._pressures.items()
            if where == place and self._loading.get((place, model), now) <= now
        ]
        available = [backend for backend in self._backends.values() if self._takes(backend, place, now)]
        if not waiting or not available:
            return None
        model = max(waiting, key=lambda one: one[:2])[2]
        if len(available) > 1 and now - self._pressures[place, model].first <= PATIENCE_S:
            return None
        valid = [backend for backend in available if backend.model != model]
        unused = [backend for backend in valid if not backend.uses and asked in (None, backend)]
        if not (valid := unused or [backend for backend in valid if backend.uses]):
            return None
        return min(valid, key=lambda backend: backend.released), model

    def _bind(self, backend: _Backend, job: WaitingJob) -> None:
        backend.uses += 1
        backend.bound.append(job)
        self._place_of[job.id] = (job, backend.node.name)

    def _take(self, place: str, model: str) -> WaitingJob:
        job = self._pressures[place, model].requests.popleft()
        del self._place_of[job.id]
        self._release((place, model))
        return job

    def _release(self, key: tuple[str, str]) -> None:
        if not self._pressures[key].requests:
            del self._pressures[key]

    def _chosen(self, backend: _Backend, job: WaitingJob, now: float) -> JobChoice:
        model, load_s = job.models.family, 0.0
        if model and backend.model != model:
            load_s = job.models.size / backend.node.disk_rate
            self._loading[job.place, model] = backend.loads_until = now + load_s
            if backend.model is not None:
                self._having[backend.model].pop(backend.node.name, None)
            backend.model = model
            self._having.setdefault(model, {})[backend.node.name] = backend
        return JobChoice(job, "loads" if load_s else "has it", load_s)

    def _later(self, now: float) -> Nothing:
        """Return when to look again: when a pressure is old enough, or after the loop's pause."""
        if not self._pressures:
            return NOTHING
        soonest = min(pressure.first for pressure in self._pressures.values()) + PATIENCE_S
        return Nothing(soonest + 0.001 if soonest >= now else now + LOOP_S)
