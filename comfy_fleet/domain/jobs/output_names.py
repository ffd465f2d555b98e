"""Names of saved files: on the node, where every run has a folder of its own, and as their owner sees them.

Facts (ComfyUI 0.3.64 and 0.33): a node saves ``SUB/PREFIX_00001_.png``, where the number is the folder's and
prefix's highest so far, of whatever extension, plus one. A class may leave the last underscore out, several
files may share a number, and with ``%batch_num%`` the pictures of a batch have prefixes of their own.
Previews go into the folder ``temp``, with letters that a node draws: ``ComfyUI_temp_abcde_00001_.png``.

Here a node saves below ``fleet/JOB/RUN/``, where all numbers begin with one. The owner's number is drawn when
a file is collected (``name_outputs.lua``), so that an owner's files have different names, whatever made them.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TypeAlias

from comfy_fleet.domain.graphs.file_access import STAGING
from comfy_fleet.domain.graphs.inputs import alike
from comfy_fleet.domain.graphs.saved_names import safe_file_name, safe_path
from comfy_fleet.domain.jobs.job import Output
from comfy_fleet.domain.jobs.outputs import FileRef, OutputItem

OutputId: TypeAlias = tuple[str, str, int]
"""A file's place in its job: node, key and index."""

OUTPUT, TEMP = "output", "temp"


@dataclass(frozen=True, slots=True, kw_only=True)
class SavedFile:
    """A file as its owner names it in ``GET /view``.

    Attributes:
        type: The folder, ``output`` or ``temp``.
        subfolder: The folder inside it, without slashes at its ends; empty if there is none.
        filename: Its name.
    """

    type: str
    subfolder: str
    filename: str

    @property
    def path(self) -> str:
        """``TYPE/SUBFOLDER/FILENAME``, by which the store knows it."""
        return "/".join(part for part in (self.type, self.subfolder, self.filename) if part)

    @classmethod
    def parse(cls, path: str) -> "SavedFile":
        """Read :attr:`path` back."""
        type_, _, rest = path.partition("/")
        subfolder, _, filename = rest.rpartition("/")
        return cls(type=type_, subfolder=subfolder, filename=filename)


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeFile:
    """A file's name on its node, taken apart, without what belongs to the run.

    Attributes:
        folder: ``TYPE/SUBFOLDER/``, as the owner sees it.
        prefix: What is before the number, with the underscore; everything but the extension if there is none.
        number: The node's number; None if the name has none.
        rest: What follows the number, with the extension.
    """

    folder: str
    prefix: str
    number: int | None
    rest: str

    @classmethod
    def parse(cls, ref: FileRef) -> "NodeFile":
        """Take a file's name apart; whatever a node calls it, the parts are harmless."""
        # A node on Windows writes either slash, and one on macOS may take letters with accents apart.
        *inside, filename = alike(ref.filename).split("/")
        filename = safe_file_name(filename)
        parts = [part for part in (*alike(ref.subfolder).split("/"), *inside) if part.strip(". ")]
        for at in range(len(parts) - 2):  # a pack may join it to a folder of its own
            if parts[at] == STAGING and _ID.fullmatch(parts[at + 1]) and _ID.fullmatch(parts[at + 2]):
                del parts[at : at + 3]
                break
        subfolder = safe_path("/".join(parts)) if parts else ""
        type_ = TEMP if TEMP in (ref.type, ref.or_type) else OUTPUT
        folder = f"{type_}/{subfolder}" if subfolder else type_
        numbers = list(_NUMBER.finditer(filename))
        if not numbers:
            stem, dot, extension = filename.rpartition(".")
            prefix, rest = (stem, dot + extension) if stem else (filename, "")
            return cls(folder=f"{folder}/", prefix=prefix, number=None, rest=rest)
        start, end = numbers[-1].span()
        return cls(
            folder=f"{folder}/", prefix=filename[:start], number=int(filename[start:end]), rest=filename[end:]
        )

    @property
    def counter(self) -> str:
        """What is counted: names of one counter have different numbers.

        The letters that a node draws for its previews are left out. Otherwise each such node would begin a
        counter that nobody counts up, and their number would have no end.
        """
        prefix = self.prefix if self.number is not None else f"{self.prefix}_"
        if self.folder.startswith(f"{TEMP}/"):
            prefix = _DRAWN_LETTERS.sub("", prefix)
        return f"{self.folder}{prefix}*"

    @property
    def around(self) -> tuple[str, str]:
        """The file's path before and after an owner's number."""
        gap = "_" if self.number is None else ""
        return f"{self.folder}{self.prefix}{gap}", f"{gap}{self.rest}"

    @property
    def unnumbered(self) -> str | None:
        """The file's path as it is, if its name has no number."""
        return None if self.number is not None else f"{self.folder}{self.prefix}{self.rest}"

    def counts_on(self, before: "NodeFile") -> bool:
        """Return whether the node gave this the number after another file's, under another prefix."""
        return (
            self.number is not None
            and before.number == self.number - 1
            and before.folder == self.folder
            and before.counter != self.counter
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class NumberGroup:
    """Files of one node of a graph that get one number.

    Attributes:
        counter: What is counted.
        files: By their place in the job. Two have the same name only if they are the same file.
        follows: Whether the node counted on from the group before, under another prefix (``%batch_num%``).
    """

    counter: str
    files: Mapping[OutputId, NodeFile]
    follows: bool = False


def number_groups(items: Iterable[OutputItem]) -> list[NumberGroup]:
    """Return the saved files among some outputs, in the order in which numbers are drawn.

    Each node of the graph follows the one that was told of before it, and its files follow its own numbers.
    Those with the same prefix and number share one, as a video and its first picture do.
    """
    by_node: dict[str, list[tuple[OutputId, FileRef, NodeFile]]] = {}
    for item in items:
        if isinstance(item.source, FileRef):
            file = NodeFile.parse(item.source)
            by_node.setdefault(item.node_id, []).append((item.id, item.source, file))
    return [group for files in by_node.values() for group in _of_one_node(files)]


def _of_one_node(files: Iterable[tuple[OutputId, FileRef, NodeFile]]) -> Iterator[NumberGroup]:
    groups: dict[object, dict[OutputId, NodeFile]] = {}
    alike: dict[NodeFile, dict[FileRef, int]] = {}
    for id_, ref, file in sorted(files, key=lambda one: one[2].number or 0):
        # Different files that would have the same name are in groups of their own.
        refs = alike.setdefault(file, {})
        nth = refs.setdefault(ref, len(refs))
        key = (file, nth) if file.number is None else (file.counter, file.number, nth)
        groups.setdefault(key, {})[id_] = file
    before: NodeFile | None = None
    for members in groups.values():
        first = next(iter(members.values()))
        yield NumberGroup(
            counter=first.counter,
            files=members,
            follows=before is not None and first.counts_on(before),
        )
        before = first


def place_of(output: Output) -> SavedFile:
    """Return how an output's file is named in ``GET /view``.

    Outputs of versions that drew no numbers share their names. They are told apart by a folder that has the
    asset's id (:func:`asset_in`).
    """
    return SavedFile(
        type=TEMP if output.temporary else OUTPUT,
        subfolder=output.subfolder if output.saved else f"{_ASSET_FOLDER}{output.asset_id}",
        filename=output.name,
    )


def asset_in(subfolder: str) -> str | None:
    """Return the id of the asset that a folder of :func:`place_of` stands for; None for any other folder."""
    asset_id = subfolder.removeprefix(_ASSET_FOLDER)
    return asset_id if asset_id != subfolder and _ID.fullmatch(asset_id) else None


_ASSET_FOLDER = "asset/"
_ID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")
# A number as classes write it, with five digits or zeros before it. Not a year, a date, a time or a seed.
_NUMBER = re.compile(r"(?:(?<=_)|^)(?:0[0-9]{2,6}|[0-9]{5,7})(?=[_.]|-[A-Za-z]|$)")
_DRAWN_LETTERS = re.compile(r"(?<=_temp_)[a-z]{5}_$")
