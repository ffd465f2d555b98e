"""What ``fleet doctor`` hears from the fleet that runs on this data folder: what its operator should know."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from comfy_fleet.cli.up.lock import running
from comfy_fleet.settings import Settings

CHECK = "Running fleet"
STORES = "Stores"
_PATIENCE_S = 5.0
_STORE_PATIENCE_S = 45.0
_EDITOR = "bring that node up to date, or name another for the editor: fleet node add NAME URL --editor"
_OTHERS = "fleet status and fleet node ls say more"


def notes(settings: Settings) -> Sequence[tuple[str, str]]:
    """Return the notes of the fleet that runs on the data folder, each with advice; none if no fleet runs.

    A fleet that does not answer has no notes: `fleet status` says why.
    """
    import httpx

    url, options = _place(settings)
    if not url:
        return []
    try:
        answer = httpx.get(f"{url}/api/v1/ready", **options).json()
    except (httpx.HTTPError, httpx.InvalidURL, ValueError):
        return []
    told = answer.get("notes") if isinstance(answer, dict) else None
    return [
        (str(note), _EDITOR if str(note).startswith("editor:") else _OTHERS)
        for note in (told if isinstance(told, list) else ())
    ]


def asks_for_keys(settings: Settings) -> bool:
    """Return whether the fleet that runs on the data folder wants keys; it may have been told so alone."""
    import httpx

    url, options = _place(settings)
    if not url:
        return False
    try:
        return httpx.get(f"{url}/api/v1/me", **options).status_code == httpx.codes.UNAUTHORIZED
    except (httpx.HTTPError, httpx.InvalidURL):
        return False


def _place(settings: Settings) -> tuple[str, dict[str, Any]]:
    """Return where the fleet on the data folder answers, empty if none runs, and how to ask it."""
    from comfy_fleet.adapters.system.authorities import authorities

    note = running(settings.data)
    url, certificate = str(note.get("console_url") or note.get("url") or ""), note.get("certificate")
    own = Path(certificate) if isinstance(certificate, str) else None
    options = {"timeout": _PATIENCE_S, "trust_env": False}
    return url, {**options, "verify": authorities(url, own=own)} if url else options


def store_faults(settings: Settings) -> tuple[int, Sequence[tuple[str, str]]]:
    """Return how many stores the fleet on the data folder has, and the faults of some, each with advice."""
    url, options = _place(settings)
    if not url or not settings.secret_key_file.exists():
        return 0, []
    import httpx

    from comfy_fleet.adapters.system.secret_box import SecretBox
    from comfy_fleet.domain.errors import ConfigError
    from comfy_fleet.domain.machine_token import PURPOSE, machine_token

    count, faults = 0, []
    try:
        token = machine_token(SecretBox.open(settings.secret_key_file).derive(PURPOSE), time.time())
        headers = {"authorization": f"Bearer {token}"}
        options |= {"base_url": url, "timeout": _STORE_PATIENCE_S}
        with httpx.Client(headers=headers, **options) as client:
            for store in client.get("/api/v1/stores").raise_for_status().json()["stores"]:
                count += 1
                name = str(store["name"])
                answer = client.post(f"/api/v1/stores/{quote(name, safe='')}/test").raise_for_status().json()
                if not answer["ok"]:
                    advice = f"fleet store show {name} has its endpoint; once mended: fleet store test {name}"
                    faults.append((str(answer["error"]), advice))
    except (httpx.HTTPError, httpx.InvalidURL, ConfigError, OSError, ValueError, KeyError, TypeError):
        pass  # `fleet status` says why the fleet does not answer
    return count, faults
