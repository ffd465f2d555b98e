"""A job's workload, as its record has it."""

import pytest

from comfy_fleet.domain.jobs.workload import Workload, load_workload, workload_of


def test_the_largest_file_is_the_family() -> None:
    files = (("loras/a", 3), ("vae/b", 5), ("checkpoints/c", 9))
    assert workload_of(files, 4.0) == Workload(family="checkpoints/c", model_bytes=9, pixels=4.0)


def test_without_models_there_is_none() -> None:
    assert workload_of((), 4.0) is None


def test_it_can_be_read_back() -> None:
    workload = Workload(family='checkpoints/a "é"', model_bytes=2**34, pixels=1024.0**2)
    assert load_workload(workload.dump().encode()) == workload


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xff",
        b"3",
        b"{}",
        b"[]",
        b'["a", 1]',
        b'["", 1, 2.0]',
        b'["a", -1, 2.0]',
        b'["a", true, 2.0]',
        b'["a", 1e3, 2.0]',
        b'["a", 1, -2.0]',
        b'["a", 1, NaN]',
        b'["a", 1, Infinity]',
        b'["a", 1, 1e30]',
        b'["a", 1, [2]]',
        b'[["a"], 1, 2]',
        b'["' + b"a" * 400 + b'", 1, 2]',
    ],
)
def test_anything_else_is_no_workload(data: bytes) -> None:
    assert load_workload(data) is None
