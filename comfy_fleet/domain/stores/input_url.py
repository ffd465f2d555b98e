"""Inputs that jobs read from stores: ``s3://STORE/KEY``, where STORE is a store's name and not a bucket."""

from dataclasses import dataclass

from comfy_fleet.domain.errors import OutboundRefused
from comfy_fleet.domain.stores.named_store import NamedStore, StoreKind
from comfy_fleet.domain.stores.object_key import MOST_KEY

ANY = "store"
"""How such a URL may begin whatever the store is; a folder's has no other beginning."""


@dataclass(frozen=True, kw_only=True)
class StoreInput:
    """An object that is an input.

    Attributes:
        scheme: How the URL begins.
        store: The store's name.
        key: The object's key below the store's prefix, as it is written: nothing in it is an escape.
    """

    scheme: str
    store: str
    key: str

    def fits(self, store: NamedStore) -> bool:
        """Return whether the URL begins as one of this store may."""
        return self.scheme in (ANY, store.kind.value) and self.scheme != StoreKind.FOLDER.value


def parse_store_input(url: str) -> StoreInput:
    """Take a URL apart.

    Raises:
        OutboundRefused: It has no store or no key, or the key can't be one.
    """
    scheme, _, rest = url.strip().partition("://")
    name, _, key = rest.partition("/")
    if not name or not key:
        raise OutboundRefused("the URL must be SCHEME://STORE/KEY, with the name of a store of the fleet")
    if len(key.encode("utf-8", "replace")) > MOST_KEY or not key.isprintable() or "\\" in key:
        raise OutboundRefused(
            f"the key must be at most {MOST_KEY} bytes, without control signs and backslashes"
        )
    if any(part in ("", ".", "..") for part in key.split("/")):
        raise OutboundRefused("the key must not have empty parts, '.' or '..'")
    return StoreInput(scheme=scheme.lower(), store=name[:200], key=key)
