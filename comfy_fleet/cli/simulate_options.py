"""What the options of ``fleet simulate`` mean: a made-up trace, and a made-up fleet."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from comfy_fleet.cli.exits import Exit, Fail
from comfy_fleet.domain.jobs.job import DEFAULT_POOL
from comfy_fleet.domain.nodes.pool import LONGEST_PATIENCE_S
from comfy_fleet.planning.fleet import NodeGroup, from_flag, from_toml, rates
from comfy_fleet.planning.generated import Generated
from comfy_fleet.planning.units import number, seconds, size, size_range, wrong

MAX_FLEET_FILE = 1024 * 1024
RATE = 0.25
"""Jobs a second of a made-up trace."""


def made_up(given: Mapping[str, Any], *, jobs: int | None, seed: int) -> Generated:
    """Return what a made-up trace is like.

    Args:
        given: The options that were given, by flag.
        jobs: How many jobs; None: as many as come.
        seed: Decides everything.

    Raises:
        BadInput: An option's value can't be used.
    """
    plain = {
        "--burst": "burst",
        "--owners": "owners",
        "--owner-skew": "owner_skew",
        "--sets": "sets",
        "--set-skew": "set_skew",
        "--run-spread": "run_spread",
        "--finish-within": "finish_within",
    }
    found: dict[str, Any] = {name: given[flag] for flag, name in plain.items() if flag in given}
    found["rate"] = (
        number(given["--rate"].removesuffix("/s"), "--rate", most=1e6) if "--rate" in given else RATE
    )
    if "--for" in given:
        found["duration_s"] = above(given["--for"], "--for")
    if "--run" in given:
        found["run_s"] = above(given["--run"], "--run")
    if "--ttl" in given:
        found["ttl_s"] = above(given["--ttl"], "--ttl")
    if "--beside" in given:
        found["beside"] = size(given["--beside"], "--beside")
    if "--set-size" in given:
        found["set_bytes"] = size_range(given["--set-size"], "--set-size")
    editors, batches = given.get("--editors", 0.0), given.get("--batches", 0.0)
    if editors + batches > 1:
        raise Fail("--editors and --batches are more than 1 together", code=Exit.USAGE)
    return Generated(jobs=jobs, tiers=(editors, 1 - editors - batches, batches), seed=seed, **found)


def groups(
    flags: Sequence[str] | None, file: Path | None, *, ram: str, load: str, price: float
) -> list[NodeGroup] | None:
    """Return the groups of nodes that were asked for; None: none were.

    Raises:
        BadInput: A group can't be read.
        Fail: The file can't be read, or both ways are used.
    """
    if file is not None:
        if flags:
            raise Fail("the nodes come from --fleet or from --nodes, not from both", code=Exit.USAGE)
        return from_toml(_text(file), str(file))
    usual = usual_group(ram=ram, load=load, price=price)
    return [from_flag(flag, usual) for flag in flags] if flags else None


def usual_group(*, ram: str, load: str, price: float) -> NodeGroup:
    """Return nodes as they are if nothing else is said."""
    disk_rate, ram_rate = rates(load, "--load")
    return NodeGroup(ram=size(ram, "--ram"), disk_rate=disk_rate, ram_rate=ram_rate, price=price)


def like_nodes(nodes: Iterable[Mapping[str, Any]], usual: NodeGroup) -> list[NodeGroup]:
    """Return groups like a fleet's own nodes: pools, cards, speeds and zones; the rest as usual."""
    kinds = Counter(
        (
            str(node.get("pool") or DEFAULT_POOL),
            int(node.get("vram_bytes") or 0) or usual.vram,
            round(float(node.get("speed") or 1.0), 3),
            str(node.get("zone") or ""),
        )
        for node in nodes
    )
    return [
        replace(usual, count=count, pool=pool, vram=vram, speed=speed, zone=zone)
        for (pool, vram, speed, zone), count in sorted(kinds.items())
    ]


def above(text: str, flag: str) -> float:
    """Return a duration above 0.

    Raises:
        Fail: It is 0.
        BadInput: It is none.
    """
    found = seconds(text, flag)
    if not found:
        raise Fail(f"{flag} must be above 0", code=Exit.USAGE)
    return found


def patience_s(text: str) -> float:
    """Return for how long a job may be passed over, within a fleet's own bounds.

    Raises:
        BadInput: It is no duration, or too long a one.
    """
    found = seconds(text, "--patience")
    if found > LONGEST_PATIENCE_S:
        raise wrong("--patience", text, f"at most {LONGEST_PATIENCE_S:.0f}s")
    return found


def _text(path: Path) -> str:
    try:
        with path.open("rb") as file:
            content = file.read(MAX_FLEET_FILE + 1)
        if len(content) > MAX_FLEET_FILE:
            raise Fail(f"{path} has more than {MAX_FLEET_FILE} bytes", code=Exit.USAGE)
        return content.decode()
    except OSError as error:
        raise Fail(f"can't read {path}: {error.strerror}", code=Exit.USAGE) from error
    except UnicodeDecodeError:
        raise Fail(f"{path} is not UTF-8 text", code=Exit.USAGE) from None
