"""All targets that are fuzzed inside a process."""

from benchmarks.fuzz import frames, manifests, uploads
from benchmarks.fuzz.target import Target

INSIDE: list[Target] = [*frames.TARGETS, *uploads.TARGETS, *manifests.TARGETS]
