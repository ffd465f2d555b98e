"""What a signature lets somebody read, and nothing else."""

from typing import Any
from urllib.parse import parse_qsl

import pytest

from comfy_fleet.services.signed_urls import Readable, SignatureFault, SignedUrls

URLS = SignedUrls(key=b"k" * 32)
ABOUT: dict[str, Any] = {"kind": Readable.OUTPUT, "id_": "a1", "job": "j1", "owner": "ada"}


def query(**more: Any) -> dict[str, str]:
    return dict(parse_qsl(URLS.query(**{**ABOUT, "expires_at": 1000.9, **more})))


def fault(found: dict[str, str], *, now: float = 999.0, urls: SignedUrls = URLS, **more: Any) -> Any:
    return urls.fault(found, **{**ABOUT, **more}, now=now)


def test_it_holds_until_it_expires() -> None:
    assert fault(query()) is None
    assert fault(query(), now=1000.0) is SignatureFault.EXPIRED


@pytest.mark.parametrize(
    "other",
    [{"kind": Readable.EVENTS}, {"id_": "a2"}, {"job": "j2"}, {"owner": "bob"}, {"owner": "ada\n1000"}],
)
def test_it_is_of_one_thing_alone(other: dict[str, Any]) -> None:
    assert fault(query(), **other) is SignatureFault.INVALID
    assert fault(query(**other)) is SignatureFault.INVALID


@pytest.mark.parametrize(
    "change",
    [
        {"expires": "2000"},
        {"expires": "1000.5"},
        {"expires": "-1"},
        {"expires": ""},
        {"expires": "1" * 13},
        {"signature": ""},
        {"signature": "0" * 64},
        {"signature": "é" * 64},
    ],
)
def test_what_was_changed_is_refused(change: dict[str, str]) -> None:
    assert fault({**query(), **change}) is SignatureFault.INVALID
    assert fault({**query(), "signature": query()["signature"].upper()}) is SignatureFault.INVALID


def test_a_fleet_with_another_secret_refuses_it() -> None:
    assert fault(query(), urls=SignedUrls(key=b"x" * 32)) is SignatureFault.INVALID
    assert "k" * 8 not in repr(URLS)
