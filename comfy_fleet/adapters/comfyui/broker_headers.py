"""The header that names the fleet in calls through the broker, and how another fleet's broker answers."""

from collections.abc import Mapping

from comfy_fleet.domain.namespace import DEFAULT_NAMESPACE

NAMESPACE = "X-Fleet-Namespace"
REFUSED = "X-Fleet-Refused"


def broker_headers(namespace: str) -> dict[str, str]:
    """Return the header that makes another fleet's broker refuse a call that reached it through a wrong port.

    A fleet with its own Redis sends none, and its broker accepts only calls without it.
    """
    return {} if namespace == DEFAULT_NAMESPACE else {NAMESPACE: namespace}


def is_another_fleets(headers: Mapping[str, str]) -> bool:
    """Return whether an answer that no node gave is from another fleet's broker.

    Args:
        headers: The answer's; names are compared without regard to case.
    """
    return headers.get(REFUSED) == "namespace"
