"""What a key may do."""

from enum import StrEnum


class Role(StrEnum):
    """What a principal may do. None at all means the same as :attr:`SUBMIT`."""

    SUBMIT = "submit"
    """Submit jobs and use one's own jobs and assets. Artists and operators may do that, too."""

    ARTIST = "artist"
    """Make pictures by hand, in programs that speak to one ComfyUI; publish stored workflows."""

    OPERATOR = "operator"
    """Change the fleet: nodes, drains, restarts, users and their keys. See and cancel everybody's jobs."""

    METRICS = "metrics"
    """Read figures. A principal with this role alone may do nothing else."""

    AGENT = "agent"
    """Send heartbeats and read the nodes. A principal with this role alone owns no jobs."""


_ALIASES = {"admin": Role.OPERATOR}
_GIVEN = (Role.SUBMIT, Role.ARTIST, Role.OPERATOR, Role.METRICS)
ROLE_WORDS = tuple(role.value for role in _GIVEN)
"""The roles that a key can be given."""


def parse_role(word: str) -> Role:
    """Return the role that a key is given by a word; ``admin`` is an earlier name of ``operator``.

    Raises:
        ValueError: A key can't have it.
    """
    role = _ALIASES.get(word) or Role(word)
    if role not in _GIVEN:
        raise ValueError(word)
    return role
