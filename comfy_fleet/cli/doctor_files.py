"""``fleet doctor --files``: does every record of a file have its bytes?"""

import asyncio
from collections.abc import Sequence

from comfy_fleet.adapters.redis.assets import RedisAssets
from comfy_fleet.bootstrap import open_assets, open_stores
from comfy_fleet.cli.doctor_checks import Finding, Severity
from comfy_fleet.domain.disk_room import size_text
from comfy_fleet.domain.errors import FleetError
from comfy_fleet.domain.jobs.asset import Asset
from comfy_fleet.settings import Settings

CHECK = "Files"
_SHOWN = 5


def stored_files(settings: Settings) -> list[Finding]:
    """Compare the records in Redis with the bytes in the data folder.

    Args:
        settings: Those of the fleet that runs on the folder.
    """
    if not settings.data.is_dir():
        return [_finding(Severity.FAIL, f"there is no {settings.data}", "name the data folder: --data DIR")]
    there = (settings.files_dir / "blobs").is_dir()
    try:
        if not there and asyncio.run(_none_recorded(settings)):
            return [_finding(Severity.OK, "no uploads and outputs yet", "")]
        if not there:  # a look must not make the folder
            return [
                _finding(
                    Severity.FAIL,
                    f"{settings.files_dir} has none, and Redis knows some",
                    "name the data folder: --data DIR; or copy them from a backup",
                )
            ]
        checked, total, bad = asyncio.run(_compare(settings))
    except FleetError as error:
        return [
            _finding(Severity.FAIL, f"not compared: {error}", "start the fleet first: its Redis knows them")
        ]
    if not bad:
        return [_finding(Severity.OK, f"{checked} uploads and outputs, {size_text(total)}: all there", "")]
    return [
        _finding(
            Severity.FAIL,
            f"missing or too short: {len(bad)} of {checked} uploads and outputs, such as "
            + ", ".join(map(_named, bad[:_SHOWN])),
            f"copy them from a backup into {settings.files_dir}, under the same names",
        )
    ]


async def _none_recorded(settings: Settings) -> bool:
    """Return whether Redis knows no uploads and no outputs."""
    async with open_stores(settings) as stores:
        return not await RedisAssets.recorded(stores.redis)


async def _compare(settings: Settings) -> tuple[int, int, Sequence[Asset]]:
    """Return how many records there are, their bytes, and those whose bytes are missing or too short."""
    checked = total = 0
    bad = []
    async with open_stores(settings) as stores:
        async for asset, size in open_assets(settings, stores).stored_sizes():
            checked += 1
            total += asset.size_bytes
            if size != asset.size_bytes:
                bad.append(asset)
    return checked, total, bad


def _named(asset: Asset) -> str:
    return f"{asset.path} ({f'an output of job {asset.job_id}' if asset.job_id else 'an upload'})"


def _finding(verdict: Severity, found: str, do: str) -> Finding:
    return Finding(check=CHECK, verdict=verdict, found=found, do=do)
