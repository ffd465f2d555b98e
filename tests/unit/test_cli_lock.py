"""One fleet per data folder."""

import os
from pathlib import Path

import pytest

from comfy_fleet.cli.exits import Exit, Fail
from comfy_fleet.cli.up.lock import DataLock, held, read_note


def test_a_second_holder_is_refused_and_told_who_has_it(tmp_path: Path) -> None:
    assert not held(tmp_path)
    with DataLock(tmp_path) as lock:
        lock.note({"url": "http://127.0.0.1:8188", "ports": [1, 2]})
        assert held(tmp_path)
        with (
            pytest.raises(Fail, match=f"pid {os.getpid()}, http://127.0.0.1:8188") as caught,
            DataLock(tmp_path),
        ):
            pytest.fail("two holders")
        assert caught.value.exit is Exit.REFUSED
        assert "fleet down" in str(caught.value.hint)
    assert not held(tmp_path)


def test_the_note_outlives_its_holder_and_is_replaced_whole(tmp_path: Path) -> None:
    for ports in ([1, 2, 3, 4, 5], [6]):
        with DataLock(tmp_path) as lock:
            lock.note({"ports": ports})
    assert read_note(tmp_path / "run" / "up.json") == {"pid": os.getpid(), "ports": [6]}


def test_a_broken_note_counts_as_none(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "up.json").write_text("{half")
    assert read_note(tmp_path / "run" / "up.json") == {}
    with DataLock(tmp_path):
        pass


def test_a_folder_that_can_not_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(Fail, match="can't write") as caught, DataLock(tmp_path / "file"):
        pytest.fail("locked a file's inside")
    assert "--data" in str(caught.value.hint)
