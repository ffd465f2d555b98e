"""What every call through the broker says of its fleet."""

from comfy_fleet.domain.namespace import DEFAULT_NAMESPACE

NAMESPACE = "X-Fleet-Namespace"


def broker_headers(namespace: str) -> dict[str, str]:
    """Return the header by which another fleet's broker refuses a call that a wrong port has led to it.

    A fleet that has Redis to itself sends none, and its broker takes calls without it only.
    """
    return {} if namespace == DEFAULT_NAMESPACE else {NAMESPACE: namespace}
