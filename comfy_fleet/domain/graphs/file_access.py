"""Which inputs of a node class name a file to read or a folder to write on the node's disk.

Most of it follows from ``/object_info`` (:func:`uses`); the rest is in :data:`KNOWN`, and the classes that
can't be made safe are in :data:`DENIED`. :mod:`comfy_fleet.domain.graphs.file_check` decides which values are
accepted.

Facts (ComfyUI 0.3.64 and 0.33.0): a name is joined to the input folder, or to another one if it ends in
``[output]`` or ``[temp]``; 0.3.64 joins ``..`` and absolute names as well. ComfyUI never compares values that
come through a link with an enumeration. A class may accept values that its enumeration does not list.
"""

import re
from collections.abc import Iterator, Mapping
from enum import StrEnum
from types import MappingProxyType
from typing import Any, TypeAlias

STAGING = "fleet"
"""First folder of everything that the fleet puts into a node's input and output folders."""


class Use(StrEnum):
    """What a node does with an input's value."""

    FILE = "file"
    """A file that is read: an upload of the job's owner, or what the operator has put into ``input``."""
    PATH = "path"
    """A file or a folder that is read or written where the graph says."""
    SHOWN = "shown"
    """A file's name that the node only passes on: it may come through a link."""
    PREFIX = "prefix"
    """A prefix (folders and the beginning of a file name) below ``output``; each run gets its own."""
    TARGET = "target"
    """A folder that the node makes below ``output``, for a prefix or by itself; each run gets its own."""
    TEXT = "text"
    """Free text: never a path."""


Uses: TypeAlias = Mapping[str, Use]
"""By input, see :func:`use_of`. An input of a group is named ``group.input``, those of a growing row
``group.``."""

_SAFEST = (Use.FILE, Use.PATH, Use.SHOWN, Use.TARGET, Use.PREFIX, None, Use.TEXT)
"""Strictest first: if a node uses an input in several ways, the first of them here is safe for all."""


def _data(entries: dict[str, dict[str, Use]]) -> Mapping[str, Uses]:
    return MappingProxyType({name: MappingProxyType(uses) for name, uses in entries.items()})


KNOWN = _data(
    {
        "LoadImage": {"image": Use.FILE},
        "LoadImageMask": {"image": Use.FILE},
        "LoadImageOutput": {"image": Use.FILE},
        "LoadAudio": {"audio": Use.FILE},
        "LoadVideo": {"file": Use.FILE},
        "LoadLatent": {"latent": Use.FILE},
        "Load3D": {"model_file": Use.FILE, "image": Use.FILE},
        "Load3DAdvanced": {"model_file": Use.FILE},
        "Load3DAnimation": {"model_file": Use.FILE, "image": Use.FILE},
        "WebcamCapture": {"image": Use.FILE},
        "RecordAudio": {"audio": Use.FILE},
        "Painter": {"mask": Use.FILE},
        "GeminiInputFiles": {"file": Use.FILE},
        "OpenAIInputFiles": {"file": Use.FILE},
        "VHS_LoadVideo": {"video": Use.FILE},
        "VHS_LoadAudioUpload": {"audio": Use.FILE},
        "LoadImageSetFromFolderNode": {"folder": Use.PATH},
        "LoadImageTextSetFromFolderNode": {"folder": Use.PATH},
        "LoadImageDataSetFromFolder": {"folder": Use.PATH},
        "LoadImageTextDataSetFromFolder": {"folder": Use.PATH},
        "LoadVideoDataSetFromFolder": {"folder": Use.PATH},
        "LoadVideoTextDataSetFromFolder": {"folder": Use.PATH},
        "LoadTrainingDataset": {"folder_name": Use.PATH},
        "Preview3D": {"model_file": Use.SHOWN},
        "Preview3DAnimation": {"model_file": Use.SHOWN},
        "SaveImageDataSetToFolder": {"folder_name": Use.TARGET},
        "SaveImageTextDataSetToFolder": {"folder_name": Use.TARGET},
        "SaveTrainingDataset": {"folder_name": Use.TARGET},
        "SaveLoRA": {"prefix": Use.PREFIX},
        "SaveLoRANode": {"prefix": Use.PREFIX},
    }
)
"""What the rules can't find, or what must hold before any node was read. It overrides the rules."""

DENIED: Mapping[str, str] = MappingProxyType(
    {
        "SaveTrainingDataset": "it writes into the node's models folder, where every user's jobs read it",
    }
)
"""Classes that no job may use unless the operator says so, and why."""

MAX_NAMES = 250_000
"""Longest sum, in characters, of the names of a class's inputs, each with the groups that it is in."""

PREVIEWS = frozenset({"PreviewImage", "MaskPreview", "PreviewAudio", "ImageCompositor"})
"""Classes to which :func:`keeps_graph` applies even before any node was read."""

_UPLOADED_TYPES = frozenset({"WEBCAM", "AUDIO_RECORD", "LOAD_3D", "LOAD_3D_ANIMATION"})
"""Widgets of the editor that upload what they record and put the files' names into the graph."""

_FOLDER = re.compile(r"(?:.*_)?(?:sub)?(?:folder|directory|dir)(?:s|_?names?|_?paths?)?_?\d*", re.IGNORECASE)
_PATH = re.compile(r"(?:.*_)?(?:file_?(?:path|name)|path|file)s?_?\d*", re.IGNORECASE)
_SAVED_BELOW = re.compile(r"(?:(?:output|save)_?)?paths?", re.IGNORECASE)
_MEDIA = re.compile(r"(?:.*_)?(?:images?|audio|video|latent|mask|files?)", re.IGNORECASE)
_EXTENSION = re.compile(r"\.[A-Za-z0-9]{1,12}$")
_ANNOTATION = re.compile(r"\[(?:output|temp)\]\s*$")
_UP = re.compile(r"\s*\.\.[. ]*")
_PATH_OPTION = re.compile("path|folder|director|extension", re.IGNORECASE)
_BASIC = frozenset({"*", "BOOLEAN", "COMBO", "COMFY_MATCHTYPE_V3", "FLOAT", "INT", "STRING"})
_ROOTED = re.compile(r"[/\\]|[A-Za-z]:|(?!https?:)[A-Za-z][A-Za-z0-9+.-]+:[/\\]|~(?:$|[/\\])")
_STAGED = re.compile(rf"[\s./\\]*{STAGING}[/\\]+[0-9a-f]{{8}}-[0-9a-f]{{4}}-", re.IGNORECASE)
_ANY_STAGED = re.compile(rf"{STAGING}[/\\\\]+[0-9a-f]{{8}}-[0-9a-f-]{{27}}(?:[/\\\\]+[0-9a-f-]{{36}})?")


def names_folder(name: str) -> bool:
    """Return whether an input's name says that it holds a folder: ``folder``, ``output_dir``, ..."""
    return _FOLDER.fullmatch(_last(name)) is not None


def names_path(name: str) -> bool:
    """Return whether an input's name says that it holds a path of any kind: ``file``, ``image_path``."""
    return names_folder(name) or _PATH.fullmatch(_last(name)) is not None


def names_prefix(name: str) -> bool:
    """Return whether an input holds the prefix of what is saved, in any class."""
    return name == "filename_prefix" or name.endswith(".filename_prefix")


def _last(name: str) -> str:
    """Return an input's own name, without the groups that it is in."""
    return name.rstrip(".").rpartition(".")[2]


def use_of(found: Uses, name: str) -> Use | None:
    """Return what an input names, under the name that a graph gives it.

    A member of a growing row, and the inputs that such a member brings along, are listed under the row's
    name.
    """
    if name in found:
        return found[name]
    while "." in name:
        name = name.rpartition(".")[0]
        if (use := found.get(f"{name}.")) is not None:
            return use
    return None


def leaves_folder(value: str) -> bool:
    """Return whether a name, joined to a folder, may leave it on any system, or lead to the fleet's files."""
    parts = [part for part in re.split(r"[/\\]", value) if part not in ("", ".")]
    return (
        _ROOTED.match(value) is not None
        or _ANNOTATION.search(value.removesuffix("[input]")) is not None
        or any(_UP.fullmatch(part) for part in parts)
        or in_staging(value)
        or not value.isprintable()
    )


def in_staging(value: str) -> bool:
    """Return whether a relative path begins with our own folder, as Windows and macOS read it, too."""
    first = next((part for part in re.split(r"[/\\]", value) if part.strip(" .")), "")
    return first.partition(":")[0].strip(" .").casefold() == STAGING


def names_foreign(value: str) -> bool:
    """Return whether a text can only be the name of a file that a run has written or staged."""
    if "\n" in value:
        return False
    note = _ANNOTATION.search(value)
    if note is None:
        return is_staged(value)
    # ComfyUI cuts off the character before the bracket, whatever it is.
    return has_extension(value[: max(0, note.start() - 1)]) or has_extension(value[: note.start()])


def is_staged(value: str) -> bool:
    """Return whether a path names a job's own folder, or what is in it."""
    return _STAGED.match(value) is not None


def has_extension(value: object) -> bool:
    """Return whether a value ends as a file's name does."""
    return isinstance(value, str) and _EXTENSION.search(value[-13:]) is not None


def without_staged(text: str) -> str:
    """Return a node's message without the names of jobs' folders, which its lists of folders contain."""
    return _ANY_STAGED.sub(f"{STAGING}/...", text)


def uses(name: str, body: Mapping[str, Any]) -> dict[str, Use]:
    """Return what the inputs of a class of ``/object_info`` name.

    Inputs that are not in it hold numbers, choices, objects or one line of text.

    Raises:
        ValueError: It declares more inputs, or longer names, than any real class does.
    """
    output_node = body.get("output_node") is True
    found: dict[str, Use | None] = {}
    room = MAX_NAMES
    for input_, names, declared in _walk(body.get("input")):
        room -= sum(map(len, names), len(input_) + 1)
        if room < 0:
            raise ValueError(f"the names of its inputs have more than {MAX_NAMES} characters")
        made = {_use(called, declared, output_node=output_node) for called in names}
        if input_ in found:  # in another branch of its group
            made.add(found[input_])
        found[input_] = min(made, key=_SAFEST.index)
    rules = {key: use for key, use in found.items() if use is not None}
    if output_node:
        # An input called "path" beside a prefix is the folder that the prefix is joined to.
        groups = {key.rpartition(".")[0] for key in rules if names_prefix(key)}
        for key, use in rules.items():
            group, _, last = key.rpartition(".")
            if use is Use.PATH and group in groups and _SAVED_BELOW.fullmatch(last):
                rules[key] = Use.TARGET
    return {**rules, **KNOWN.get(name, {})}


def declared_inputs(groups: object) -> Iterator[tuple[str, list[Any]]]:
    """Walk every input that a class declares; members of its groups are named ``group.input``.

    Members of a growing group (``images.image0``) are named without the counter: ``images.``.
    """
    return ((key, declared) for key, _, declared in _walk(groups))


def keeps_graph(body: Mapping[str, Any], found: Uses) -> bool:
    """Return whether a class may write the posted graph into files under names of its own.

    Served from ComfyUI's cache, it would give a job the files of an earlier one, with the earlier job's whole
    graph in their metadata. Classes left out: those that save below a prefix (each run's own prefix makes
    them run again), those that call a paid service (it would be paid for again), and those that take only
    texts and numbers (they only show them).
    """
    inputs = body.get("input")
    hidden = inputs.get("hidden") if isinstance(inputs, Mapping) else None
    given = hidden.values() if isinstance(hidden, Mapping) else ()
    kinds = {kind[0] if isinstance(kind, list) and kind else kind for kind in given if kind}
    return (
        (body.get("output_node") is True or body.get("has_intermediate_output") is True)
        and not kinds.isdisjoint({"PROMPT", "EXTRA_PNGINFO", "DYNPROMPT"})
        and body.get("api_node") is not True
        and not {Use.PREFIX, Use.TARGET} & set(found.values())
        and any(
            isinstance(spec[0], str) and not set(spec[0].split(",")) <= _BASIC
            for _, spec in declared_inputs(inputs)
        )
    )


# ----------------------------------------------------------------------------------------------------


def _walk(groups: object, prefix: str = "") -> Iterator[tuple[str, list[str], list[Any]]]:
    """Walk inputs as :func:`declared_inputs` does, with the names that show what each of them is for."""
    for optional in ("required", "optional"):
        declared = groups.get(optional) if isinstance(groups, Mapping) else None
        for name, spec in declared.items() if isinstance(declared, Mapping) else ():
            if not isinstance(spec, list) or not spec:
                continue
            yield prefix + name, [name], spec
            extra = _extra(spec)
            inside = f"{prefix}{name}."
            options = extra.get("options")
            for option in options if isinstance(options, list) else ():
                if isinstance(option, Mapping):
                    yield from _walk(option.get("inputs"), inside)
            yield from _walk(extra.get("inputs"), inside)
            template = extra.get("template")
            if isinstance(template, Mapping):
                called = template.get("names")
                members = [*called] if isinstance(called, list) else [template.get("prefix")]
                row = [name, *(member for member in members if isinstance(member, str))]
                for _, names, inner in _walk(template.get("input")):
                    yield inside, [*row, *names], inner


def _use(name: str, declared: list[Any], *, output_node: bool) -> Use | None:
    kind, extra = declared[0], _extra(declared)
    if any(key.endswith("_upload") and value for key, value in extra.items()):
        return Use.FILE
    if isinstance(kind, str) and kind in _UPLOADED_TYPES:
        return Use.FILE
    if names_prefix(name):
        return Use.PREFIX
    options = kind if isinstance(kind, list) else extra.get("options")
    if isinstance(kind, list) or kind == "COMBO":
        if _MEDIA.fullmatch(name) and isinstance(options, list) and all(map(has_extension, options)):
            return Use.FILE
        return Use.PATH if names_path(name) or _is_told_path(extra) else None
    if not isinstance(kind, str) or "STRING" not in kind.split(","):
        return None
    if output_node and names_folder(name):
        return Use.TARGET
    if output_node and name == "prefix":
        return Use.PREFIX
    if names_path(name) or _is_told_path(extra):
        return Use.PATH
    return Use.TEXT if extra.get("multiline") else None


def _is_told_path(extra: Mapping[str, Any]) -> bool:
    """Return whether an input's options say that it holds a path, or its default is one."""
    default = extra.get("default")
    return any(_PATH_OPTION.search(key) and value for key, value in extra.items()) or (
        isinstance(default, str)
        and len(default) > 2
        and "\n" not in default
        and (default.startswith(("./", ".\\")) or _ROOTED.match(default) is not None)
    )


def _extra(declared: list[Any]) -> Mapping[str, Any]:
    return declared[1] if len(declared) > 1 and isinstance(declared[1], Mapping) else {}
