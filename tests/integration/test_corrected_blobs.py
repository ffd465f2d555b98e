"""Pictures are corrected before they are hashed, whatever their size, and nothing is left over."""

import random
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from blake3 import blake3

from comfy_fleet.adapters.blobs.disk import DiskBlobs
from comfy_fleet.adapters.system.disk import Disk
from comfy_fleet.domain.errors import NoRoom
from comfy_fleet.domain.graphs.pictures.parsing import Edit
from tests.assets_kit import new_id


class Planned:
    """Corrections that are known from the start."""

    def __init__(self, *edits: Edit, quick: bool = True) -> None:
        self.planned = edits
        self.seen = b""
        self.quick = quick

    def feed(self, chunk: bytes) -> None:
        self.seen += chunk

    def edits(self) -> tuple[Edit, ...]:
        return self.planned


async def pieces(data: bytes, size: int = 100_000) -> AsyncIterator[bytes]:
    for start in range(0, len(data), size):
        yield data[start : start + size]


def left(root: Path) -> list[Path]:
    return [path for path in root.rglob("*") if path.is_file()]


@pytest.mark.parametrize("size", [1000, 300_000, 5_000_000])
@pytest.mark.parametrize("durable", [False, True])
@pytest.mark.parametrize("quick", [False, True])
async def test_a_file_is_stored_corrected(tmp_path: Path, size: int, durable: bool, quick: bool) -> None:
    blobs = DiskBlobs(tmp_path, new_id=new_id)
    data = random.Random(size).randbytes(size)
    corrections = Planned(Edit(4, 2, b"longer"), Edit(size - 3, 1, b""), quick=quick)
    blob = await blobs.put(pieces(data), durable=durable, corrections=corrections)
    wanted = data[:4] + b"longer" + data[6:-3] + data[-2:]
    assert corrections.seen == data
    assert (tmp_path / blob.key).read_bytes() == wanted
    assert (blob.hash, blob.size_bytes) == (f"blake3:{blake3(wanted).hexdigest()}", len(wanted))
    assert left(tmp_path) == [tmp_path / blob.key]
    same = await blobs.put(pieces(data), durable=durable, corrections=Planned(quick=quick))
    assert (tmp_path / same.key).read_bytes() == data


async def test_a_picture_that_does_not_fit_twice_waits_for_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = Disk(tmp_path, floor_bytes=0)
    blobs = DiskBlobs(tmp_path, new_id=new_id, disk=disk)

    def check(size_bytes: int = 0, *, output: bool = False) -> None:
        if sum(path.stat().st_size for path in left(tmp_path)) + size_bytes > 7_000_000:
            raise NoRoom("full")

    monkeypatch.setattr(disk, "check", check)
    with pytest.raises(NoRoom):
        await blobs.put(pieces(bytes(5_000_000)), durable=False, corrections=Planned(Edit(0, 1, b"")))
    assert left(tmp_path) == []
