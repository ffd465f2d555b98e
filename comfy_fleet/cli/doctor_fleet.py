"""What ``fleet doctor`` hears from the fleet that runs on this data folder: what its operator should know."""

from collections.abc import Sequence

from comfy_fleet.cli.up.lock import running
from comfy_fleet.settings import Settings

CHECK = "Running fleet"
_PATIENCE_S = 5.0
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
