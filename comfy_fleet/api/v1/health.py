"""Health checks: does this process work, and could a job run?"""

import asyncio
import logging
from collections.abc import Callable
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

import comfy_fleet
from comfy_fleet.api.deps import ApiDeps, Probe, deps
from comfy_fleet.api.errors import HttpError
from comfy_fleet.api.json import json_response
from comfy_fleet.api.origins import console_base, editor_base
from comfy_fleet.domain.about import NAME
from comfy_fleet.ports.nodes import NodeRegistry
from comfy_fleet.settings import Settings
from comfy_fleet.timeouts import Timeout

logger = logging.getLogger(__name__)
_PATIENCE_S = 2.0


async def health(request: Request) -> Response:
    """Always 200 while the process serves requests; with both addresses, as the client can reach them."""
    return json_response(
        {
            "status": "healthy",
            "name": NAME,
            "version": comfy_fleet.__version__,
            "url": _place(request, editor_base),
            "console_url": _place(request, console_base),
        }
    )


def _place(request: Request, base: Callable[[Request, Settings], str]) -> str | None:
    """Return an address; None if the request's host is malformed, which says nothing of it."""
    try:
        return base(request, deps(request).settings)
    except HttpError:
        return None


async def ready(request: Request) -> Response:
    """200 when every part answers and a node is up; else 503 with the reasons."""
    d = deps(request)
    reasons = await not_ready(d)
    if not reasons:
        notes = await d.notes()
        return json_response({"ready": True, "reasons": [], **({"notes": notes} if notes else {})})
    message = "; ".join(f"{reason['part']}: {reason['why']}" for reason in reasons)
    return json_response(
        {
            "ready": False,
            "reasons": reasons,
            "error": {"code": "not_ready", "message": message, "details": {"reasons": reasons}},
        },
        503,
        {"Retry-After": "1"},
    )


async def not_ready(d: ApiDeps) -> list[dict[str, str]]:
    """Return the problems by part."""

    async def ask(probe: Probe) -> str | None:
        try:
            async with Timeout(_PATIENCE_S):
                return await probe()
        except TimeoutError:
            return f"no answer within {_PATIENCE_S:g} s"
        except Exception as error:  # noqa: BLE001 - any failure is a reason why no job could run
            # Its text contains sockets and addresses, and this needs no key, so it only goes to the log.
            logger.warning("part not ready", extra={"error": f"{type(error).__name__}: {error}"})
            return "does not answer; the API's log says why"

    answers: list[Any] = await asyncio.gather(*(ask(probe) for probe in d.probes.values()))
    return [{"part": part, "why": why} for part, why in zip(d.probes, answers, strict=True) if why]


def node_probe(nodes: NodeRegistry) -> Probe:
    """Return a probe that is ready once a node is up and not drained."""

    async def probe() -> str | None:
        states = await nodes.states()
        if not states:
            return "no node is known: add one with `fleet node add NAME URL`"
        if any(s.verdict == "up" and not s.node.cordoned for s in states):
            return None
        # This needs no key: the reasons, which name other people's programs, are for operators.
        words = {"drain": "drained"}
        return "no node is up (`fleet node ls` says why): " + ", ".join(
            f"{s.node.name} is {'drained' if s.node.cordoned else words.get(s.verdict, s.verdict)}"
            for s in states[:5]
        )

    return probe
