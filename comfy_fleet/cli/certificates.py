"""``fleet cert``: the certificates with which the public port and the console speak TLS."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from comfy_fleet.cli.exits import Exit, Fail
from comfy_fleet.cli.options import Data, Json

if TYPE_CHECKING:
    from comfy_fleet.settings import Settings

app = typer.Typer(help="Make a certificate for a first try of TLS; show those in use.", no_args_is_help=True)


@app.command("self-signed")
def make_self_signed(
    name: Annotated[
        list[str] | None,
        typer.Option(
            "--name",
            metavar="HOST",
            help="A host name or address that clients use. Repeatable.",
            show_default="this machine's, and those in FLEET_PUBLIC_URL and FLEET_CONSOLE_URL",
        ),
    ] = None,
    days: Annotated[int, typer.Option(min=1, max=825, metavar="N", help="How long it is good.")] = 90,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Where to write it.", show_default="tls in --data")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace the files that are there.")] = False,
    data: Data = None,
) -> None:
    """Make a certificate that nobody has signed, to try TLS with.

    Browsers warn of it, and programs refuse it unless they are given it: FLEET_API_CA_FILE for `fleet` and
    agents, --cacert for curl. For people, get one that is signed.
    """
    import shlex
    import time

    from comfy_fleet.adapters.haproxy.certificates import write_private
    from comfy_fleet.adapters.system.folders import private_folder
    from comfy_fleet.adapters.system.self_signed import self_signed
    from comfy_fleet.cli.console import stdout
    from comfy_fleet.cli.processes import load

    settings = load(data=data)
    folder = (out.expanduser() if out else settings.data / "tls").absolute()
    certificate, key = folder / "cert.pem", folder / "key.pem"
    if not force and (there := next((path for path in (certificate, key) if path.exists()), None)):
        raise Fail(f"{there} is there already", hint="--force replaces it", code=Exit.REFUSED)
    names = list(dict.fromkeys(name or _usual_names(settings)))
    made = self_signed(names, days=days, now=time.time())
    try:
        private_folder(folder)
        for path, pem in ((key, made.key), (certificate, made.certificate)):
            new = path.with_name(f".{path.name}.new")
            write_private(new, pem)
            new.replace(path)
        certificate.chmod(0o644)
    except OSError as error:
        raise Fail(
            f"can't write in {folder}: {error.strerror}", hint="name another folder: --out DIR"
        ) from error
    out_lines = stdout()
    out_lines.print(f"good for {days} days, for {', '.join(names)}", markup=False)
    for line in (
        f"export FLEET_TLS_CERT_FILE={shlex.quote(str(certificate))}",
        f"export FLEET_TLS_KEY_FILE={shlex.quote(str(key))}",
        f"export FLEET_API_CA_FILE={shlex.quote(str(certificate))}",
    ):
        out_lines.print(line, markup=False, soft_wrap=True, highlight=False)


@app.command()
def show(json_: Json = False, data: Data = None) -> None:
    """Show the certificates that the settings name; exits with 1 if one has ended."""
    import time

    from comfy_fleet.adapters.haproxy.certificates import edge_certificates, expiry_words
    from comfy_fleet.cli.console import print_json, stdout, table
    from comfy_fleet.cli.processes import load_running

    settings = load_running(data)
    found = edge_certificates(settings).by_origin
    if not found:
        raise Fail(
            "this fleet speaks no TLS itself",
            hint="set FLEET_TLS_CERT_FILE; for a try: fleet cert self-signed",
            code=Exit.NOT_FOUND,
        )
    now = time.time()
    if json_:
        print_json(
            [
                {
                    "origin": origin,
                    "file": str(one.path),
                    "names": list(one.names),
                    "expires_at": one.expires_at,
                }
                for origin, one in found.items()
            ]
        )
    else:
        rows = [
            (origin, str(one.path), ", ".join(one.names), expiry_words(one.expires_at, now=now))
            for origin, one in found.items()
        ]
        stdout().print(table(["<Origin", "<File", "For", "Good"], rows))
    if any(one.expires_at <= now for one in found.values()):
        raise typer.Exit(Exit.FAILED)


def _usual_names(settings: "Settings") -> list[str]:
    import socket
    from urllib.parse import urlsplit

    from comfy_fleet.cli.up import ports

    hosts = [urlsplit(url).hostname for url in (settings.public_url, settings.console_url) if url]
    asked = ports.asked(settings.host)
    return [
        *filter(None, hosts),
        *(name for name in (socket.gethostname(), "localhost", "127.0.0.1", "::1") if name),
        *([] if asked in ("127.0.0.1", "::1", "localhost") else [asked]),
    ]
