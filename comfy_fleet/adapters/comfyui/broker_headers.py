"""The header that names the fleet in every call through the broker."""

from comfy_fleet.domain.namespace import DEFAULT_NAMESPACE

NAMESPACE = "X-Fleet-Namespace"


def broker_headers(namespace: str) -> dict[str, str]:
    """Return the header that makes another fleet's broker refuse a call that reached it through a wrong port.

    A fleet with its own Redis sends none, and its broker accepts only calls without it.
    """
    return {} if namespace == DEFAULT_NAMESPACE else {NAMESPACE: namespace}
