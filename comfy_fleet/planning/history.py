"""A fleet's own finished jobs, as a trace.

Its records tell when each came, where and for how long it ran, and when it was canceled; its graph tells the
models. A run's time includes loading. Where jobs of the same workflow ran on a node that had just run the
same models, what they took is taken instead.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from statistics import median
from typing import Any

from comfy_fleet.domain.graphs.inputs import alike, looks_like_file
from comfy_fleet.domain.jobs.job import DEFAULT_POOL, MAX_PRIORITY, MIN_PRIORITY
from comfy_fleet.domain.nodes.eligibility import model_folder
from comfy_fleet.domain.schedule.model_set import ModelSet
from comfy_fleet.domain.schedule.waiting_job import TIER_NAMES, WARMING
from comfy_fleet.planning.trace import (
    DEFAULT_OWNER,
    MAX_FILE_NAME,
    MAX_FILES,
    MAX_NAME,
    MAX_RUN_S,
    ModelSets,
    Tier,
    TraceJob,
)
from comfy_fleet.planning.units import MOST_BYTES

LEAST_RUN_S = 0.001


@dataclass(slots=True, kw_only=True)
class _Row:
    """A finished job. ``run_s`` is for a node of speed 1; warm: nothing was loaded, as far as is known."""

    id: str
    submitted: float
    started: float | None
    run_s: float | None
    canceled: float | None
    node: str
    owner: str
    pool: str
    priority: int
    kind: str
    models: ModelSet
    warm: bool = False

    @property
    def like(self) -> tuple[str, str]:
        return self.kind, self.models.key


class History:
    """Collects jobs as the API lists them.

    Args:
        nodes: The fleet's nodes, as the API lists them: their pools and speeds.
        sizes: The files of a folder of models, as ComfyUI lists them with sizes.
        unknown_bytes: Size of files that are not listed.
        owner_label: The label that names a job's owner.
    """

    def __init__(
        self,
        *,
        nodes: Iterable[Mapping[str, Any]],
        sizes: Callable[[str], Any],
        unknown_bytes: int,
        owner_label: str | None = None,
    ) -> None:
        self._nodes = {str(node.get("name")): node for node in nodes}
        self._ask = sizes
        self._unknown = unknown_bytes
        self._label = owner_label
        self._sizes: dict[str, dict[str, int]] = {}
        self._sets = ModelSets()
        self._rows: list[_Row] = []

    def add(self, job: Mapping[str, Any], graph: Any) -> None:
        """Note a job with its graph in API format.

        One that never ran and was not canceled says nothing; one that only warmed a node is nobody's work.
        """
        submitted = _time(job.get("created_at"))
        if submitted is None or job.get("tier") == TIER_NAMES[WARMING]:
            return
        started, ended = _time(job.get("started_at")), _time(job.get("completed_at"))
        canceled = ended if job.get("status") == "canceled" else None
        node = self._nodes.get(str(job.get("node")), {})
        run_s = None
        if started is not None and ended is not None and job.get("status") == "succeeded":
            run_s = (ended - started) * float(node.get("speed") or 1.0)
        self._rows.append(
            _Row(
                id=str(job.get("id"))[:MAX_NAME],
                submitted=submitted,
                started=started,
                run_s=run_s,
                canceled=canceled,
                node=str(job.get("node") or ""),
                owner=self._owner(job),
                pool=str(node.get("pool") or DEFAULT_POOL),
                priority=max(MIN_PRIORITY, min(MAX_PRIORITY, int(job.get("priority") or 0))),
                kind=str(job.get("workflow") or ""),
                models=self._models(graph),
            )
        )

    def jobs(self) -> list[TraceJob]:
        """Return the trace, whose clock begins with the first submit.

        Jobs without any known run time are left out.
        """
        self._mark_warm()
        warm: dict[tuple[str, str], list[float]] = {}
        every: dict[tuple[str, str], list[float]] = {}
        for row in self._rows:
            if row.run_s is not None:
                every.setdefault(row.like, []).append(row.run_s)
                if row.warm:
                    warm.setdefault(row.like, []).append(row.run_s)
        found = []
        rows = sorted(self._rows, key=lambda row: (row.submitted, row.id))
        first = rows[0].submitted if rows else 0.0
        for row in rows:
            run_s = row.run_s
            known = warm.get(row.like) or every.get(row.like)
            if run_s is None:
                if known is None:
                    continue
                run_s = median(known)
            elif not row.warm and row.like in warm:
                run_s = min(run_s, median(warm[row.like]))
            found.append(
                TraceJob(
                    id=row.id,
                    submitted=row.submitted - first,
                    run_s=min(MAX_RUN_S, max(LEAST_RUN_S, run_s)),
                    owner=row.owner,
                    pool=row.pool,
                    priority=row.priority,
                    tier=Tier.SINGLE,
                    models=row.models,
                    canceled_at=None if row.canceled is None else max(0.0, row.canceled - first),
                )
            )
        return found

    def _mark_warm(self) -> None:
        """Mark the runs whose node had run the same models just before."""
        by_node: dict[str, list[_Row]] = {}
        for row in self._rows:
            if row.started is not None:
                by_node.setdefault(row.node, []).append(row)
        for rows in by_node.values():
            before = None
            for row in sorted(rows, key=lambda one: one.started or 0.0):
                row.warm = not row.models.files or row.models is before
                before = row.models

    def _owner(self, job: Mapping[str, Any]) -> str:
        labels = job.get("metadata")
        found = labels.get(self._label) if self._label and isinstance(labels, dict) else None
        return _printable(str(found))[:MAX_NAME] or DEFAULT_OWNER if found else DEFAULT_OWNER

    def _models(self, graph: Any) -> ModelSet:
        """Return the model files that a graph's loaders name, in the graph's order."""
        found: dict[str, int] = {}
        for node in graph.values() if isinstance(graph, dict) else ():
            if not isinstance(node, dict) or not isinstance(node.get("inputs"), dict):
                continue
            for name, value in node["inputs"].items():
                if not looks_like_file(value):
                    continue
                folder, file = model_folder(str(node.get("class_type")), name), alike(value)
                place = _printable(f"{folder or name}/{file}")[:MAX_FILE_NAME]
                if place not in found and len(found) < MAX_FILES:
                    found[place] = self._size(folder, file)
        return self._sets.of(found.items())

    def _size(self, folder: str, file: str) -> int:
        if not folder:
            return self._unknown
        if folder not in self._sizes:
            listed = self._ask(folder)
            self._sizes[folder] = {
                alike(str(one.get("name"))): one["size"]
                for one in (listed if isinstance(listed, list) else ())
                if isinstance(one, dict)
                and isinstance(one.get("size"), int)
                and 0 < one["size"] <= MOST_BYTES
            }
        return self._sizes[folder].get(file, self._unknown)


def _printable(text: str) -> str:
    return "".join(character if character.isprintable() else "?" for character in text)


def _time(value: Any) -> float | None:
    if not isinstance(value, str):
        return None
    try:
        return datetime.fromisoformat(value).timestamp()
    except ValueError:
        return None
