"""Where the jobs of ``fleet simulate`` come from: a file, the fleet's history, or a seed."""

import gzip
import os
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, cast

from comfy_fleet.cli.exits import Exit, Fail
from comfy_fleet.cli.watching import ENDED
from comfy_fleet.domain.jobs.job import DEFAULT_POOL
from comfy_fleet.planning.trace import MAX_LINE, TraceJob, header, line_of, read

if TYPE_CHECKING:
    from comfy_fleet.cli.client import Client
    from comfy_fleet.planning.generated import Generated

PAGE = 100
"""Jobs that the API lists at a time."""


@dataclass(frozen=True, kw_only=True)
class TraceSource:
    """Jobs that can be read again for every policy.

    Attributes:
        about: What they are, in words.
        jobs: Begins to read them.
        done: How much has been read, 0 to 1; given how many jobs have come.
    """

    about: str
    jobs: Callable[[], Iterable[TraceJob]]
    done: Callable[[int], float]

    def in_one_pool(self) -> "TraceSource":
        """Return the same jobs, all of the default pool."""

        def moved() -> Iterator[TraceJob]:
            return (
                job if job.pool == DEFAULT_POOL else replace(job, pool=DEFAULT_POOL) for job in self.jobs()
            )

        return replace(self, jobs=moved)


class TraceFile:
    """A trace in a file, perhaps compressed with gzip."""

    def __init__(self, path: Path) -> None:
        """Look at the file.

        Raises:
            Fail: It can't be read.
        """
        self._path, self._at = path, 0
        try:
            with path.open("rb") as file:
                self._size = max(1, os.fstat(file.fileno()).st_size)
        except OSError as error:
            raise Fail(f"can't read {path}: {error.strerror}", code=Exit.USAGE) from error

    def source(self) -> TraceSource:
        """Return the file's jobs."""
        return TraceSource(
            about=str(self._path), jobs=self._jobs, done=lambda _: min(1.0, self._at / self._size)
        )

    def _jobs(self) -> Iterator[TraceJob]:
        return read(self._lines(), str(self._path))

    def _lines(self) -> Iterator[bytes]:
        try:
            with self._path.open("rb") as raw, self._unpacked(raw) as lines:
                number = 0
                while line := lines.readline(MAX_LINE + 2):
                    if number % 1024 == 0:
                        self._at = raw.tell()
                    number += 1
                    yield line
        except (OSError, EOFError, zlib.error) as error:
            raise Fail(f"can't read {self._path}: {error}", code=Exit.USAGE) from error

    def _unpacked(self, raw: BinaryIO) -> AbstractContextManager[BinaryIO]:
        if self._path.suffix == ".gz":
            return cast("AbstractContextManager[BinaryIO]", gzip.GzipFile(fileobj=raw))
        return nullcontext(raw)


def made_up(wanted: "Generated") -> TraceSource:
    """Return made-up jobs."""
    from comfy_fleet.planning.generated import generate

    return TraceSource(
        about=f"made-up jobs, seed {wanted.seed}",
        jobs=lambda: generate(wanted),
        done=lambda count: min(1.0, count / max(1.0, wanted.expected)),
    )


def of_history(
    client: "Client",
    nodes: Iterable[Mapping[str, Any]],
    *,
    most: int,
    owner_label: str | None,
    model_bytes: int,
    say: Callable[[str, float], None],
) -> TraceSource:
    """Return the newest finished jobs that the caller's key can see.

    Args:
        client: The fleet.
        nodes: Its nodes, as it lists them.
        most: How many at most.
        owner_label: The label that names a job's owner; None: all are one owner's.
        model_bytes: Size of model files whose size no node tells.
        say: Is told what is being read, and how much of it has been, 0 to 1.

    Raises:
        Fail: The fleet can't be asked, or there are no such jobs.
    """
    from comfy_fleet.cli.paths import path_of
    from comfy_fleet.planning.history import History

    found: list[dict[str, Any]] = []
    cursor = None
    while len(found) < most:
        page = client.get("/api/v1/jobs", status=",".join(sorted(ENDED)), limit=PAGE, cursor=cursor)
        found += page["jobs"]
        cursor = page["next_cursor"]
        say(f"listed {len(found):,} jobs", 0.0)
        if not cursor or not page["jobs"]:
            break
    found = found[:most]
    history = History(
        nodes=nodes,
        sizes=lambda folder: _sizes(client, folder),
        unknown_bytes=model_bytes,
        owner_label=owner_label,
    )
    for number, job in enumerate(found):
        if number % 20 == 0:
            say("reading the jobs' graphs", number / len(found))
        history.add(job, _graph(client, path_of("job", job["id"], "/workflow")))
    jobs = history.jobs()
    if not jobs:
        raise Fail("the fleet has no finished jobs that this key can see", code=Exit.NOT_FOUND)
    return TraceSource(
        about=f"{len(jobs):,} jobs of {client.url}", jobs=lambda: jobs, done=lambda count: count / len(jobs)
    )


def _graph(client: "Client", path: str) -> Any:
    try:
        return client.get(path)["workflow"]
    except Fail as error:
        if error.exit is Exit.NOT_FOUND:  # removed meanwhile
            return {}
        raise


def _sizes(client: "Client", folder: str) -> Any:
    try:
        return client.get(f"/api/experiment/models/{folder}")
    except Fail as error:
        if error.exit is Exit.NOT_FOUND:  # no node has this folder
            return []
        raise


def save(source: TraceSource, path: Path, show: Callable[[float], None]) -> int:
    """Write a trace, compressed if its name ends in ``.gz``; return how many jobs it has.

    Raises:
        Fail: It can't be written.
    """
    count = 0
    half = path.with_name(f".{path.name}.part")
    try:
        with gzip.open(half, "wb", compresslevel=5) if path.suffix == ".gz" else half.open("wb") as file:
            file.write(header())
            for job in source.jobs():
                file.write(line_of(job))
                count += 1
                if count % 4096 == 0:
                    show(source.done(count))
        half.replace(path)
    except OSError as error:
        raise Fail(f"can't write {path}: {error.strerror}", code=Exit.FAILED) from error
    finally:
        half.unlink(missing_ok=True)
    return count
