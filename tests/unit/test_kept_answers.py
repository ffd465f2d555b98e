"""Answers that are kept for a while: how long, how many, and which go first."""

from comfy_fleet.services.kept_answers import KeptAnswers

A, B, C = ("a",), ("b",), ("c",)


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def kept(most_bytes: int = 10_000) -> tuple[KeptAnswers[bytes], Clock]:
    clock = Clock()
    return KeptAnswers(most_bytes, size=len, clock=clock), clock


def values(answers: KeptAnswers[bytes], *keys: tuple[str, ...]) -> list[bytes | None]:
    return [found.value if (found := answers.get(key)) else b"forgotten" for key in keys]


def test_an_answer_is_good_for_its_time() -> None:
    answers, clock = kept()
    answers.put(A, b"1", keep_s=10)
    answers.put(B, None, keep_s=5)
    assert values(answers, A, B, C) == [b"1", None, b"forgotten"]
    clock.now += 5
    assert values(answers, A, B) == [b"1", b"forgotten"]
    clock.now += 5
    assert values(answers, A) == [b"forgotten"]


def test_what_was_asked_for_longest_ago_makes_room() -> None:
    answers, _ = kept(most_bytes=2_500)
    answers.put(A, b"x" * 500, keep_s=10)
    answers.put(B, b"y" * 500, keep_s=10)
    assert answers.get(A)
    answers.put(C, b"z" * 500, keep_s=10)
    assert values(answers, A, B, C) == [b"x" * 500, b"forgotten", b"z" * 500]


def test_an_answer_in_place_of_another_counts_once() -> None:
    answers, _ = kept(most_bytes=2_500)
    answers.put(B, b"y" * 500, keep_s=10)
    for _ in range(10):
        answers.put(A, b"x" * 500, keep_s=10)
    assert answers.get(B)


def test_one_that_is_too_large_is_not_kept_and_takes_the_former_one_away() -> None:
    answers, _ = kept()
    answers.put(A, b"x", keep_s=10)
    answers.put(B, b"y", keep_s=10)
    answers.put(A, b"x" * 1000, keep_s=10, most=1000)
    assert values(answers, A, B) == [b"forgotten", b"y"]
