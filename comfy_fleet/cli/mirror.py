"""A folder that mirrors outputs: each file under the name that was asked for, complete or not at all.

What is there already is known by the files themselves: by the time that they have, or by their bytes. So the
folder may be moved, files may be moved away, and a mirror that broke off goes on. ``.fleet-sync`` in it has
what is on its way, and how far the jobs were looked through.

No name leads out of the folder: every part of it is made harmless, and no link is followed.
"""

import contextlib
import errno
import json
import os
import re
import stat
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO
from urllib.parse import urlencode, urlsplit

from comfy_fleet.adapters.system.folders import take_lock
from comfy_fleet.cli.console import parse_time
from comfy_fleet.cli.downloads import check_folder, load
from comfy_fleet.cli.exits import Exit, Fail
from comfy_fleet.client.saving import is_output
from comfy_fleet.domain.jobs.media import is_picture
from comfy_fleet.domain.jobs.safe_names import safe_name

if TYPE_CHECKING:
    from comfy_fleet.cli.client import Client

OWN = ".fleet-sync"
FORMATS = ("webp", "jpeg", "png")
_KINDS = {"jpg": "jpeg", "jpeg": "jpeg", "png": "png", "webp": "webp"}
_MOST_FOLDERS = 16
_MOST_OF_A_NAME = 1000
_PAGE, _LISTED_OUTPUTS = 100, 8
_READ_ONLY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_GONE = frozenset({"succeeded", "failed", "canceled", "expired"})


@dataclass(frozen=True, kw_only=True)
class MirroredFile:
    """A file of the folder.

    Attributes:
        path: Its path in the folder.
        size_bytes: Its length.
        new: False if it was there already.
    """

    path: str
    size_bytes: int
    new: bool


@dataclass(kw_only=True)
class MirrorCounts:
    """What became of the outputs; ``earlier``: those that earlier commands were done with, and that were not
    looked at."""

    new: int = 0
    there: int = 0
    earlier: int = 0
    unreadable: int = 0
    failed: int = 0


class Mirror:
    """Mirrors the outputs of jobs that have succeeded.

    Args:
        client: The fleet.
        folder: Where to.
        query: Which jobs, as the API's list takes it.
        form: The format of pictures; None: as they were asked for.
        told: Is called for each file.
        trouble: Is called with what went wrong with one; the others go on.
    """

    def __init__(
        self,
        client: "Client",
        folder: Path,
        *,
        query: Mapping[str, str],
        form: str | None,
        told: Callable[[MirroredFile], None],
        trouble: Callable[[Fail], None],
    ) -> None:
        self._client = client
        self._folder = folder
        self._query = dict(query)
        self._form = form
        self._told = told
        self._trouble = trouble
        self.counts = MirrorCounts()
        self.took_s = 0.0
        """How long the last walk took."""

    @contextmanager
    def held(self) -> Iterator[None]:
        """Have the folder alone.

        Raises:
            Fail: It can't be written, or another command mirrors there.
        """
        check_folder(self._folder)
        own = self._folder / OWN
        if own.is_symlink():
            raise Fail(f"{own} is a link", hint="remove it", code=Exit.USAGE)
        with _disk(own):
            own.mkdir(exist_ok=True)
            lock = take_lock(own / "lock")
        if lock is None:
            raise Fail(f"another command mirrors into {self._folder}", code=Exit.REFUSED)
        with lock:
            yield

    def walk(self, *, since: str = "", again: bool = False) -> None:
        """Look through the jobs, the newest first, as far as is not done yet.

        Args:
            since: Only jobs that were submitted from then on, in RFC 3339.
            again: Whether jobs that were looked through are looked at again.

        Raises:
            Fail: The fleet can't be asked, or the folder can't be written.
        """
        began = time.monotonic()
        reached = "" if again else self._reached()
        least = max(since, reached)
        before = self._done() if reached and least == reached else 0
        self.counts.earlier = before
        seen: list[tuple[str, int]] = []
        open_, newest, cursor = "", "", None
        while True:
            query = {**self._query, "limit": _PAGE, "outputs": _LISTED_OUTPUTS, "cursor": cursor}
            page = self._client.get("/api/v1/jobs", **query)
            for job in page["jobs"]:
                created = str(job["created_at"])
                newest = newest or created
                if created < least:
                    cursor = None
                    break
                had = self.counts.new + self.counts.there
                if job["status"] not in _GONE or (job["status"] == "succeeded" and not self._job(job)):
                    open_ = created
                seen.append((created, self.counts.new + self.counts.there - had))
            else:
                cursor = page.get("next_cursor")
            if cursor is None:
                break
        # Nothing is known of jobs before `since`, unless they were looked through before.
        if least == reached and (done := open_ or newest):
            done = max(done, reached)
            self._note(done, before + sum(files for created, files in seen if created < done))
        self.took_s = time.monotonic() - began

    # -- one job -----------------------------------------------------------

    def _job(self, job: Mapping[str, Any]) -> bool:
        """Mirror a job; return False if it must be tried again."""
        failed = self.counts.failed
        try:
            outputs = job.get("outputs") or []
            named = not job.get("output") or all(one.get("stored") for one in outputs)
            if len(outputs) < job.get("output_count", 0) or not named:
                job = self._client.job(str(job["id"]))
            for place, output in enumerate(job.get("outputs") or []):
                if not (output.get("temporary") or output.get("withheld")):
                    self._output(job, output, place)
        except Fail as error:
            if error.exit is not Exit.NOT_FOUND:  # else it was removed a moment ago
                raise
        return self.counts.failed == failed

    def _output(self, job: Mapping[str, Any], output: Mapping[str, Any], place: int) -> None:
        try:
            file = self._mirrored(job, output, place)
        except Fail as error:
            if error.exit is Exit.UNREACHABLE:
                raise
            if error.exit is Exit.NOT_FOUND:
                self.counts.unreadable += 1
            else:
                self.counts.failed += 1
            self._trouble(error)
            return
        if file.new:
            self.counts.new += 1
        else:
            self.counts.there += 1
        self._told(file)

    def _mirrored(self, job: Mapping[str, Any], output: Mapping[str, Any], place: int) -> MirroredFile:
        parts, form = wanted(job, output, self._form)
        ended = parse_time(job.get("completed_at") or job["created_at"])
        stamp = (round(ended.timestamp() * 1000) if ended else 0) * 1_000_000 + place * 1000
        made = output if form is None else _formed(output, form)
        with self._inside(parts[:-1]) as folder:
            for name in _numbered(parts[-1]):
                shown = "/".join((*parts[:-1], name))
                found = _there(folder, name, made, stamp)
                if found is not None:
                    return MirroredFile(path=shown, size_bytes=found, new=False)
                if _free(folder, name):
                    size = self._load(made, folder, name, shown, stamp)
                    return MirroredFile(path=shown, size_bytes=size, new=True)
        raise Fail(f"{'/'.join(parts)}: too many files have this name", code=Exit.REFUSED)

    def _load(self, output: Mapping[str, Any], folder: int, name: str, shown: str, stamp: int) -> int:
        """Download a file, and let it appear as a whole; return its length."""
        part = self._folder / OWN / safe_name(f"{output['id']}{output.get('form', '')}")
        with _disk(part), part.open("a+b") as file:
            if "form" in output:
                file.truncate(0)  # what is made anew may differ from what was made before
            load(self._client, output, file, name=shown, show=lambda _: None)
            os.fsync(file.fileno())
            size = file.seek(0, os.SEEK_END)
            os.utime(file.fileno(), ns=(stamp, stamp))
            try:
                os.link(part, name, dst_dir_fd=folder, follow_symlinks=False)
            except OSError as error:
                if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.EMLINK):
                    raise
                os.rename(part, name, dst_dir_fd=folder)
            part.unlink(missing_ok=True)
        return size

    @contextmanager
    def _inside(self, parts: tuple[str, ...]) -> Iterator[int]:
        """Yield a descriptor of a folder in the folder; it is made if it is missing, and is no link."""
        with _disk(self._folder), contextlib.ExitStack() as stack:
            folder = os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            stack.callback(os.close, folder)
            for part in parts:
                with contextlib.suppress(FileExistsError):
                    os.mkdir(part, dir_fd=folder)
                try:
                    folder = os.open(part, _READ_ONLY, dir_fd=folder)
                except OSError as error:
                    raise Fail(
                        f"{'/'.join(parts)}: {part} is no folder, or is a link: {error.strerror}",
                        hint="move it away",
                        code=Exit.REFUSED,
                    ) from None
                stack.callback(os.close, folder)
            yield folder

    # -- how far -----------------------------------------------------------

    def _mark(self) -> dict[str, Any]:
        """Return what the note below is about: of other jobs, or another format, nothing is known."""
        address = urlsplit(self._client.url).netloc.rpartition("@")[2]
        return {"fleet": address, "query": self._query, "form": self._form}

    def _reached(self) -> str:
        """Return from when on jobs are still to be looked at; empty: from the beginning."""
        try:
            found = json.loads((self._folder / OWN / "reached.json").read_text())
            return str(found["since"]) if found["of"] == self._mark() else ""
        except (OSError, ValueError, KeyError, TypeError):
            return ""

    def _done(self) -> int:
        """Return how many files the jobs before that have."""
        try:
            return int(json.loads((self._folder / OWN / "reached.json").read_text())["files"])
        except (OSError, ValueError, KeyError, TypeError):  # an earlier version's
            return 0

    def _note(self, since: str, files: int) -> None:
        path = self._folder / OWN / "reached.json"
        drawn = path.with_suffix(".new")
        with _disk(path):
            drawn.write_text(json.dumps({"of": self._mark(), "since": since, "files": files}))
            drawn.replace(path)


def wanted(
    job: Mapping[str, Any], output: Mapping[str, Any], form: str | None
) -> tuple[tuple[str, ...], str | None]:
    """Return where an output belongs, as parts of a path, and the format that it must get; None: its own.

    Args:
        job: The job's record.
        output: One of its outputs.
        form: The format of pictures; None: that which its name asks for.
    """
    stored = output.get("stored") or {}
    key = str(stored.get("key") or "")
    if not key:
        day = str(job.get("completed_at") or job["created_at"])[:10]
        key = f"{day}/{job['id']}/{safe_name(str(output.get('name') or 'output'))}"
    names = [part for part in re.split(r"[/\\]", key) if part not in ("", ".", "..")]
    parts = [safe_name(part) for part in names] or ["output"]
    parts = [*parts[: _MOST_FOLDERS - 1], parts[-1]] if len(parts) > _MOST_FOLDERS else parts
    kind = str(output.get("content_type") or "")
    if not is_picture(kind):
        return tuple(parts), None
    stem, dot, suffix = parts[-1].rpartition(".")
    asked = form or _KINDS.get(suffix.lower())
    if form and _KINDS.get(suffix.lower()) != form:
        parts[-1] = safe_name(f"{stem if dot and stem else parts[-1]}.{'jpg' if form == 'jpeg' else form}")
    return tuple(parts), None if asked is None or kind == f"image/{asked}" else asked


def _formed(output: Mapping[str, Any], form: str) -> dict[str, Any]:
    """Return what is to be loaded in place of an output: nobody has told its length and its hash."""
    url = str(output["url"])
    query = urlencode({"format": form, "metadata": "keep"})
    return {"id": output["id"], "url": f"{url}{'&' if '?' in url else '?'}{query}", "form": f".{form}"}


def _there(folder: int, name: str, output: Mapping[str, Any], stamp: int) -> int | None:
    """Return the length of a file of this name if it is this output, else None."""
    try:
        found = os.stat(name, dir_fd=folder, follow_symlinks=False)
    except FileNotFoundError:
        return None
    if not stat.S_ISREG(found.st_mode):
        return None
    told = output.get("size_bytes")
    if told is not None and told != found.st_size:
        return None
    if found.st_mtime_ns == stamp:
        return found.st_size
    if not isinstance(output.get("hash"), str):
        # Some file systems know seconds only.
        whole = found.st_mtime_ns % 1_000_000_000 == 0
        return found.st_size if whole and abs(found.st_mtime_ns - stamp) < 2_000_000_000 else None
    file: BinaryIO
    descriptor = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder)
    with os.fdopen(descriptor, "rb") as file:
        if not is_output(file, output):
            return None
    os.utime(name, ns=(stamp, stamp), dir_fd=folder, follow_symlinks=False)  # quicker the next time
    return found.st_size


def _free(folder: int, name: str) -> bool:
    try:
        os.stat(name, dir_fd=folder, follow_symlinks=False)
    except FileNotFoundError:
        return True
    return False


def _numbered(name: str) -> Iterator[str]:
    stem, dot, suffix = name.rpartition(".") if "." in name[1:] else (name, "", "")
    yield name
    for number in range(2, _MOST_OF_A_NAME):
        yield f"{stem}-{number}{dot}{suffix}"


@contextmanager
def _disk(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise Fail(
            f"can't write {path}: {error.strerror}", hint="what has come is kept: the same command goes on"
        ) from error
