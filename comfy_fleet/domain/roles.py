"""What a key may do."""

from collections.abc import Collection, Mapping
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


def parse_group_roles(text: str) -> Mapping[str, Role]:
    """Return the roles of groups from ``GROUP=ROLE,GROUP=ROLE``; the group ``*`` is everybody.

    Raises:
        ValueError: A part is no such pair; it is what the error says.
    """
    found: dict[str, Role] = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        group, equals, word = part.rpartition("=")
        try:
            role = parse_role(word.strip())
        except ValueError:
            role = None
        if not equals or not group.strip() or role is None or group.strip() in found:
            raise ValueError(
                f"{part[:80]!r} must be GROUP=ROLE, each group once; a role is one of {', '.join(ROLE_WORDS)}"
            )
        found[group.strip()] = role
    return found


def roles_of_groups(table: Mapping[str, Role], groups: Collection[str]) -> frozenset[Role]:
    """Return the roles of somebody in these groups; none if a table has none for them."""
    if not table:
        return frozenset({Role.SUBMIT})
    return frozenset(role for group, role in table.items() if group == "*" or group in groups)
