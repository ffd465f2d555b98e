"""What ``fleet doctor`` hears from the fleet that runs on this data folder: what its operator should know."""

import time
from collections.abc import Sequence
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
    url = str(running(settings.data).get("url") or "")
    if not url:
        return []
    import httpx

    try:
        answer = httpx.get(f"{url}/api/v1/ready", timeout=_PATIENCE_S, trust_env=False).json()
    except (httpx.HTTPError, httpx.InvalidURL, ValueError):
        return []
    told = answer.get("notes") if isinstance(answer, dict) else None
    return [
        (str(note), _EDITOR if str(note).startswith("editor:") else _OTHERS)
        for note in (told if isinstance(told, list) else ())
    ]


def store_faults(settings: Settings) -> tuple[int, Sequence[tuple[str, str]]]:
    """Return how many stores the fleet on the data folder has, and the faults of some, each with advice."""
    url = str(running(settings.data).get("url") or "")
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
        options: Any = {"base_url": url, "timeout": _STORE_PATIENCE_S, "trust_env": False}
        with httpx.Client(headers=headers, **options) as client:
            for store in client.get("/api/v1/stores").raise_for_status().json()["stores"]:
                count += 1
                name = str(store["name"])
                answer = client.post(f"/api/v1/stores/{quote(name, safe='')}/test").raise_for_status().json()
                if not answer["ok"]:
                    faults.append((str(answer["error"]), f"fleet store show {name}; fleet store test {name}"))
    except (httpx.HTTPError, httpx.InvalidURL, ConfigError, OSError, ValueError, KeyError, TypeError):
        pass  # `fleet status` says why the fleet does not answer
    return count, faults
