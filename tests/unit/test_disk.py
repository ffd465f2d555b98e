"""The data folder's disk: what it says when nothing more fits."""

import errno
import os
from pathlib import Path

import pytest

from comfy_fleet.adapters.system.disk import Disk
from comfy_fleet.domain.errors import NoRoom

HUGE = 10**18  # more than any disk has


def test_there_is_room_above_the_floor(tmp_path: Path) -> None:
    disk = Disk(tmp_path, floor_bytes=0, shown="data")
    room = disk.room()
    assert 0 < room.free_bytes <= room.total_bytes and room.path == "data" and not room.full
    disk.check(10)
    disk.probe()
    assert not list(tmp_path.iterdir())
    with pytest.raises(NoRoom, match=r"the fleet's disk is full: .* left at data, needs 1000000 TB"):
        disk.check(HUGE)


def test_below_the_floor_only_outputs_are_stored(tmp_path: Path) -> None:
    free = Disk(tmp_path).room().free_bytes
    disk = Disk(tmp_path, floor_bytes=free + free // 2)
    disk.check(output=True)
    with pytest.raises(NoRoom) as caught:
        disk.check()
    assert (caught.value.code, caught.value.retryable) == ("insufficient_storage", True)
    assert caught.value.retry_after_s > 1
    with pytest.raises(NoRoom):
        disk.check(free // 2, output=True)  # the rest is for Redis
    with pytest.raises(NoRoom):
        disk.probe()


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (errno.ENOSPC, "the fleet's disk is full: no room left at data"),
        (errno.EDQUOT, "the fleet's disk is full: no room left at data"),
        (errno.EFBIG, "the fleet's disk is full: no room left at data"),
        (errno.EROFS, "the fleet's disk can't be written: data: Read-only file system"),
        (errno.EIO, "the fleet's disk can't be written: data: Input/output error"),
    ],
)
def test_a_write_that_fails_is_our_own_trouble(tmp_path: Path, number: int, words: str) -> None:
    with pytest.raises(NoRoom) as caught, Disk(tmp_path, shown="data").writing():
        raise OSError(number, os.strerror(number))
    assert str(caught.value) == words


def test_a_folder_that_is_gone_or_takes_nothing_is_told(tmp_path: Path) -> None:
    with pytest.raises(NoRoom, match=r"can't be written: .*gone: No such file or directory"):
        Disk(tmp_path / "gone").probe()
    with pytest.raises(NoRoom, match=r"the fleet's disk can't be written: /proc"):
        Disk(Path("/proc")).probe()


def test_a_disk_on_which_no_more_files_fit_is_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.statvfs(tmp_path)

    def none_left(_: Path) -> os.statvfs_result:
        fields = [*real][:10]
        fields[5:8] = [1000, 0, 0]
        return os.statvfs_result(fields)

    monkeypatch.setattr(os, "statvfs", none_left)
    with pytest.raises(NoRoom, match="0 B left"):
        Disk(tmp_path, floor_bytes=1).check()
