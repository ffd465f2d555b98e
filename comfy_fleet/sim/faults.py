"""Fault switches of a simulated node."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

ALWAYS = -1
COUNTED = (
    "oom",
    "execution_error",
    "gpu_fault",
    "reject",
    "partial",
    "history_lost",
    "drop_last",
    "close_sockets",
    "crash_mid_run",
    "worker_dies",
)


class BadFault(ValueError):
    """A fault switch has an unknown name or an invalid value."""


@dataclass
class Faults:
    """The switches, changeable at any time.

    A counted switch is the number of prompts that it still hits: 0 is off, :data:`ALWAYS` (-1) never ends.

    Attributes:
        oom: Counted; the first node that runs is out of GPU memory.
        execution_error: Counted; the first node that runs raises a ``RuntimeError``.
        gpu_fault: Counted; the first node that runs breaks the GPU's context, and every later prompt that
            computes anything fails in the same way, until the node is restarted.
        reject: Counted; ``POST /prompt`` answers 400 for a graph that is fine.
        partial: Counted; ``POST /prompt`` answers 200, but with errors of one node.
        history_lost: Counted; the prompt runs, but leaves no entry in ``/history``.
        drop_last: Counted; the frames from ``execution_success`` on are not sent.
        close_sockets: Counted; all websockets are dropped after the first ``executing``.
        crash_mid_run: Counted; the node dies after the first ``executing``.
        worker_dies: Counted; the thread that runs prompts dies with the first node that runs: the prompt
            stays in the queue for ever, and so does every later one.
        history_lag_s: Seconds between ``execution_success`` and the entry in the history. On a real server
            it is short, but long enough for a client to ask too early.
        restart_after_s: A node that died comes back after this many seconds, empty; None: never.
        exit_process: A node that dies takes its process with it.
        drop_types: Frame types that are not sent (``binary`` for pictures).
        drop_clients: Client ids that get no frame; ``*`` means all.
    """

    oom: int = 0
    execution_error: int = 0
    gpu_fault: int = 0
    reject: int = 0
    partial: int = 0
    history_lost: int = 0
    drop_last: int = 0
    close_sockets: int = 0
    crash_mid_run: int = 0
    worker_dies: int = 0
    history_lag_s: float = 0.0
    restart_after_s: float | None = None
    exit_process: bool = False
    drop_types: set[str] = field(default_factory=set)
    drop_clients: set[str] = field(default_factory=set)

    def take(self, name: str) -> bool:
        """Use up one count of a switch; return True if it hits now."""
        left = int(getattr(self, name))
        if left > 0:
            setattr(self, name, left - 1)
        return left != 0

    def drops(self, kind: str, client: str) -> bool:
        """Return whether a frame of this type to this client is lost."""
        if not self.drop_types and not self.drop_clients:
            return False
        return kind in self.drop_types or client in self.drop_clients or "*" in self.drop_clients

    def update(self, values: Mapping[str, Any]) -> None:
        """Set switches from JSON: numbers, ``"always"``, true or false, lists of strings.

        Raises:
            BadFault: A name or a value is wrong; nothing is changed then.
        """
        known = {item.name for item in fields(self)}
        ready: dict[str, Any] = {}
        for name, value in values.items():
            if name not in known:
                raise BadFault(f"no fault is called {name!r}; there are: {', '.join(sorted(known))}")
            ready[name] = _value(name, value)
        for name, value in ready.items():
            setattr(self, name, value)

    def clear(self) -> None:
        """Switch everything off."""
        for item in fields(self):
            setattr(self, item.name, getattr(Faults(), item.name))

    def as_json(self) -> dict[str, Any]:
        """Return the switches as JSON."""
        values = {item.name: getattr(self, item.name) for item in fields(self)}
        return {name: sorted(value) if isinstance(value, set) else value for name, value in values.items()}


def _value(name: str, value: Any) -> Any:
    if name in COUNTED:
        if value == "always" or value is True:
            return ALWAYS
        if isinstance(value, int) and value >= ALWAYS:
            return int(value)
        raise BadFault(f'{name}: expected a number of prompts or "always", got {value!r}')
    if name in ("drop_types", "drop_clients"):
        if isinstance(value, list) and all(isinstance(item, str) for item in value):
            return set(value)
        raise BadFault(f"{name}: expected a list of strings, got {value!r}")
    if name in ("restart_after_s", "history_lag_s"):
        if isinstance(value, int | float) and not isinstance(value, bool) and value >= 0:
            return float(value)
        if value is None and name == "restart_after_s":
            return None
        raise BadFault(f"{name}: expected seconds or null, got {value!r}")
    if isinstance(value, bool):
        return value
    raise BadFault(f"{name}: expected true or false, got {value!r}")
