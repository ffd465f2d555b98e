"""What the standard variables ``OTEL_*`` ask for, as far as the fleet carries it out itself."""

from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

_ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
_PROTOCOLS = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")


@dataclass(frozen=True, kw_only=True)
class TracesAsked:
    """Whether spans are exported.

    Attributes:
        wanted: Whether they are.
        endpoint: Where to, without user and password.
        why_not: What is wrong with the variables; empty: nothing.
    """

    wanted: bool
    endpoint: str = ""
    why_not: str = ""


def asked_for_traces(environ: Mapping[str, str]) -> TracesAsked:
    """Return what an environment asks for: without an endpoint, nothing."""
    name = next((one for one in _ENDPOINTS if environ.get(one, "").strip()), "")
    if not name or environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return TracesAsked(wanted=False)
    named = environ.get("OTEL_TRACES_EXPORTER", "").lower().split(",")
    exporters = {word for one in named if (word := one.strip())}
    if exporters == {"none"}:
        return TracesAsked(wanted=False)
    if exporters - {"otlp"}:
        return _wrong(f"OTEL_TRACES_EXPORTER={_short(','.join(sorted(exporters)))}: use otlp, or none")
    for one in _PROTOCOLS:
        value = environ.get(one, "").strip().lower()
        if value and value != "http/protobuf":
            return _wrong(f"{one}={_short(value)}: the fleet speaks http/protobuf only, usually at port 4318")
        if value:
            break
    try:
        url = urlsplit(environ[name].strip())
        host, port = url.hostname, url.port
    except ValueError:
        host, port, url = None, None, urlsplit("")
    if url.scheme not in ("http", "https") or not host:
        return _wrong(f"{name} is no URL such as http://127.0.0.1:4318")
    place = f"[{host}]" if ":" in host else host
    return TracesAsked(wanted=True, endpoint=f"{url.scheme}://{place}{f':{port}' if port else ''}{url.path}")


def _wrong(why: str) -> TracesAsked:
    return TracesAsked(wanted=False, why_not=why)


def _short(text: str) -> str:
    return text[:80]
