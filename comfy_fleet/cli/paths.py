"""API paths for names from the user."""

import re

from comfy_fleet.cli.exits import Exit, Fail

_NAME = re.compile(r"(?!\.{1,2}$)[A-Za-z0-9_.-]{1,200}")  # the API is stricter
_PERSON = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.@+-]{0,200}")
_REFERENCE = re.compile(r"(?!\.{1,2}@)[A-Za-z0-9_.-]{1,200}@[A-Za-z0-9_.:-]{1,100}")

_PLURAL = {"batch": "batches"}
_ALSO = {"workflow": _REFERENCE, "tenant": _PERSON, "user": _PERSON}


def path_of(kind: str, name: str, rest: str = "", *, surface: str = "v1") -> str:
    """Return the path of a job, node, user or the like, such as ``/api/v1/jobs/ID/cancel``.

    Args:
        kind: ``job``, ``batch``, ``node``, ``pool``, ``workflow``, ``tenant``, ``user`` or ``key``.
        name: Its id or name, as typed; of a workflow also ``NAME@VERSION`` and the like.
        rest: The rest of the path, such as ``/cancel``.
        surface: ``v1`` or ``v2``.

    Raises:
        Fail: No such name is possible, and in a path it could mean something else.
    """
    also = _ALSO.get(kind)
    if not _NAME.fullmatch(name) and not (also and also.fullmatch(name)):
        raise Fail(
            f"no {kind} {name[:80]!r}",
            hint=_id_of(name) if kind == "workflow" else None,
            code=Exit.NOT_FOUND,
        )
    return f"/api/{surface}/{_PLURAL.get(kind, f'{kind}s')}/{name}{rest}"


def _id_of(name: str) -> str | None:
    """Return a hint with the id that a name from the editor becomes, if it becomes one."""
    from comfy_fleet.domain.graphs.workflow_names import MAX_EDITOR_NAME, NAME, slug

    called, at, which = name.partition("@")
    usual = slug(called)
    if (
        len(name) > MAX_EDITOR_NAME
        or not NAME.fullmatch(usual)
        or (at and not _REFERENCE.fullmatch(f"x@{which}"))
    ):
        return None
    return f"commands name workflows by their ids: {usual}{at}{which}"
