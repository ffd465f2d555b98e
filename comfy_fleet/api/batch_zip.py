"""A batch's outputs as a zip that is made while it is sent: not compressed, never in memory as a whole."""

import csv
import io
import time
import zipfile
from collections.abc import AsyncIterator, Sequence
from typing import Any

from comfy_fleet.domain.jobs.job import Job, Output
from comfy_fleet.domain.jobs.job_batch import BatchItem, JobBatch
from comfy_fleet.domain.jobs.media import extension_of
from comfy_fleet.domain.jobs.safe_names import DistinctNames, safe_name
from comfy_fleet.domain.jobs.sniffing import EXTENSIONS
from comfy_fleet.ports.assets import AssetStore
from comfy_fleet.ports.batches import BatchStore
from comfy_fleet.ports.jobs import JobStore

PAGE = 50
_MOST_CELL = 2000
MANIFEST = "manifest.csv"
_COLUMNS = (
    *("custom_id", "status", "job_id", "file", "content_type", "size_bytes", "error_code", "error"),
    *("store", "stored_key", "stored_url", "stored_state", "stored_error"),
)
_FORMULAS = ("=", "+", "-", "@", "\t", "\r")


class _Sink(io.RawIOBase):
    """Keeps what was written until it is taken."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self._parts.append(bytes(data))
        return len(data)

    def taken(self) -> bytes:
        """Return it, and forget it."""
        found = b"".join(self._parts)
        self._parts.clear()
        return found


async def zipped(
    batch: JobBatch, *, store: BatchStore, jobs: JobStore, assets: AssetStore
) -> AsyncIterator[bytes]:
    """Yield a zip of the outputs that there are, named by ``custom_id``, and a table of all items."""
    sink = _Sink()
    names = DistinctNames()
    names.one("manifest", ".csv")
    table = io.StringIO()
    rows = csv.writer(table)
    rows.writerow(_COLUMNS)
    with zipfile.ZipFile(sink, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:
        async for item, job in _items(batch, store, jobs):
            outputs = shown_outputs(job.outputs) if job is not None else ()
            for index, output in enumerate(outputs, 1):
                chunks = await _chunks(assets, output)
                if chunks is None:
                    gone = "gone", f"the file {output.name} is no longer there"
                    rows.writerow(_row(item, job, error=gone) + _stored(job, output))
                    continue
                name = _name(names, item, output, index if len(outputs) > 1 else None)
                with archive.open(_about(name, job), "w", force_zip64=True) as file:
                    async for chunk in chunks:
                        file.write(chunk)
                        yield sink.taken()
                yield sink.taken()
                rows.writerow(_row(item, job, file=(name, output)) + _stored(job, output))
            if not outputs:
                rows.writerow(_row(item, job) + _stored(job, None))
        archive.writestr(_about(MANIFEST, None), table.getvalue().encode())
    yield sink.taken()


async def _chunks(assets: AssetStore, output: Output) -> AsyncIterator[bytes] | None:
    """Return an output's bytes; None if they were removed meanwhile."""
    asset = await assets.get(output.asset_id)
    try:
        return None if asset is None else await assets.open(asset)
    except FileNotFoundError:
        return None


def _name(names: DistinctNames, item: BatchItem, output: Output, index: int | None) -> str:
    stem = safe_name(item.custom_id.replace("/", "_").replace("\\", "_"))
    suffix = (extension_of(output.name) or EXTENSIONS.get(output.content_type, "")).lower()
    if suffix and stem.lower().endswith(suffix):
        stem = stem[: -len(suffix)] or "output"
    return names.one(stem if index is None else f"{stem}_{index}", suffix)


def _about(name: str, job: Job | None) -> zipfile.ZipInfo:
    at = time.gmtime(time.time() if job is None or job.completed_at is None else job.completed_at)
    found = zipfile.ZipInfo(name, at[:6])
    found.external_attr = 0o644 << 16
    return found


async def _items(
    batch: JobBatch, store: BatchStore, jobs: JobStore
) -> AsyncIterator[tuple[BatchItem, Job | None]]:
    last = None
    while items := await store.items(batch.id, (), after=last, limit=PAGE):
        last = items[-1]
        found = iter(await jobs.load([one.job_id for one in items if one.job_id]))
        for item in items:
            job = next(found) if item.job_id else None
            yield item, job if job is not None and not job.removed else None


def shown_outputs(outputs: Sequence[Output]) -> Sequence[Output]:
    """Return what a job was to make: previews only if there is nothing else."""
    return [one for one in outputs if not one.temporary] or outputs


def _row(
    item: BatchItem,
    job: Job | None,
    *,
    file: tuple[str, Output] | None = None,
    error: tuple[str, str] | None = None,
) -> list[object]:
    if error is None and job is not None and job.error is not None:
        error = job.error.code, job.error.message
    if error is None and item.errors:
        error = str(item.errors[0].get("code")), str(item.errors[0].get("message"))
    code, message = error or ("", "")
    name, output = file or ("", None)
    return [
        item.custom_id,
        item.state.value,
        item.job_id,
        name,
        output.content_type if output else "",
        output.size_bytes if output else "",
        code,
        _text(message),
    ]


def _stored(job: Job | None, output: Output | None) -> list[object]:
    """Return what has become of an output's way into its store; nothing if it goes nowhere."""
    found = None if job is None or output is None else job.stored_of(output)
    if found is None:
        return [""] * 5
    return [
        found.store,
        _text(found.key),
        _text(found.url or ""),
        found.state.value,
        _text(found.error or ""),
    ]


def _text(words: str) -> str:
    """Return words for a cell; those of others, such as a node's, must not become a formula."""
    return ("'" if words.startswith(_FORMULAS) else "") + words.replace("\n", " ")[:_MOST_CELL]
