"""Which pictures of a batch are a job's."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class BatchPart:
    """A job's pictures in a batch that was made for several jobs.

    ComfyUI draws the noise of a batch once: the same pictures come again from the same seed, in a batch of
    the same size, at the same places.

    Attributes:
        seed: From which the batch's noise was drawn.
        first: The place of the job's first picture, from 0: its ``batch_index``.
        count: How many are the job's.
        size: How many the batch has.
    """

    seed: int
    first: int
    count: int
    size: int

    def dump(self) -> str:
        """Return it as one line."""
        return f"{self.seed} {self.first} {self.count} {self.size}"

    @classmethod
    def parse(cls, text: str) -> "BatchPart":
        """Read :meth:`dump` back.

        Raises:
            ValueError: It is something else.
        """
        seed, first, count, size = map(int, text.split(" "))
        return cls(seed=seed, first=first, count=count, size=size)
