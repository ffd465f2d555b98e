"""One fleet per data folder."""

import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from comfy_fleet.cli.exits import Exit, Fail
from comfy_fleet.cli.up import holder
from comfy_fleet.cli.up.holder import holder_of
from comfy_fleet.cli.up.lock import DataLock, held, read_note
from tests.children import mortal


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
    assert read_note(tmp_path) == {"pid": os.getpid(), "ports": [6]}


def test_whoever_reads_while_it_is_written_finds_a_whole_note(tmp_path: Path) -> None:
    ended = threading.Event()
    found: list[dict[str, Any]] = []

    def read() -> None:
        while not ended.is_set():
            found.append(read_note(tmp_path))

    with DataLock(tmp_path) as lock:
        reader = threading.Thread(target=read)
        reader.start()
        for count in range(500):
            lock.note({"ports": [1] * (count % 2 * 50_000)})
        ended.set()
        reader.join()
    assert found
    assert all("pid" in note for note in found)


def test_a_broken_note_counts_as_none(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "up.json").write_text("{half")
    assert read_note(tmp_path) == {}
    with DataLock(tmp_path):
        pass


def test_a_folder_that_can_not_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(Fail, match="can't write") as caught, DataLock(tmp_path / "file"):
        pytest.fail("locked a file's inside")
    assert "--data" in str(caught.value.hint)


def test_a_holder_is_found_by_more_than_a_number_that_may_be_anothers_now(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(holder, "NOTED_S", 0.2)
    bystander = subprocess.Popen(mortal([sys.executable, "-c", "input()"]), stdin=subprocess.PIPE)
    note = tmp_path / "run" / "up.json"
    try:
        with DataLock(tmp_path):
            for pid in (bystander.pid, 2**22 + 1, 0, -1, "1", None):
                note.write_text(json.dumps({"pid": pid}))
                with pytest.raises(Fail, match="can't be seen from here"):
                    holder_of(tmp_path)
        assert holder_of(tmp_path) is None
        # Its number is written down before anybody could take the last holder's for it.
        with DataLock(tmp_path), holder_of(tmp_path) or pytest.fail("nobody") as found:
            assert found.pid == os.getpid()
        assert bystander.poll() is None
    finally:
        bystander.communicate(b"\n", timeout=10)


def test_a_disk_that_takes_no_note_is_said_and_the_folder_is_free_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", _full)
        with pytest.raises(Fail, match="No space left") as caught, DataLock(tmp_path):
            pytest.fail("held without a note")
    assert "make room" in str(caught.value.hint)
    with DataLock(tmp_path):
        pass


def _full(*_: object) -> None:
    raise OSError(28, "No space left on device")
