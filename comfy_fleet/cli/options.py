"""Options that many commands share."""

import shlex
from pathlib import Path
from typing import Annotated

import typer

from comfy_fleet.cli.exits import Exit, Fail

DEFAULT_API = ""
"""No address was given: :func:`comfy_fleet.cli.client.usual_url` finds the fleet."""

Api = Annotated[
    str,
    typer.Option(
        "--api",
        envvar="FLEET_API_URL",
        help="Address of the fleet's console.",
        metavar="URL",
        show_default="that of `fleet up` on FLEET_DATA or .fleet; else http://127.0.0.1:8189",
    ),
]
Key = Annotated[
    str | None,
    typer.Option(
        "--key", envvar="FLEET_API_KEY", help="API key.", metavar="KEY", show_default=False, show_envvar=True
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
Data = Annotated[
    Path | None,
    typer.Option("--data", metavar="DIR", help="The fleet's folder.", show_default="FLEET_DATA or .fleet"),
]


NAME_ITS_FOLDER = "is it running? name its folder: --data DIR"
"""The hint if a fleet of `fleet up` is not found."""


def words(text: str, option: str) -> list[str]:
    """Split an option's value as a shell would.

    Raises:
        Fail: A quote is not closed.
    """
    try:
        return shlex.split(text)
    except ValueError as error:
        raise Fail(f"{option} {text!r} can't be split into words: {error}", code=Exit.USAGE) from error
