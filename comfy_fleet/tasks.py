"""Background tasks: their exceptions are logged, and loops go on."""

import asyncio
import contextvars
import logging
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

from comfy_fleet.domain.errors import FleetError
from comfy_fleet.request_context import in_request, submitting

T = TypeVar("T")

logger = logging.getLogger(__name__)

PAUSE_S = 1.0


def start(work: Coroutine[Any, Any, T], *, name: str = "") -> asyncio.Task[T]:
    """Start a task; if it fails, that is logged, even if nobody asks for its result.

    The caller must keep a reference to the task: the event loop does not.

    Args:
        work: The coroutine.
        name: For the log; the coroutine's own by default.
    """
    context = contextvars.copy_context()
    context.run(in_request.set, {})  # it goes on after the request that needed it
    context.run(submitting.set, None)
    task = asyncio.create_task(work, name=name or getattr(work, "__qualname__", None), context=context)
    task.add_done_callback(_note)
    return task


def _note(task: asyncio.Task[Any]) -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        logger.error("task broke off", extra={"task": task.get_name()}, exc_info=error)


async def forever(
    work: Callable[[], Awaitable[object]], *, name: str, pause_s: Callable[[], float] = lambda: PAUSE_S
) -> None:
    """Run a loop again, after a pause, whatever it raises.

    Args:
        work: The loop.
        name: For the log.
        pause_s: Seconds until it is run again.
    """
    while True:
        try:
            await work()
        except (
            FleetError
        ) as error:  # e.g. Redis is away: that is logged elsewhere, and the log's disk may be full
            logger.warning("loop waits", extra={"loop": name, "error": str(error)})
        except Exception:
            logger.exception("loop broke off", extra={"loop": name})
        await asyncio.sleep(pause_s())


async def undisturbed(work: Callable[[], T]) -> T:
    """Do something in a thread, and return after its end, even if the caller is canceled meanwhile."""
    task = asyncio.ensure_future(asyncio.to_thread(work))
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait({task})
        raise
