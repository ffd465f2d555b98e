"""Calls of extensions' own routes: to which node each goes.

An extension's route works on what its node of a graph does at that moment: a chooser that waits in the middle
of a run wants to be told what was chosen. So a call goes to the node that runs the caller's prompt. If it
names a prompt, it is that one; the node knows it by its run's id, which is put in the place of the prompt's,
as the other way round in frames and in the answer.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Protocol

from comfy_fleet.domain.errors import Busy, Conflict, NodeError
from comfy_fleet.domain.jobs.job import Job
from comfy_fleet.domain.jobs.prompt_entries import ListedState
from comfy_fleet.domain.nodes.node import NodeState
from comfy_fleet.ports.comfyui import NodeCalls, RawAnswer
from comfy_fleet.ports.prompts import PromptFilter, PromptLists
from comfy_fleet.services.editor_nodes import EditorNodes
from comfy_fleet.timeouts import Timeout
from comfy_fleet.turns import FairTurns, NoTurn

MOST_RUNNING = 64
"""Running prompts of one caller that are looked at."""
CALL_S = 90.0
"""How long a call may take on its node, whatever comes meanwhile: choosers poll for less."""
_AT_ONCE, _AT_ONCE_EACH = 64, 16
_LINE_EACH = 64
_WAIT_S = 10.0
_LONG = 32  # a shorter id of a prompt may stand anywhere by chance


class NodeStates(Protocol):
    """The part of :class:`comfy_fleet.ports.nodes.NodeRegistry` that is needed here."""

    async def state(self, name: str) -> NodeState | None:
        """Return a node with verdict and lease, or None."""


@dataclass(frozen=True, kw_only=True)
class ExtensionCall:
    """A call that is to be passed on.

    Attributes:
        owner: Who calls.
        editor: The node whose editor the caller has, if it has one.
        path: As it stands in the request, with its query.
        headers: About the body.
    """

    owner: str
    editor: str | None
    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes


class ExtensionCalls:
    """Passes calls on.

    Args:
        prompts: What runs.
        nodes: Where it runs.
        editors: Who answers while nothing runs.
        ask: Calls a node.
    """

    def __init__(self, prompts: PromptLists, nodes: NodeStates, editors: EditorNodes, ask: NodeCalls) -> None:
        self._prompts = prompts
        self._nodes = nodes
        self._editors = editors
        self._ask = ask
        self._turns = FairTurns(_AT_ONCE, each=_AT_ONCE_EACH, line=_LINE_EACH, wait_s=_WAIT_S)

    async def call(self, call: ExtensionCall) -> RawAnswer:
        """Pass a call on to the node that it is meant for, and return its answer.

        Raises:
            Conflict: The caller has prompts on several nodes, and the call names none of them.
            EditorAway: Nothing of the caller's runs, and no node serves the editor.
            Busy: The caller waits for many calls already.
            NodeError: The node can't be reached, takes longer than :data:`CALL_S`, redirects, or its answer
                can't be passed back.
        """
        job = await self._job(call)
        if job is None:
            answer = await self._passed((await self._editors.order(call.editor))[0].node.name, call)
        else:
            answer = await self._about(job, call)
        if not 200 <= answer.status < 600 or (300 <= answer.status < 400 and answer.status != 304):
            what = "redirects" if 300 <= answer.status < 400 else f"answered with {answer.status}"
            raise NodeError(f"the extension's route {what}, which is not passed on")
        return answer

    async def _about(self, job: Job, call: ExtensionCall) -> RawAnswer:
        node, run, prompt = job.node or "", job.run or "", job.prompt_id
        if run and len(prompt) >= _LONG:
            call = replace(
                call,
                path=call.path.replace(prompt, run),
                body=call.body.replace(prompt.encode(), run.encode()),
            )
        answer = await self._passed(node, call)
        return replace(answer, body=answer.body.replace(run.encode(), prompt.encode())) if run else answer

    async def _passed(self, node: str, call: ExtensionCall) -> RawAnswer:
        try:
            async with self._turns.of(call.owner), Timeout(CALL_S):
                return await self._ask.raw(node, call.method, call.path, headers=call.headers, body=call.body)
        except TimeoutError:
            message = f"node {node} does not end its answer within {CALL_S:g} s"
            raise NodeError(message, details={"node": node}) from None
        except NoTurn:
            raise Busy(
                "many calls of extensions wait already: make fewer at a time", retry_after_s=2
            ) from None

    async def _job(self, call: ExtensionCall) -> Job | None:
        """Return the job that a call is about; None if nothing of the caller's runs."""
        running = frozenset({ListedState.IN_PROGRESS})
        wanted = PromptFilter(owner=call.owner, states=running, limit=MOST_RUNNING)
        page = await self._prompts.page(wanted)
        jobs = [job for job in await self._prompts.load([job for job, _ in page.rows]) if job.node]
        told = [job for job in jobs if _names(call, job)]
        if len(told) == 1:
            return told[0]
        if len({job.node for job in jobs}) > 1:
            jobs = [job for job in jobs if await self._at_work(job)]
        if len({job.node for job in jobs}) > 1:
            raise Conflict(
                f"{len(jobs)} of your prompts run on different nodes, and this call names none of them: wait "
                "for one to end, or name its prompt_id in the call",
                details={"prompts": [job.prompt_id for job in jobs]},
            )
        return jobs[0] if jobs else None

    async def _at_work(self, job: Job) -> bool:
        """Return whether a job is on its node; else only its outputs are being fetched."""
        state = await self._nodes.state(job.node or "")
        return state is None or not any(work.job == job.id and work.phase == "left" for work in state.work)


def _names(call: ExtensionCall, job: Job) -> bool:
    prompt = job.prompt_id
    return len(prompt) >= _LONG and (prompt in call.path or prompt.encode() in call.body)
