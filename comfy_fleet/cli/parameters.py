"""Parameters of a stored workflow, as they are typed: ``-p NAME=VALUE`` and ``--image NAME=FILE``."""

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from comfy_fleet.cli.exits import Exit, Fail
from comfy_fleet.cli.paths import path_of

if TYPE_CHECKING:
    from comfy_fleet.cli.client import Client


def pairs(given: Sequence[str], option: str) -> dict[str, str]:
    """Split ``K=V`` strings.

    Raises:
        Fail: One has no ``=`` or no name, or a name comes twice.
    """
    made: dict[str, str] = {}
    for text in given:
        name, separator, value = text.partition("=")
        if not separator or not name:
            raise Fail(f"{option} {text!r} is not NAME=VALUE", code=Exit.USAGE)
        if name in made:
            raise Fail(f"{option} {name} is given twice", code=Exit.USAGE)
        made[name] = value
    return made


def parameters(
    client: "Client", name: str, given: Sequence[str], images: Sequence[str], *, count: int = 1
) -> dict[str, Any]:
    """Convert the given values to the types of the workflow's parameters, and upload files.

    Args:
        client: The fleet.
        name: The workflow.
        given: Values, as typed.
        images: Files, as typed.
        count: How many jobs are made; of several, each has to have a seed of its own.

    Raises:
        Fail: No such workflow or parameter, a value of the wrong type, an unreadable file.
    """
    typed = pairs(given, "-p")
    files = pairs(images, "--image")
    described = client.get(path_of("workflow", name))
    warn_of_broken(name, described)
    properties: dict[str, Any] = schema_of(described).get("properties", {})
    for wanted in (*typed, *files):
        if wanted not in properties:
            raise Fail(
                f"workflow {name} has no parameter {wanted!r}",
                hint=f"it has: {', '.join(properties) or 'none'}",
                code=Exit.USAGE,
            )
    for wanted in files:
        if wanted in typed:
            raise Fail(f"{wanted} is given twice: with -p and with --image", code=Exit.USAGE)
        if properties[wanted].get("x-fleet-type") not in ("image", "asset"):
            raise Fail(
                f"parameter {wanted!r} of workflow {name} takes no file",
                hint=f"-p {wanted}=VALUE; for text from a file: -p {wanted}=@FILE",
                code=Exit.USAGE,
            )
    for wanted, text in typed.items():
        file = text.removeprefix("@")
        if properties[wanted].get("x-fleet-type") in ("image", "asset") and _is_file(file):
            raise Fail(
                f"-p {wanted}: {file} is a file here, and the fleet can't see it",
                hint=f"upload it: --image {shlex.quote(f'{wanted}={file}')}",
                code=Exit.USAGE,
            )
    values = {wanted: typed_value(wanted, text, properties[wanted]) for wanted, text in typed.items()}
    if count > 1:
        _check_seeds(name, properties, values, count)
    for wanted, path in files.items():
        values[wanted] = client.upload(Path(path).expanduser())
    return values


def _check_seeds(name: str, properties: Mapping[str, Any], values: Mapping[str, Any], count: int) -> None:
    seeds = [one for one, about in properties.items() if about.get("x-fleet-type") == "seed"]
    if not seeds:
        raise Fail(
            f"workflow {name} has no seed, so {count} jobs would all make the same",
            hint="leave out -n, or make a seed a parameter: title its node $seed",
            code=Exit.USAGE,
        )
    if all(values.get(one, -1) != -1 for one in seeds):
        words = ", ".join(f"-p {one}={values[one]}" for one in seeds)
        raise Fail(
            f"with {words}, {count} jobs would all make the same",
            hint="leave it out: a seed is drawn for each",
            code=Exit.USAGE,
        )


def warn_of_broken(name: str, answer: Mapping[str, Any]) -> None:
    """Warn on stderr if a workflow's files can't be used and its last good version is served."""
    from comfy_fleet.cli.console import stderr

    if why := answer.get("broken"):
        text = f"{name}: its last good version is used, as its files are broken: {why}"
        stderr().print(text, style="red", markup=False)


def _is_file(text: str) -> bool:
    try:
        return Path(text).expanduser().is_file()
    except (OSError, ValueError, RuntimeError):  # a name that no file can have
        return False


def schema_of(described: Mapping[str, Any]) -> dict[str, Any]:
    """Return the JSON Schema of the parameters, from the API's description of a workflow."""
    return dict(described["parameters"])


def typed_value(name: str, text: str, schema: Mapping[str, Any]) -> Any:
    """Read a value as its parameter's type.

    Raises:
        Fail: It has another type.
    """
    kind = schema.get("type", "string")
    if text.startswith("@") and kind == "string" and "enum" not in schema:
        try:
            return Path(text[1:]).expanduser().read_text(encoding="utf-8")
        except OSError as error:
            raise Fail(f"-p {name}: can't read {text[1:]}: {error.strerror}", code=Exit.USAGE) from error
        except UnicodeDecodeError:
            raise Fail(f"-p {name}: {text[1:]} is not UTF-8 text", code=Exit.USAGE) from None
    try:
        if kind == "integer":
            return int(text)
        if kind == "number":
            return float(text)
    except ValueError:
        raise Fail(f"-p {name}: {text!r} is no {kind}", code=Exit.USAGE) from None
    if kind == "boolean":
        if text.lower() not in ("true", "false", "yes", "no", "on", "off", "1", "0"):
            raise Fail(f"-p {name}: {text!r} is neither true nor false", code=Exit.USAGE)
        return text.lower() in ("true", "yes", "on", "1")
    return text
