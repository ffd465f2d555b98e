"""GPUs and the nodes on them: who holds the memory, and whether new jobs may come."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from comfy_fleet.domain.nodes.gpu import Gpu, Gpus, Nvml
from comfy_fleet.domain.nodes.gpu_assessment import Assessment, Policy, State, assess, paced
from comfy_fleet.domain.nodes.vram import GIB, Device, MemoryClaim, Usage, usage

CPU = "cpu"
"""The "GPU" of nodes that compute on the host's processor: they share the host's memory."""

HOST_POLICY = Policy(need_bytes=GIB, reserve_bytes=0)
"""For nodes on the CPU: many programs use the host's memory, and much of it is cache."""


@dataclass(frozen=True, kw_only=True)
class NodeOnGpu:
    """A node and the GPU that it uses.

    Attributes:
        gpu: As in its ``CUDA_VISIBLE_DEVICES``, or :data:`CPU`; None if unknown: then it is assessed by its
            own report.
        claim: What is known of its memory.
        speed: Its measured speed, if its weight follows that.
    """

    gpu: str | None
    claim: MemoryClaim
    speed: float | None = None


class GpuAssessor:
    """Keeps each GPU's state from one assessment to the next."""

    def __init__(self, policy: Policy | None = None) -> None:
        self._policy = policy or Policy()
        self._states: dict[str, State] = {}
        self._assessed: dict[str, tuple[Assessment, Usage]] = {}

    def look(self, gpus: Gpus, nodes_on_gpus: Sequence[NodeOnGpu], *, now_s: float) -> None:
        """Assess every node.

        Args:
            gpus: What NVML saw.
            seated: All nodes.
            now_s: Seconds on a clock that never goes back.
        """
        groups: dict[str, list[NodeOnGpu]] = defaultdict(list)
        for one in nodes_on_gpus:
            gpu = _find(gpus, one.gpu)
            key = (gpu.uuid if gpu is not None else "") or one.gpu  # an index and a UUID may mean the same
            groups[f"gpu {key}" if key else f"node {one.claim.node}"].append(one)
        assessed: dict[str, tuple[Assessment, Usage]] = {}
        states: dict[str, State] = {}
        for key, members in groups.items():
            gpu = _find(gpus, members[0].gpu)
            use = usage(gpu, [one.claim for one in members], context_bytes=self._policy.context_bytes)
            on_host = {one.claim.counted.device for one in members if one.claim.counted} == {Device.HOST}
            judgement, states[key] = assess(
                gpu,
                use,
                self._states.get(key, State()),
                now_s=now_s,
                nodes=len(members),
                policy=HOST_POLICY if on_host else self._policy,
            )
            assessed |= {one.claim.node: (paced(judgement, one.speed), use) for one in members}
        self._states, self._assessed = states, assessed

    def of(self, node: str) -> Assessment | None:
        """Return the last assessment of a node; None if there was none."""
        return self._assessed[node][0] if node in self._assessed else None

    def facts(self, node: str) -> Mapping[str, Any]:
        """Return a node's memory by owner, JSON-ready; empty if nothing is known. All in bytes."""
        if node not in self._assessed:
            return {}
        judgement, use = self._assessed[node]
        return {
            "total": use.total,
            "own": use.own.get(node),
            "own_all": sum(use.own.values()),
            "foreign": judgement.foreign_bytes,
            "available": judgement.available_bytes,
            "source": judgement.source.value,
            "others": [{"pid": pid, "name": name, "bytes": held} for pid, name, held in use.others[:8]],
        }


def _find(gpus: Gpus, key: str | None) -> Gpu | None:
    if key is None or key == CPU:
        return None
    found = gpus.find(key)
    if found is None and gpus.why in (Nvml.OK, Nvml.LOST_DEVICE):
        return Gpu(index=-1, uuid=key, lost=True)  # NVML shows the others, but not this one
    return found


def gpu_facts(gpu: Gpu) -> dict[str, Any]:
    """Return a GPU, JSON-ready; its processes are listed with the nodes."""
    facts = {name: value for name, value in asdict(gpu).items() if name not in ("processes", "instances")}
    facts["throttles"] = sorted(gpu.throttles or ())
    facts["instances"] = [gpu_facts(one) for one in gpu.instances]
    return facts
