"""Fixtures of unit tests."""

from collections.abc import Iterator

import pytest

from tests.canned import Canned, canned_server


@pytest.fixture
def canned() -> Iterator[Canned]:
    with canned_server() as server:
        yield server
