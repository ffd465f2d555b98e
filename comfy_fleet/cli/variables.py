"""Warn of ``FLEET_*`` variables that nothing reads, or whose form is a former one."""

import os
from collections.abc import Iterator, Sequence

_USUAL = ("FLEET_API_URL", "FLEET_API_KEY")  # what a shell is set to that talks to a fleet
_SERVICES = (("api",), ("dispatch",), ("agent",), ("sim",), ("haproxy", "run"))


def is_service(argv: Sequence[str]) -> bool:
    """Return whether a command line starts one of the fleet's own processes: these warn in their logs."""
    words = tuple(word for word in argv if not word.startswith("-"))
    return any(words[: len(service)] == service for service in _SERVICES)


def sentences() -> Iterator[str]:
    """Yield a sentence for each variable that nothing reads, or that an operator has to write anew.

    This process's children won't say it again.
    """
    if not any(name.startswith("FLEET_") and name not in _USUAL for name in os.environ):
        return  # the settings take long to load
    from comfy_fleet.domain.nodes.former_pools import orders
    from comfy_fleet.settings import WARNED, unknown

    told = [name for name in os.environ.get(WARNED, "").split(",") if name]
    found = unknown(os.environ)
    former = {name: words for name, words in orders(os.environ).items() if name not in told}
    if found or former:
        os.environ[WARNED] = ",".join([*told, *found, *former])
    for name, meant in found.items():
        help_ = f"did you mean {meant}?" if meant else "the settings are in docs/reference/settings.md"
        yield f"nothing reads {name}; {help_}"
    for name, words in former.items():
        yield f"{name} names single pools, which is given up; it still counts. Instead type: {words}"


def warn_on_terminal() -> None:
    """Warn on stderr."""
    from comfy_fleet.cli.console import stderr

    if "_FLEET_COMPLETE" in os.environ:  # a shell asks what could come next
        return
    for sentence in sentences():
        console = stderr()
        console.print("[bold yellow]warning:[/]", end=" ")
        console.print(sentence, markup=False)
