"""The model files that a job's record can name."""

import pytest

from comfy_fleet.domain.jobs.model_files import LONGEST_NAME, MOST_BYTES, MOST_FILES, set_key, usable_files

GIB = 1024**3


def test_files_are_sorted_and_each_is_there_once_with_its_largest_size() -> None:
    files = [("loras/b", 2), ("checkpoints/a", GIB), ("loras/b", 3)]
    assert usable_files(files) == (("checkpoints/a", GIB), ("loras/b", 3))


@pytest.mark.parametrize("name", ["", "a\nb", "a\x00b", "a\x9fb", "a\udc80b", "a" * (LONGEST_NAME + 1)])
def test_a_name_that_no_record_can_have_is_left_out(name: str) -> None:
    assert usable_files([(name, 1), ("ok", 2)]) == (("ok", 2),)


def test_names_of_all_languages_are_kept() -> None:
    assert usable_files([("loras/\u7d75\u3000\u00e4.safetensors", 1)]) != ()


def test_sizes_are_clamped() -> None:
    assert usable_files([("a", -1), ("b", 10**18)]) == (("a", 0), ("b", MOST_BYTES))


def test_of_too_many_the_largest_are_kept() -> None:
    files = [(f"loras/{number:03}", number) for number in range(100)]
    assert usable_files(files) == tuple(files[-MOST_FILES:])


def test_equal_sets_have_equal_keys_and_others_do_not() -> None:
    one, two = ("a", 1), ("b", 2)
    assert set_key([one, two]) == set_key([two, one])
    assert len({set_key(files) for files in ([one], [two], [one, two], [("a", 2)], [("a1", 1)])}) == 5
    assert len(set_key([one])) == 16
