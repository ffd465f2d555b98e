"""One row of ComfyUI's own interface: a route that clients ask with and without ``/api`` in front."""

from collections.abc import Callable, Iterator

from starlette.responses import Response

from comfy_fleet.api.endpoint import Handler, ServedRoute
from comfy_fleet.api.native.refusals import answer
from comfy_fleet.domain.errors import FleetError


def row(
    method: str,
    path: str,
    handler: Handler,
    operation: str,
    *,
    api_only: bool = False,
    plain_only: bool = False,
    at_once: bool = False,
    console: bool = False,
    editor: bool = False,
    refusal: Callable[[FleetError], Response] = answer,
) -> Iterator[ServedRoute]:
    """Yield a route in both of its forms.

    Args:
        method: In upper case.
        path: Without ``/api``, with names in braces.
        handler: Answers it.
        operation: The label in metrics.
        api_only: Whether ComfyUI has it below ``/api`` only.
        plain_only: Whether ComfyUI has it without ``/api`` only.
        at_once: Whether a request is let in however many are in progress.
        console: As in :class:`~comfy_fleet.api.endpoint.ServedRoute`.
        editor: As there.
        refusal: Makes the answer for an error.
    """
    for one in (*([] if api_only else [path]), *([] if plain_only else [f"/api{path}"])):
        yield ServedRoute(
            one,
            handler,
            name=operation,
            method=method,
            at_once=at_once,
            console=console,
            editor=editor,
            refusal=refusal,
        )
