"""Which files a graph may name on a node: those of the job's owner, and those that the operator put there.

All users' uploads, previews and results are on the same disk. :mod:`comfy_fleet.domain.graphs.file_access`
says what an input names; this module checks its values. A custom node may read a file whose name it takes
from a text that does not look like a path. That can't be seen here: users who must not see each other's files
need separate pools.
"""

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from comfy_fleet.domain.errors import BadInput, InvalidWorkflow
from comfy_fleet.domain.graphs import file_access
from comfy_fleet.domain.graphs.class_rules import ClassRules, groups_of
from comfy_fleet.domain.graphs.file_access import KNOWN, PREVIEWS, Use, Uses
from comfy_fleet.domain.graphs.folders import Folder, named
from comfy_fleet.domain.graphs.graph import ASSET_TYPE, Graph, NamedFile, Path, Place, is_link, texts_in
from comfy_fleet.domain.graphs.graph_problems import ProblemKind
from comfy_fleet.domain.graphs.inputs import InputSpec
from comfy_fleet.domain.graphs.inventory import ClassInfo, Inventory

_WORDS = {
    "image": "image",
    "mask": "image",
    "audio": "audio",
    "video": "video",
    "latent": "latent",
    "model_file": "3D model",
}
# Uses that a single node rewrites come after those that another node takes unchanged.
_STRICTEST = (Use.FILE, Use.PATH, Use.SHOWN, None, Use.TARGET, Use.PREFIX, Use.TEXT)


@dataclass(frozen=True, kw_only=True)
class FilePolicy:
    """The operator's exceptions.

    Attributes:
        rules: Which classes jobs may use; a class must pass them all.
        free: Inputs, as ``CLASS.input``, that may name any file on the node, and are sent as they are.
    """

    rules: tuple[ClassRules, ...] = (ClassRules(),)
    free: frozenset[str] = frozenset()

    @classmethod
    def parse(cls, deny: str, free: str, allow: str = "") -> "FilePolicy":
        """Read the settings, see :meth:`ClassRules.parse`.

        Raises:
            BadInput: An entry of ``free`` does not look like ``CLASS.input``, or a group is unknown.
        """
        rules = (ClassRules.parse(deny, allow),)
        inputs = frozenset(filter(None, map(str.strip, free.split(","))))
        for entry in inputs:
            class_type, dot, name = entry.partition(".")
            if not (class_type and dot and name):
                raise BadInput(f"{entry!r} must look like CLASS.input, e.g. VHS_LoadVideoPath.video")
        return cls(rules=rules, free=inputs)

    def why_not(self, class_type: str, declared: "Declared") -> str | None:
        """Return why a class may not be used, under its own name or that of the class in its place."""
        for name in declared.names(class_type):
            for rules in self.rules:
                groups = declared.groups(name) if rules.asks_groups else ()
                if (why := rules.why_not(name, groups)) is not None:
                    return f"class {name} may not be used: {why}"
        return None


SHIPPED = FilePolicy()
OPEN = FilePolicy(rules=())


@dataclass(frozen=True, kw_only=True)
class DeclaredInput:
    """How all nodes together declare an input.

    Attributes:
        use: The strictest use that any of them declares.
        specs: Its declarations; empty where no node declares it.
    """

    use: Use | None
    specs: tuple[InputSpec, ...] = ()

    @property
    def free_text(self) -> bool:
        """Whether every node accepts a line of text here that is not a path."""
        return all(
            spec.type in ("*", "COMFY_MATCHTYPE_V3") or "STRING" in spec.type.split(",")
            for spec in self.specs
        )

    def offers(self, text: str) -> bool:
        """Return whether some node offers this choice, and every node accepts only its own choices."""
        return all(spec.options is not None for spec in self.specs) and any(
            spec.offers(text) for spec in self.specs
        )


class Declared:
    """How the nodes' classes declare their inputs; worked out once for each input that is looked up.

    Args:
        inventories: The nodes' inventories, each different one once.
    """

    def __init__(self, inventories: Sequence[Inventory] = ()) -> None:
        self.inventories = inventories
        self._inputs: dict[tuple[str, str], DeclaredInput] = {}
        self._groups: dict[str, frozenset[str]] = {}

    def input(self, class_type: str, name: str) -> DeclaredInput:
        """Return an input's declaration, under whatever name a graph gives it."""
        found = self._inputs.get((class_type, name))
        if found is None:
            found = self._read(class_type, name)
            if found.specs:  # requests may name any number of others
                self._inputs[class_type, name] = found
        return found

    def names(self, class_type: str) -> tuple[str, ...]:
        """Return a class's name, and those of the classes that nodes run in its place."""
        infos = (one.classes.get(class_type) for one in self.inventories)
        return class_type, *(info.replaced_by for info in infos if info is not None and info.replaced_by)

    def groups(self, class_type: str) -> frozenset[str]:
        """Return the groups that a class is in, see :mod:`comfy_fleet.domain.graphs.class_rules`."""
        found = self._groups.get(class_type)
        if found is None:
            infos = self._infos(class_type)
            found = groups_of(class_type, infos)
            if infos:  # as above
                self._groups[class_type] = found
        return found

    def _infos(self, class_type: str) -> list[ClassInfo]:
        return [info for one in self.inventories if (info := one.classes.get(class_type))]

    def _read(self, class_type: str, name: str) -> DeclaredInput:
        infos = self._infos(class_type)
        if (use := KNOWN.get(class_type, {}).get(name)) is None:
            named = [file_access.use_of(info.files, name) for info in infos] or [_by_name(name)]
            use = min(named, key=_STRICTEST.index)
        return DeclaredInput(use=use, specs=tuple(spec for info in infos for spec in info.possible(name)))


def check(
    graph: Graph,
    declared: Declared,
    *,
    policy: FilePolicy,
    assets: Collection[Place] = (),
) -> None:
    """Refuse a graph that names files that may belong to somebody else.

    Args:
        graph: A checked graph.
        declared: How the nodes' classes declare their inputs; the strictest declaration counts.
        policy: The operator's exceptions.
        assets: Places whose value is replaced with a file of the job's owner.

    Raises:
        InvalidWorkflow: ``details["node_errors"]`` lists ``{field, reason, message}`` by node id. Reasons:
            ``class_denied``, ``bad_path``, ``linked_path``, and ``custom_validation_failed`` (with the
            ``value``) where an owner has no such output.
    """
    settled: dict[str, set[Path]] = {}
    for at, path in assets:
        settled.setdefault(at, set()).add(path)
    errors: dict[str, list[dict[str, str]]] = {}
    for node_id, node in graph.items():
        class_type = node["class_type"]
        if (message := policy.why_not(class_type, declared)) is not None:
            errors[node_id] = [{"field": "class_type", "reason": "class_denied", "message": message}]
            continue
        for name, value in node["inputs"].items():
            if policy.free and f"{class_type}.{name}" in policy.free:
                continue
            if found := _defect(
                class_type, name, value, declared.input(class_type, name), settled.get(node_id, ())
            ):
                reason, message, *text = found
                if not text:
                    message += f"; an operator may allow any value (FLEET_FREE_PATHS={class_type}.{name})"
                defect = {"field": name, "reason": reason, "message": message}
                errors.setdefault(node_id, []).append({**defect, "value": text[0]} if text else defect)
    if errors:
        raise _invalid(errors)


def named_files(graph: Graph, declared: Declared) -> tuple[NamedFile, ...]:
    """Find the texts that may name one of the owner's files, at any depth of an input.

    Where a class does not say what an input is for, only a note such as ``[output]`` shows that.
    """
    found = []
    for node_id, node in graph.items():
        for input_, value in node["inputs"].items():
            use = declared.input(node["class_type"], input_).use
            if use not in (Use.FILE, None) or is_link(value):
                continue
            for path, text in texts_in((input_,), value):
                name, folder = named(text)
                # An object holds other texts, too: modes, colors.
                whole = use is Use.FILE and len(path) == 1
                if use is None and folder is Folder.INPUT:
                    continue
                if name and (whole or file_access.has_extension(name)):
                    found.append(NamedFile(node_id=node_id, path=path, folder=folder, name=name))
    return tuple(found)


_TAKES = {
    "image": ("image/*",),
    "mask": ("image/*",),
    "audio": ("audio/*", "video/*"),
    "video": ("video/*", "image/*"),
    "model_file": ("model/*",),
    "latent": ("application/octet-stream",),
    "file": ("*/*",),
}
_MEDIA = ("image/*", "audio/*", "video/*", "model/*")


def accepted(class_type: str, name: str) -> tuple[str, ...]:
    """Return the MIME types that an input takes which names a file, as far as its name says."""
    if class_type == "LoadVideo":
        return _TAKES["video"]
    return _TAKES.get(name.rpartition(".")[2], _MEDIA)


def listable(graph: Graph, files: Sequence[NamedFile], policy: FilePolicy) -> tuple[NamedFile, ...]:
    """Return the files that a node would list if it had them: those directly in its folder ``input``."""
    return tuple(
        one
        for one in files
        if one.folder is Folder.INPUT
        and not re.search(r"[/\\]", one.name)
        and len(one.path) == 1
        and f"{graph[one.node_id]['class_type']}.{one.path[0]}" not in policy.free
    )


def unlisted(graph: Graph, declared: Declared, files: Sequence[NamedFile]) -> tuple[NamedFile, ...]:
    """Return the files that are on no node, where every node lists what it has."""
    found = []
    for one in files:
        specs = declared.input(graph[one.node_id]["class_type"], str(one.path[0])).specs
        closed = all(spec.options is not None and not spec.remote for spec in specs)
        if specs and closed and not any(spec.offers(one.name) for spec in specs):
            found.append(one)
    return tuple(found)


def unknown_files(graph: Graph, files: Sequence[NamedFile]) -> InvalidWorkflow:
    """Return the error for inputs that name files which nobody has."""
    errors: dict[str, list[dict[str, str]]] = {}
    for one in files:
        name = str(one.path[0])
        text = one.name if one.folder is Folder.INPUT else f"{one.name} [{one.folder}]"
        message = _unknown_file(graph[one.node_id]["class_type"], name, text)
        errors.setdefault(one.node_id, []).append(
            {"field": name, "reason": ProblemKind.UNKNOWN_FILE, "message": message, "value": text}
        )
    return _invalid(errors)


def saves(graph: Graph, inventory: Inventory | None, policy: FilePolicy = SHIPPED) -> Mapping[str, Uses]:
    """Return what the inputs of a graph's classes name, on the node that runs it."""
    known = {} if inventory is None else inventory.classes
    found = {
        name: {**(known[name].files if name in known else {}), **KNOWN.get(name, {})}
        for name in {node["class_type"] for node in graph.values()}
    }
    for entry in policy.free:
        class_type, _, name = entry.partition(".")
        if class_type in found:
            found[class_type][name] = Use.TEXT
    return found


def reruns(graph: Graph, inventory: Inventory | None) -> frozenset[str]:
    """Return the nodes of a graph that ComfyUI must not answer from its cache.

    Those are the nodes that write the graph into their files. A node that only shows files and passes them on
    is added where that makes no other node run again: where every node that reads it runs again anyway.
    """
    infos = {
        node_id: None if inventory is None else inventory.classes.get(node["class_type"])
        for node_id, node in graph.items()
    }
    found = {
        node_id
        for node_id, info in infos.items()
        if (info is not None and info.keeps_graph) or graph[node_id]["class_type"] in PREVIEWS
    }
    anew = found | {node_id for node_id, info in infos.items() if _is_saved(graph[node_id], info)}
    shown = {node_id for node_id, info in infos.items() if info and info.shows_files} - anew
    readers: dict[str, set[str]] = {node_id: set() for node_id in shown}
    for node_id, node in graph.items():
        for value in node["inputs"].values():
            if is_link(value) and value[0] in readers:
                readers[value[0]].add(node_id)
    while cheap := {node_id for node_id in shown if readers[node_id] and readers[node_id] <= anew}:
        found |= cheap
        anew |= cheap
        shown -= cheap
    return frozenset(found)


# ----------------------------------------------------------------------------------------------------


def _invalid(errors: Mapping[str, Sequence[Mapping[str, str]]]) -> InvalidWorkflow:
    node_id, defects = next(iter(errors.items()))
    rest = sum(map(len, errors.values())) - 1
    return InvalidWorkflow(
        f"node {node_id}: {defects[0]['message']}" + (f" (and {rest} more)" if rest else ""),
        details={"field": "workflow", "node_errors": errors},
    )


def _unknown_file(class_type: str, name: str, text: str) -> str:
    word = "video" if class_type == "LoadVideo" else _WORDS.get(name.rpartition(".")[2], "input")
    return f"Invalid {word} file: {text}"


def _by_name(name: str) -> Use | None:
    if file_access.names_prefix(name):
        return Use.PREFIX
    return Use.PATH if file_access.names_path(name) else None


def _is_saved(node: Mapping[str, Any], info: ClassInfo | None) -> bool:
    found = {**(info.files if info else {}), **KNOWN.get(node["class_type"], {})}
    return any(
        file_access.names_prefix(name) or file_access.use_of(found, name) in (Use.PREFIX, Use.TARGET)
        for name in node["inputs"]
    )


def _defect(
    class_type: str, name: str, value: object, found: DeclaredInput, settled: Collection[Path]
) -> tuple[str, ...] | None:
    """Return why a value is refused here, as reason and message, and the text if it names a file."""
    use = found.use
    if use in (Use.TEXT, Use.PREFIX, Use.TARGET):
        return None
    if use in (Use.FILE, Use.PATH) and _holds_link(value):
        return "linked_path", f"{name} names a file or a folder: it must be given as a value, not linked"
    if is_link(value) or (use is not Use.FILE and isinstance(value, int | float)):
        return None
    if use is Use.FILE and (
        isinstance(value, int | float)
        or (isinstance(value, dict) and value.get("__type", ASSET_TYPE) != ASSET_TYPE)
    ):
        return "bad_path", _bad_file(name)
    for path, text in texts_in((name,), value):
        if path in settled or found.offers(text):
            continue
        own, folder = named(text)
        if use is Use.FILE and folder is not Folder.INPUT and not file_access.leaves_folder(own):
            return ProblemKind.UNKNOWN_FILE, _unknown_file(class_type, name, text), text
        if use is not None:
            bad = file_access.leaves_folder(text)
        else:
            bad = file_access.names_foreign(text) or (
                not found.free_text and "\n" not in text and file_access.leaves_folder(text)
            )
        if bad:
            return "bad_path", _bad_file(name) if use is Use.FILE else (
                f"{name} must stay in its folder: no '..', not absolute, not below {file_access.STAGING}/,"
                " and no [output] or [temp]"
            )
    return None


def _holds_link(value: object) -> bool:
    """Return whether a value is a link or holds one: ComfyUI unwraps ``{"__value__": [node id, slot]}``."""
    if is_link(value):
        return True
    if isinstance(value, dict):
        return any(_holds_link(inner) for inner in value.values())
    return isinstance(value, list) and any(_holds_link(inner) for inner in value)


def _bad_file(name: str) -> str:
    return (
        f"{name} must be the name of a file of your own, an upload or an output (NAME [output], NAME [temp]),"
        f" without '..', not absolute, not below {file_access.STAGING}/, or a {ASSET_TYPE} object"
    )
