"""Warn about ``FLEET_*`` variables that nothing reads, or that have a former form."""

import os
from collections.abc import Iterator, Sequence

_USUAL = ("FLEET_API_URL", "FLEET_API_KEY")  # variables for the command line only
_SERVICES = (("serve",), ("api",), ("dispatch",), ("agent",), ("sim",), ("haproxy", "run"), ("autoscale",))


def is_service(argv: Sequence[str]) -> bool:
    """Return whether a command line starts one of the fleet's own processes, which warn in their logs."""
    words = tuple(word for word in argv if not word.startswith("-"))
    return any(words[: len(service)] == service for service in _SERVICES)


def sentences() -> Iterator[str]:
    """Yield a sentence for each variable that nothing reads, or that should be written in a new form.

    This process's children won't repeat it.
    """
    if not any(name.startswith("FLEET_") and name not in _USUAL for name in os.environ):
        return  # loading the settings is slow
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
    if "_FLEET_COMPLETE" in os.environ:  # a shell asks for completions
        return
    for sentence in sentences():
        from comfy_fleet.cli.console import stderr

        console = stderr()
        console.print("[bold yellow]warning:[/]", end=" ")
        console.print(sentence, markup=False)
