"""An asset's record in Redis: a hash of texts."""

from collections.abc import Sequence

import orjson

from comfy_fleet.domain.graphs.folders import Folder
from comfy_fleet.domain.jobs.asset import Asset, index_name


def dump_asset(asset: Asset) -> dict[str, str]:
    """Return every field as text, in Redis' form."""
    record = {
        "id": asset.id,
        "owner": asset.owner,
        "hash": asset.hash,
        "size_bytes": str(asset.size_bytes),
        "content_type": asset.content_type,
        "file_path": asset.file_path,
        "path": asset.path,
        "created_at": repr(asset.created_at),
    }
    if (listed := index_name(asset.file_path, asset.folder)) != asset.file_path:
        record["listed"] = listed
    if asset.expires_at is not None:
        record["expires_at"] = repr(asset.expires_at)
    if asset.job_id is not None:
        record["job_id"] = asset.job_id
    if asset.tags:
        record["tags"] = dump_tags(asset.tags)
    if asset.renews:
        record["renews"] = "1"
    if asset.folder is not Folder.INPUT:
        record["folder"] = asset.folder
    return record


def dump_tags(tags: tuple[str, ...]) -> str:
    """Return tags in Redis' form."""
    return orjson.dumps(sorted(set(tags))).decode()


def asset_fields(flat: Sequence[bytes]) -> dict[str, str]:
    """Return a record from names and values, one after the other, as Lua returns a hash."""
    texts = [one.decode() for one in flat]
    return dict(zip(texts[::2], texts[1::2], strict=True))


def load_asset(record: dict[str, str]) -> Asset:
    """Read :func:`dump_asset` back."""
    return Asset(
        id=record["id"],
        owner=record["owner"],
        hash=record["hash"],
        size_bytes=int(record["size_bytes"]),
        content_type=record["content_type"],
        file_path=record["file_path"],
        path=record["path"],
        created_at=float(record["created_at"]),
        expires_at=float(record["expires_at"]) if "expires_at" in record else None,
        job_id=record.get("job_id"),
        tags=tuple(orjson.loads(record["tags"])) if record.get("tags") else (),
        renews="renews" in record,
        folder=Folder(record.get("folder", Folder.INPUT)),
    )
