"""Refusals in ComfyUI's own shapes."""

from starlette.responses import Response

from comfy_fleet.api.errors import fleet_error
from comfy_fleet.domain.errors import FleetError


def answer(error: FleetError) -> Response:
    """Return the response for an error on a route of ComfyUI's."""
    return fleet_error(error)
