"""Deleting what finished jobs left: two folders by id, and no way out of them."""

from pathlib import Path

import pytest

from comfy_fleet.agent.cleaner import Folders, delete
from comfy_fleet.domain.nodes.host import Cleanup

JOB = "0b9f6a4e-2f6c-4c55-9d67-0d7f5f6f9a11"
RUN = "1c9f6a4e-2f6c-4c55-9d67-0d7f5f6f9a22"
OTHER = "2d9f6a4e-2f6c-4c55-9d67-0d7f5f6f9a33"
CLEANUP = Cleanup(node="g1", job=JOB, run=RUN)


@pytest.fixture
def folders(tmp_path: Path) -> Folders:
    made = Folders(output=tmp_path / "output", input=tmp_path / "input")
    for folder in (made.output, made.input, tmp_path / "precious"):
        assert folder is not None
        folder.mkdir()
        (folder / "keep.png").write_bytes(b"x")
    return made


def fill(folder: Path) -> Path:
    folder.mkdir(parents=True)
    (folder / "a_00001_.png").write_bytes(b"x")
    return folder


def test_a_run_s_outputs_and_inputs_go_and_the_rest_stays(folders: Folders) -> None:
    assert folders.input is not None
    mine = fill(folders.output / "fleet" / JOB / RUN)
    staged = fill(folders.input / "fleet" / JOB / RUN)
    of_an_earlier_version = folders.input / "fleet" / JOB / "a.png"
    of_an_earlier_version.write_bytes(b"x")
    staged_for_another = fill(folders.input / "fleet" / JOB / OTHER)
    another_run, another_job = (
        fill(folders.output / "fleet" / JOB / OTHER),
        fill(folders.output / "fleet" / OTHER / RUN),
    )
    delete(CLEANUP, folders)
    assert not mine.exists()
    assert not staged.exists()
    assert not of_an_earlier_version.exists()
    assert staged_for_another.exists()
    assert another_run.exists()
    assert another_job.exists()
    assert (folders.output / "keep.png").exists()
    delete(Cleanup(node="g1", job=JOB, run=OTHER), folders)
    assert not (folders.input / "fleet" / JOB).exists()
    assert not (folders.output / "fleet" / JOB).exists()  # the last one takes the job's folder along
    delete(CLEANUP, folders)  # twice is no harm


def test_strays_go_by_their_name_only(folders: Folders) -> None:
    mine, other = f"preview3d_{'a' * 32}.glb", f"preview3d_{'b' * 32}.glb"
    for name in (mine, other):
        (folders.output / name).write_bytes(b"x")
    folder = folders.output / f"preview3d_{'c' * 32}.glb"
    folder.mkdir()
    cleanup = Cleanup(node="g1", job=JOB, run=RUN, strays=(mine, folder.name, f"preview3d_{'d' * 32}.glb"))
    delete(cleanup, folders)
    assert not (folders.output / mine).exists()
    assert (folders.output / other).exists() and folder.exists() and (folders.output / "keep.png").exists()


@pytest.mark.parametrize("link", ["fleet", f"fleet/{JOB}", f"fleet/{JOB}/{RUN}"])
def test_a_link_leads_nowhere(folders: Folders, tmp_path: Path, link: str) -> None:
    target = tmp_path / "precious"
    fill(target / JOB / RUN)
    fill(target / RUN)
    path = folders.output / link
    path.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to(target)
    delete(CLEANUP, folders)
    assert (target / JOB / RUN / "a_00001_.png").exists()
    assert (target / RUN / "a_00001_.png").exists()
    assert (target / "keep.png").exists()


def test_a_link_inside_is_removed_and_not_followed(folders: Folders, tmp_path: Path) -> None:
    mine = fill(folders.output / "fleet" / JOB / RUN)
    (mine / "link").symlink_to(tmp_path / "precious")
    delete(CLEANUP, folders)
    assert not mine.exists()
    assert (tmp_path / "precious" / "keep.png").exists()


def test_missing_folders_are_no_error(tmp_path: Path) -> None:
    delete(CLEANUP, Folders(output=tmp_path / "no", input=tmp_path / "neither"))
    delete(CLEANUP, Folders(output=tmp_path))
