"""Fixtures of unit tests."""

import os
from collections.abc import Iterator

import pytest

from tests.canned import Canned, canned_server


@pytest.fixture
def canned() -> Iterator[Canned]:
    with canned_server() as server:
        yield server


@pytest.fixture(autouse=True)
def same_umask() -> Iterator[None]:
    """Undo what the fleet's own processes do, where their commands run in this one."""
    before = os.umask(0o077)
    os.umask(before)
    yield
    os.umask(before)
