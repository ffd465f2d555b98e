"""Stored workflows."""

from collections.abc import Mapping, Sequence
from typing import Protocol

from comfy_fleet.domain.errors import ConfigError
from comfy_fleet.domain.graphs.workflow import Workflow


class Catalog(Protocol):
    """The stored workflows."""

    def get(self, name: str) -> Workflow:
        """Return a workflow; raises NotFound, WorkflowBroken."""

    def list(self) -> Sequence[Workflow]:
        """Return all workflows by name."""

    def errors(self) -> Mapping[str, ConfigError]:
        """Return what is wrong with a workflow's files, by its name."""
