"""The model files that a graph loads."""

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSet:
    """Model files that are on the card together while a job runs.

    Make one for each different set of files and share it: sets are compared by key.

    Attributes:
        key: Names the set; equal keys mean equal files.
        files: Each file's name and size in bytes. Empty: the job loads no model.
        family: The largest file, which costs the most to load; ``""`` without files. Sets of one family
            differ in small files, such as LoRAs, and are kept together.
        family_size: Its bytes.
        size: Bytes of all files.
    """

    key: str
    files: tuple[tuple[str, int], ...] = field(default=(), compare=False)
    family: str = field(init=False, compare=False)
    family_size: int = field(init=False, compare=False)
    size: int = field(init=False, compare=False)

    def __post_init__(self) -> None:
        largest = max(self.files, key=lambda file: (file[1], file[0]), default=("", 0))
        object.__setattr__(self, "family", largest[0])
        object.__setattr__(self, "family_size", largest[1])
        object.__setattr__(self, "size", sum(size for _, size in self.files))


NO_MODELS = ModelSet(key="")
