"""Nodes in words, and waiting for them."""

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from comfy_fleet.cli.exits import Exit, Fail
from comfy_fleet.cli.paths import path_of

if TYPE_CHECKING:
    from comfy_fleet.cli.client import Client
    from comfy_fleet.services.node_life import NodeStatus

PATIENCE_S = 60.0
"""How long a call is repeated while the API does not answer: a restart of it must not end a rolling
restart."""

PAUSE_S = 0.5
COLUMNS = ("<Node", "State", "Pool", ">Done", ">Failed", "Running", "URL")


def nodes_of(answer: Any) -> list[dict[str, Any]]:
    """Return the nodes in a listing, ``gpu-2`` before ``gpu-10``."""
    from comfy_fleet.domain.text import natural

    return sorted(answer["nodes"], key=lambda node: natural(str(node["name"])))


def state(node: Mapping[str, Any]) -> str:
    """Return a node's state in a word, with what an operator should know of it."""
    if node.get("cordoned"):
        return f"drain: {node.get('cordon_reason') or 'by hand'}"
    verdict = str(node.get("verdict") or "new")
    if node.get("why"):
        return f"{verdict}: {node['why']}"
    return f"{verdict}: can't be read: {node['trouble']}" if node.get("trouble") else verdict


def row(node: Mapping[str, Any]) -> tuple[Any, ...]:
    """Return a node as a row under :data:`COLUMNS`."""
    from rich.text import Text

    from comfy_fleet.cli.console import SIMULATED, STATUS_STYLE, one_line

    word = state(node)
    job = node.get("job") or ""
    where = Text(str(node.get("url") or ""))
    if node.get("editor"):
        where.append(" (editor)", style="cyan")
    if node.get("simulated"):
        where = Text(SIMULATED, style="magenta")
    return (
        node["name"],
        Text(one_line(word), style=STATUS_STYLE.get(word.split(":")[0], "")),
        node.get("pool"),
        node.get("done") or 0,
        node.get("failed") or 0,
        job[:8],
        where,
    )


def path(name: str) -> str:
    """Return a node's path in the API. Raises Fail if no node can have that name."""
    return path_of("node", name)


def drained(node: Mapping[str, Any]) -> bool:
    """Return whether no job needs the node any more, its outputs included."""
    return not node.get("run") and not node.get("work")


def still_working(node: Mapping[str, Any]) -> str:
    """Return what still needs a node: ``job 1b9d6bcd KSampler 21/50``."""
    runs = []
    for work in node.get("work") or ():
        what = "its outputs are being fetched" if work.get("phase") == "left" else work.get("message")
        words = ["job", str(work.get("job") or "")[:8], str(work.get("workflow") or ""), str(what or "runs")]
        runs.append(" ".join(filter(None, words)))
    return ", ".join(runs) or "a job runs"


class RemoteNodes:
    """Reads and controls nodes through the API; a ``NodeControl``.

    All calls are safe to repeat, so they are repeated until the API answers.

    Attributes:
        seen: Each node that was read, as in the API's last answer.
        drained: The nodes that were drained here and have not been resumed.
    """

    def __init__(self, client: "Client", *, patience_s: float = PATIENCE_S) -> None:
        self._client = client
        self._patience_s = patience_s
        self.seen: dict[str, dict[str, Any]] = {}
        self.drained: list[str] = []

    async def status(self, name: str) -> "NodeStatus":
        """Return a node's present state."""
        from comfy_fleet.services.node_life import NodeStatus, restarted_by_agent

        node = self.seen[name] = dict(await self._answer(lambda: self._client.get(path(name))))
        return NodeStatus(
            busy=not drained(node),
            cordon=str(node.get("cordon_reason") or "by hand") if node.get("cordoned") else None,
            verdict=str(node.get("verdict") or ""),
            starts=int(node.get("starts") or 0),
            managed=restarted_by_agent(node.get("report") or {}),
            state=state(node),
            work=still_working(node),
        )

    async def drain(self, name: str, *, reason: str | None = None, requeue: bool = False) -> None:
        """Stop new jobs."""
        self.drained.append(name)
        body = {"reason": reason, "requeue": requeue}
        await self._answer(lambda: self._client.post(f"{path(name)}/drain", body))

    async def resume(self, name: str) -> None:
        """Allow new jobs again."""
        await self._answer(lambda: self._client.post(f"{path(name)}/resume"))
        if name in self.drained:
            self.drained.remove(name)

    async def restart(self, name: str) -> None:
        """Have the agent that runs it restart it."""
        await self._answer(lambda: self._client.post(f"{path(name)}/restart"))

    async def refresh(self, name: str) -> bool:
        """Read its inventory now; False if it did not answer."""
        try:
            await self._answer(lambda: self._client.post(f"{path(name)}/refresh"))
        except Fail as error:
            if error.exit is not Exit.TIMEOUT:
                raise
            return False
        return True

    async def _answer(self, call: Callable[[], Any]) -> Any:
        import asyncio

        until = time.monotonic() + self._patience_s
        while True:
            try:
                return call()
            except Fail as error:
                if not error.passing or time.monotonic() > until:
                    raise
            await asyncio.sleep(PAUSE_S)


@contextlib.contextmanager
def naming(drained: Sequence[str]) -> Iterator[None]:
    """Make errors and Ctrl-C name the nodes that stay drained because of them."""
    try:
        yield
    except (Fail, KeyboardInterrupt) as error:
        if not drained:
            raise
        names = ", ".join(dict.fromkeys(drained))
        failed = error if isinstance(error, Fail) else Fail("interrupted", code=Exit.INTERRUPTED)
        stay = f"drained: {names}; `fleet node resume NAME` lets jobs come again"
        hint = "; ".join(filter(None, (failed.hint, stay)))
        raise Fail(failed.message, hint=hint, code=failed.exit) from error


@contextlib.contextmanager
def failing() -> Iterator[None]:
    """Turn the errors of waiting functions into :class:`Fail`."""
    from comfy_fleet.domain.errors import Conflict, NotInTime

    try:
        yield
    except NotInTime as error:
        show = f"fleet node show {error.details['node']}"
        raise Fail(error.message, hint=show, code=Exit.TIMEOUT) from error
    except Conflict as error:
        raise Fail(
            error.message,
            hint="say who does: --restart-command or --wait-restart; or choose nodes by --pool or --zone",
            code=Exit.REFUSED,
        ) from error


def wait_drained(client: "Client", names: Sequence[str], timeout_s: float) -> Mapping[str, dict[str, Any]]:
    """Wait until no job needs any of these nodes, outputs included; return them by name.

    Raises:
        Fail: The time is up; the message says what the node still works on.
    """
    import asyncio

    from comfy_fleet.services import node_life

    control = RemoteNodes(client, patience_s=min(PATIENCE_S, timeout_s))
    with naming(names), failing():
        asyncio.run(node_life.wait_drained(control, names, timeout_s))
    return control.seen


def wait_up(client: "Client", name: str, timeout_s: float) -> dict[str, Any]:
    """Wait until a node can get jobs; return it.

    Raises:
        Fail: The time is up; the message says why it can't.
    """
    import asyncio

    from comfy_fleet.services import node_life

    control = RemoteNodes(client, patience_s=min(PATIENCE_S, timeout_s))
    with failing():
        asyncio.run(node_life.wait_up(control, name, timeout_s))
    return control.seen[name]
