"""Stores: buckets and folders outside of the fleet, which operators name and requests use by that name."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from urllib.parse import quote, urlsplit

from comfy_fleet.domain.errors import BadInput

MOST_STORES = 100
MOST_URL = 1000
LEAST_SIGNED_S, MOST_SIGNED_S = 60.0, 7 * 86400.0
"""The bounds of a signed URL's life; S3 allows no more."""
MOST_SECRET = 20_000
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,62}")
_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{1,62}")
_PART = re.compile(r"[A-Za-z0-9._~!@$&'()+,;=:-]+")
_WORD = re.compile(r"[A-Za-z0-9-]{1,64}")


class StoreKind(StrEnum):
    """What a store is; the value is how its URL begins."""

    S3 = "s3"
    """S3, and what speaks like it."""
    AZURE = "az"
    """Azure Blob Storage."""
    GCS = "gs"
    """Google Cloud Storage."""
    FOLDER = "file"
    """A folder that every API process of the fleet has, at the same path."""


class OnDelete(StrEnum):
    """What becomes of a job's objects once the job goes."""

    KEEP = "keep"
    DELETE = "delete"


SECRETS: Mapping[StoreKind, tuple[str, ...]] = {
    StoreKind.S3: ("access_key_id", "secret_access_key", "session_token"),
    StoreKind.AZURE: ("account_key", "sas_token"),
    StoreKind.GCS: ("service_account_key",),
    StoreKind.FOLDER: (),
}
"""The credentials that each kind takes, by name."""


@dataclass(frozen=True, kw_only=True)
class NamedStore:
    """A store.

    Attributes:
        name: What requests call it.
        url: ``s3://BUCKET/PREFIX``, ``az://CONTAINER/PREFIX``, ``gs://BUCKET/PREFIX`` or ``file:///FOLDER``.
        endpoint: Where its service answers; empty: where the provider's does.
        region: Of S3.
        account: Of Azure.
        virtual_host: Whether the bucket's name is part of the endpoint's host, and not of the path.
        public_url: Base of the URLs under which everybody can read its objects; empty: they can't.
        signed_s: How long URLs are good for that it signs, in seconds.
        tenants: Who may use it; empty: all.
        default_for: Tenants whose jobs it gets where nothing else is asked for.
        inputs: Whether jobs may read inputs from it.
        redirect: Whether who downloads an output that is stored there as it is gets sent there.
        on_delete: Whether the objects of a job that goes are deleted, or stay.
        created_at: Unix seconds.
        sealed: Its credentials, encrypted; empty: those of the machine, or none.
    """

    name: str
    url: str
    endpoint: str = ""
    region: str = ""
    account: str = ""
    virtual_host: bool = False
    public_url: str = ""
    signed_s: float = 3600.0
    tenants: tuple[str, ...] = ()
    default_for: tuple[str, ...] = ()
    inputs: bool = False
    redirect: bool = False
    on_delete: OnDelete = OnDelete.KEEP
    created_at: float = 0.0
    sealed: str = field(default="", repr=False)

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise BadInput(
                f"store {self.name[:80]!r} must be 1 to 63 of A-Z a-z 0-9 _ . -, and begin with a letter, a "
                "digit or _",
                details={"field": "name"},
            )
        _parsed(self.url)
        for given, named in ((self.endpoint, "endpoint"), (self.public_url, "public_url")):
            if given:
                _check_base(given, named)
        for word, named in ((self.region, "region"), (self.account, "account")):
            if word and not _WORD.fullmatch(word):
                raise BadInput(
                    f"{named} {word[:80]!r} must be 1 to 64 of A-Z a-z 0-9 -", details={"field": named}
                )
        if self.kind is StoreKind.AZURE and not self.account:
            raise BadInput("account: a store az:// needs its account's name", details={"field": "account"})
        if not LEAST_SIGNED_S <= self.signed_s <= MOST_SIGNED_S:
            raise BadInput(
                f"signed_s must be from {LEAST_SIGNED_S:.0f} to {MOST_SIGNED_S:.0f} seconds",
                details={"field": "signed_s"},
            )
        if self.redirect and not self.signs:
            raise BadInput(
                "redirect: a folder has no URLs to which clients could be sent", details={"field": "redirect"}
            )
        if self.on_delete is OnDelete.DELETE and self.kind is StoreKind.FOLDER:
            raise BadInput(
                "on_delete: a folder does not tell whose its files are: they stay",
                details={"field": "on_delete"},
            )
        if self.tenants and (others := [one for one in self.default_for if one not in self.tenants]):
            raise BadInput(
                f"default_for names {others[0]!r}, which is none of the tenants that may use it",
                details={"field": "default_for"},
            )

    @property
    def kind(self) -> StoreKind:
        """What it is."""
        return _parsed(self.url)[0]

    @property
    def bucket(self) -> str:
        """Its bucket or container; empty for a folder."""
        return _parsed(self.url)[1]

    @property
    def prefix(self) -> str:
        """What all its keys begin with, without slashes around it; a folder's path."""
        return _parsed(self.url)[2]

    @property
    def signs(self) -> bool:
        """Whether it can sign URLs."""
        return self.kind is not StoreKind.FOLDER

    @property
    def over_http(self) -> bool:
        """Whether it is asked without TLS."""
        return self.endpoint.startswith("http://")

    def serves(self, tenant: str) -> bool:
        """Return whether a tenant may use it."""
        return not self.tenants or tenant in self.tenants

    def url_of(self, key: str) -> str:
        """Return where an object is: for browsers if everybody may read it, else as the store is named."""
        path = quote(key, safe="/-_.~!$&'()*+,;=:@")
        return f"{(self.public_url or self.url).rstrip('/')}/{path}"


def default_of(stores: Sequence[NamedStore], tenant: str) -> NamedStore | None:
    """Return a tenant's default store; of several the first by name."""
    found = [one for one in stores if tenant in one.default_for and one.serves(tenant)]
    return min(found, key=lambda one: one.name) if found else None


def checked_secrets(kind: StoreKind, given: Mapping[str, str]) -> Mapping[str, str]:
    """Return a store's credentials.

    Raises:
        BadInput: The kind takes no such one, or a needed one is missing. No value is repeated.
    """
    names = SECRETS[kind]
    for name, value in given.items():
        if name not in names:
            takes = ", ".join(names) or "none"
            raise BadInput(
                f"credentials.{name[:80]}: a store {kind.value}:// takes {takes}",
                details={"field": "credentials", "takes": list(names)},
            )
        if not value or len(value) > MOST_SECRET or any(ord(sign) < 9 for sign in value):
            raise BadInput(
                f"credentials.{name} must be 1 to {MOST_SECRET} characters", details={"field": "credentials"}
            )
    if kind is StoreKind.S3 and given and not {"access_key_id", "secret_access_key"} <= given.keys():
        raise BadInput(
            "credentials of s3:// are access_key_id and secret_access_key together",
            details={"field": "credentials"},
        )
    if kind is StoreKind.AZURE and len(given) > 1:
        raise BadInput(
            "credentials of az:// are account_key or sas_token, not both", details={"field": "credentials"}
        )
    return dict(given)


def _parsed(url: str) -> tuple[StoreKind, str, str]:
    refused = BadInput(
        f"url {url[:200]!r} must be s3://BUCKET/PREFIX, az://CONTAINER/PREFIX, gs://BUCKET/PREFIX or "
        "file:///FOLDER, of letters, digits and usual signs",
        details={"field": "url"},
    )
    try:
        kind = StoreKind(url.partition("://")[0])
        parts = urlsplit(url)
    except ValueError:
        raise refused from None
    if len(url) > MOST_URL or "?" in url or "#" in url or "%" in url or "@" in parts.netloc:
        raise refused
    pieces = [piece for piece in parts.path.split("/") if piece]
    if any(piece in (".", "..") or not _PART.fullmatch(piece) for piece in pieces) or "//" in parts.path:
        raise refused
    if kind is StoreKind.FOLDER:
        if parts.netloc or not pieces:
            raise refused
        return kind, "", "/" + "/".join(pieces)
    if not _BUCKET.fullmatch(parts.netloc):
        raise refused
    return kind, parts.netloc, "/".join(pieces)


def _check_base(url: str, named: str) -> None:
    refused = BadInput(
        f"{named} {url[:200]!r} must look like https://HOST:PORT, without user, password and query",
        details={"field": named},
    )
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError:
        raise refused from None
    clean = not parts.query and not parts.fragment and "@" not in parts.netloc and url.isascii()
    if parts.scheme not in ("http", "https") or not parts.hostname or not clean or len(url) > MOST_URL:
        raise refused
