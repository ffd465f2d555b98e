"""Talk to the fleet's HTTP API. Every failure becomes a :class:`Fail` with a hint and an exit code."""

import json
import os
import re
import ssl
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit

import httpx

from comfy_fleet.adapters.system.authorities import authorities
from comfy_fleet.cli.exits import Exit, Fail
from comfy_fleet.cli.paths import path_of
from comfy_fleet.cli.up.lock import running
from comfy_fleet.cli.up.public_port import USUAL_CONSOLE_URL
from comfy_fleet.domain.errors import ConfigError

_STATUS_EXIT = {
    400: Exit.USAGE,
    401: Exit.REFUSED,
    403: Exit.REFUSED,
    404: Exit.NOT_FOUND,
    409: Exit.REFUSED,
    413: Exit.USAGE,
    422: Exit.USAGE,
    429: Exit.REFUSED,
    503: Exit.REFUSED,
    504: Exit.TIMEOUT,
}
_HINTS = {
    "unauthorized": "give an API key: --key, or FLEET_API_KEY",
    "console_only": "give the console's address (--api, or FLEET_API_URL), or a key: --key, or FLEET_API_KEY",
    "no_nodes": "add one: fleet node add NAME URL",
    "queue_full": "try again later; `fleet status` shows the queue",
    "workflow_format_ui": "in ComfyUI's editor use Workflow > Export (API); `fleet workflow add` converts it "
    "if comfy-cli is installed",
}
_FINDING = {
    "batch_id": "`fleet batch ls` lists them",
    "key": "`fleet key ls` lists them by their ids",
    "tenant": "`fleet tenant ls` lists them; to add it: fleet tenant create NAME",
    "user": "`fleet user ls` lists them; to add one: fleet user create NAME",
}
"""Where to look for what is not there, by what the error's details name."""
OPTIONS = {
    "Idempotency-Key": "--idempotency-key",
    "agent": "--agent",
    "allow_classes": "--allow-classes",
    "cursor": "--cursor",
    "deny_classes": "--deny-classes",
    "editor": "--editor",
    "expires_in_s": "--expires",
    "finish_by": "--finish-by",
    "free_idle_s": "--free-idle-s",
    "free_on_oom": "--free-on-oom",
    "grace_s": "--grace",
    "labels": "--label",
    "limit": "--limit",
    "metadata": "--metadata",
    "moderation": "--moderation",
    "most": "--most",
    "node": "--node",
    "note": "--note",
    "patience_s": "--patience-s",
    "pool": "--pool",
    "prefer_pool": "--prefer-pool",
    "priority": "--priority",
    "reason": "--reason",
    "roles": "--role",
    "retention_s": "--retention",
    "share": "--share",
    "sharing": "--sharing",
    "silence_s": "--silence-s",
    "spill_to": "--spill-to",
    "status": "--status",
    "timeout_s": "--run-timeout",
    "ttl_s": "--ttl",
    "wait_s": "--wait",
    "weight": "--weight",
    "workflow": "--workflow",
    "workflows": "--workflow",
    "zone": "--zone",
}
"""What a request's fields are called on the command line, whatever the command."""
_FIELD = "|".join(sorted(OPTIONS, key=len, reverse=True))
_FIELDS_FIRST = re.compile(rf"({_FIELD})\b(?: (and|needs) ({_FIELD})\b)?")
NO_UNICODE = "the request contains text that is not valid Unicode"
_ID_LENGTH = 36
_API_PATH = re.compile(r"(?<=[^/])/api(/v[0-9]{1,2})?/*$")
_ID_PART = re.compile("[0-9a-f-]+")
SILENCE_S = 60.0
"""Longest silence of a live stream, which sends a comment every 15 s."""
TERMINAL = frozenset({"succeeded", "failed", "canceled", "expired"})


def usual_url() -> str:
    """Return the address of the fleet if none was given: that of the data folder's fleet, if one runs."""
    return _usual()[0]


def _usual() -> tuple[str, Path | None]:
    """Return that address, and the certificate's file of a fleet that shows one."""
    data = Path(os.environ.get("FLEET_DATA") or ".fleet").expanduser().absolute()
    note = running(data)
    certificate = note.get("certificate")
    url = str(note.get("console_url") or note.get("url") or USUAL_CONSOLE_URL)
    return url, Path(certificate) if isinstance(certificate, str) else None


def trusted(url: str) -> ssl.SSLContext | bool:
    """Return how a fleet at this address shows who it is.

    The fleet of the data folder is known by its certificate, which is hardly for ``127.0.0.1``.
    """
    if urlsplit(url).scheme != "https":
        return authorities(url)
    usual, own = _usual()
    ca_file = os.environ.get("FLEET_API_CA_FILE")
    try:
        return authorities(url, own=own if url == usual else None, ca_file=Path(ca_file) if ca_file else None)
    except ConfigError as error:
        raise Fail(f"FLEET_API_CA_FILE: {error.message}", code=Exit.USAGE) from error


def _host_of(url: str) -> str:
    """Return the host of an http(s) URL; empty if the URL can't be used."""
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname or "", parts.port
        httpx.URL(url).host.encode("idna")
    except (ValueError, httpx.InvalidURL):
        return ""
    return host if parts.scheme in ("http", "https") and " " not in url else ""


class Client:
    """The fleet, as a client sees it. Use it as a context manager."""

    def __init__(self, url: str, key: str | None = None, *, timeout_s: float = 30.0) -> None:
        """Set up; nothing is sent yet.

        Args:
            url: The fleet's address, e.g. ``http://127.0.0.1:8189``; empty: :func:`usual_url`.
            key: API key.
            timeout_s: How long a plain request may take.

        Raises:
            Fail: The URL is invalid.
        """
        self.url = (url or usual_url()).rstrip("/")
        if not (host := _host_of(self.url)):
            raise Fail(
                f"--api {url!r} is not an http(s) URL", hint="e.g. http://127.0.0.1:8189", code=Exit.USAGE
            )
        if path := _API_PATH.search(self.url):
            raise Fail(
                f"--api {url!r} ends in {path[0]}, which commands add themselves",
                hint=f"leave it out: {self.url.removesuffix(path[0])}",
                code=Exit.USAGE,
            )
        if key and not (key.isascii() and key.isprintable()):
            raise Fail("--key: an API key is printable ASCII without line breaks", code=Exit.USAGE)
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._http = httpx.Client(
            base_url=self.url,
            headers=headers,
            timeout=httpx.Timeout(timeout_s, connect=5),
            verify=trusted(self.url),
            # No proxy from the environment between this machine and its own fleet.
            trust_env=host not in ("127.0.0.1", "localhost", "::1"),
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the connections."""
        self._http.close()

    def get(self, path: str, **params: Any) -> Any:
        """Return the JSON answer of a path; parameters that are None are left out."""
        return self._call(
            "GET", path, params={key: value for key, value in params.items() if value is not None}
        )

    def post(self, path: str, body: Any = None, *, headers: Mapping[str, str] | None = None) -> Any:
        """Send JSON and return the JSON answer.

        Raises:
            Fail: The body can't be JSON, e.g. because of NaN or text that is not Unicode.
        """
        if body is None:
            return self._call("POST", path, headers=headers)
        return self._send("POST", path, body, headers)

    def _send(self, method: str, path: str, body: Any, headers: Mapping[str, str] | None = None) -> Any:
        try:
            content = json.dumps(body, ensure_ascii=False, allow_nan=False).encode()
        except UnicodeEncodeError:
            raise Fail(NO_UNICODE, code=Exit.USAGE) from None
        except ValueError as error:
            raise Fail(f"the request can't be sent as JSON: {error}", code=Exit.USAGE) from None
        headers = {"Content-Type": "application/json", **(headers or {})}
        return self._call(method, path, content=content, headers=headers)

    def send(
        self,
        path: str,
        content: bytes,
        kind: str,
        *,
        params: Mapping[str, str],
        headers: Mapping[str, str],
        timeout_s: float,
    ) -> Any:
        """Post bytes of some content type and return the JSON answer."""
        headers = {"Content-Type": kind, **headers}
        return self._call("POST", path, content=content, params=params, headers=headers, timeout=timeout_s)

    def patch(self, path: str, body: Any) -> Any:
        """Send JSON and return the JSON answer, as :meth:`post` does."""
        return self._send("PATCH", path, body)

    def delete(self, path: str, **params: Any) -> Any:
        """Delete something."""
        return self._call("DELETE", path, params=params)

    def put(self, path: str, body: Any = None) -> Any:
        """Send JSON, if there is any, and return the JSON answer, as :meth:`post` does."""
        return self._call("PUT", path) if body is None else self._send("PUT", path, body)

    def upload(self, path: Path) -> str:
        """Upload a file as an asset and return the asset's id.

        Raises:
            Fail: It can't be read, or is refused.
        """
        import mimetypes

        kind = mimetypes.guess_type(path.name)[0] or "application/octet-stream"
        try:
            with path.open("rb") as file:
                answer = self._call(
                    "POST",
                    "/api/v2/assets",
                    files={"file": (path.name, file, kind)},
                    data={"content_type": kind, "file_path": path.name},
                    timeout=300,
                )
        except OSError as error:
            raise Fail(f"can't read {path}: {error.strerror}", code=Exit.USAGE) from error
        return str(answer["id"])

    def content(self, url: str, *, start: int = 0, restart: Callable[[], object]) -> Iterator[bytes]:
        """Yield the bytes of a file of the fleet.

        The path is requested at this client's own address: a public URL may not be reachable from here, and
        the key must not go to another host.

        Args:
            url: As the fleet told it.
            start: How many bytes are there already; they are left out if the fleet can do that.
            restart: Is called first if it can't: all bytes come.
        """
        parts = urlsplit(url)
        # Nor does a store have to be reachable.
        path = f"{parts.path}?{parts.query}{'&' if parts.query else ''}redirect=false"
        headers = {"Range": f"bytes={start}-"} if start else {}
        with self._stream(path, headers=headers) as answer:
            if start and answer.status_code != 206:
                restart()
            yield from answer.iter_bytes()

    def events(self, job_id: str, *, deadline: float | None = None) -> Iterator[tuple[str, dict[str, Any]]]:
        """Yield the job's events, type and data, until its final status.

        Args:
            job_id: The job.
            deadline: When to end, by the monotonic clock; it may end somewhat earlier.

        Raises:
            Fail: There is no such job, the stream broke off, or nothing came for too long.
        """
        left_s = SILENCE_S if deadline is None else deadline - time.monotonic()
        silence_s = max(0.05, min(SILENCE_S, left_s))
        patience = httpx.Timeout(silence_s, connect=min(5.0, silence_s))
        with self._stream(path_of("job", job_id, "/events", surface="v2"), timeout=patience) as answer:
            kind, data = "message", ""
            for line in answer.iter_lines():
                if line.startswith("event:"):
                    kind = line[6:].strip()
                elif line.startswith("data:"):
                    data += line[5:].strip()
                elif not line and data:
                    value = json.loads(data)
                    yield kind, value
                    if kind == "status" and value.get("status") in TERMINAL:
                        return
                    kind, data = "message", ""
                elif line.startswith(":") and deadline and time.monotonic() + silence_s > deadline:
                    return  # only a new stream can be waited for in the remaining time

    def follow(self, job_id: str, *, timeout_s: float | None = None) -> Iterator[tuple[str, dict[str, Any]]]:
        """Yield events until the job is final, across broken streams and restarts of the API.

        The record is read again whenever the stream ends; nothing is yielded twice.

        Args:
            job_id: The job.
            timeout_s: Give up after this time.

        Raises:
            Fail: There is no such job, or the time is up.
        """
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        failures = 0
        told: dict[str, Any] | None = None
        while True:
            try:
                for event in self.events(job_id, deadline=deadline):
                    if event[0] != "status" or event[1] != told:
                        yield event
                    if event[0] == "status":
                        told = event[1]
                    failures = 0
                    if event[0] == "status" and event[1].get("status") in TERMINAL:
                        return
                    deadline = self._deadline(deadline, job_id)
            except Fail as error:
                # Don't give up because of a restart of the API or HAProxy.
                if error.exit is not Exit.UNREACHABLE or failures >= 40:
                    raise
                failures += 1
            deadline = self._deadline(deadline, job_id)
            time.sleep(0.25 if deadline is None else min(0.25, max(0.0, deadline - time.monotonic())))

    def _deadline(self, deadline: float | None, job_id: str) -> float | None:
        """Return until when a job is followed; None if it has ended, for all that is left comes at once.

        Raises:
            Fail: The time is up.
        """
        if deadline is None or time.monotonic() <= deadline:
            return deadline
        try:
            ended = self.job(job_id).get("status") in TERMINAL
        except Fail:
            ended = False
        if ended:
            return None
        raise Fail(
            f"job {job_id} is not done yet", hint=f"it goes on: fleet job show {job_id}", code=Exit.TIMEOUT
        )

    def job_id(self, text: str) -> str:
        """Return the complete id of a job that is named by its id or the beginning of it.

        Raises:
            Fail: No job's id begins like that, or several do.
        """
        if len(text) >= _ID_LENGTH or not _ID_PART.fullmatch(text):
            return text
        found = self.get("/api/v1/job-ids", prefix=text)["ids"]
        if len(found) > 1:
            raise Fail(
                f"{len(found)} jobs' ids begin with {text}: {', '.join(found[:5])}",
                hint="give more of it",
                code=Exit.USAGE,
            )
        return str(found[0]) if found else text

    def job(self, job_id: str) -> dict[str, Any]:
        """Return a job in ``/api/v1``'s form."""
        answer = self.get(path_of("job", job_id))
        return dict(answer)

    def fetch(self, path: str, *, most_bytes: int) -> bytes:
        """Return the bytes of a path of the API.

        Raises:
            Fail: There are more than allowed, or it is refused.
        """
        found = bytearray()
        with self._stream(path) as answer:
            for piece in answer.iter_bytes():
                found += piece
                if len(found) > most_bytes:
                    raise Fail(f"{self.url}{path} answered more than {most_bytes} bytes")
        return bytes(found)

    def _call(self, method: str, path: str, **more: Any) -> Any:
        with self._reached():
            answer = self._http.request(method, path, **more)
        if answer.is_error:
            raise failure(answer, path)
        if answer.status_code == 204 or not answer.content:
            return None
        try:
            return answer.json()
        except ValueError:
            raise Fail(
                f"{self.url}{path} did not answer with JSON",
                hint="is that a fleet? --api names its address",
                code=Exit.UNREACHABLE,
            ) from None

    @contextmanager
    def _stream(self, path: str, **more: Any) -> Iterator[httpx.Response]:
        with self._reached(), self._http.stream("GET", path, **more) as answer:
            if answer.is_error:
                answer.read()
                raise failure(answer, path)
            yield answer

    @contextmanager
    def _reached(self) -> Iterator[None]:
        try:
            yield
        except UnicodeEncodeError:  # in a query
            raise Fail(NO_UNICODE, code=Exit.USAGE) from None
        except httpx.TimeoutException as error:
            raise Fail(
                f"{self.url} did not answer in time",
                hint="see `fleet status`",
                code=Exit.UNREACHABLE,
                passing=True,
            ) from error
        except httpx.TransportError as error:
            if "CERTIFICATE_VERIFY_FAILED" in str(error):
                raise Fail(
                    f"who answers at {self.url} can't be checked ({error})",
                    hint="FLEET_API_CA_FILE names a file with the fleet's certificate, or its authority's",
                    code=Exit.UNREACHABLE,
                ) from error
            cut = isinstance(error, httpx.RemoteProtocolError | httpx.ReadError)
            if cut and self.url.startswith("http:"):
                secure = f"https:{self.url.removeprefix('http:')}"
                raise Fail(
                    f"{self.url} broke off instead of answering ({error})",
                    hint=f"try again; if the fleet speaks TLS there: --api {secure}, or FLEET_API_URL",
                    code=Exit.UNREACHABLE,
                    passing=True,
                ) from error
            raise Fail(
                f"nothing answers at {self.url} ({error})",
                hint="`fleet up` starts a fleet; --api or FLEET_API_URL names another address",
                code=Exit.UNREACHABLE,
                passing=True,
            ) from error


def failure(answer: httpx.Response, path: str) -> Fail:
    """Return the failure for an error answer."""
    code, message = "", ""
    details: object = None
    error: dict[str, Any] = {}
    try:
        error = answer.json()["error"]
        code, message = str(error.get("code", "")), str(error.get("message", ""))
        details = error.get("details") or {}
    except (ValueError, KeyError, TypeError, AttributeError):
        message = f"{path} answered {answer.status_code} {answer.reason_phrase}"
    exit_code = _STATUS_EXIT.get(answer.status_code, Exit.FAILED)
    if not code and answer.status_code in (502, 503, 504):
        exit_code = Exit.UNREACHABLE  # HAProxy answers, but there is no API behind it
        message = f"the API does not answer ({answer.status_code})"
    hint = _hint(code, message, details)
    if hint is None and (wait := answer.headers.get("Retry-After")):
        hint = f"try again in {wait} s"
    for node, problems in _node_errors(details):
        # Some messages name the node already, with its class.
        named = problems.startswith((f"node {node} ", f"node {node}:"))
        if problems in message or f"node {node}: {problems}" in message:
            continue  # already in the message
        message += f"\n  {problems}" if named else f"\n  node {node}: {problems}"
    passing = answer.status_code in (429, 502, 503)
    message = in_options(message, details.get("field") if isinstance(details, dict) else None)
    return Fail(
        message or f"{answer.status_code}",
        hint=hint,
        code=exit_code,
        passing=passing,
        answer=error if isinstance(error, dict) else None,
    )


def _hint(code: str, message: str, details: object) -> str | None:
    if code == "forbidden" and message.startswith("this needs a key with the role"):
        return "give such a key: --key, or FLEET_API_KEY; `fleet status` says whose this one is"
    if code == "not_found" and isinstance(details, dict):
        return next((hint for name, hint in _FINDING.items() if name in details), None)
    return _HINTS.get(code)


def in_options(message: str, field: object) -> str:
    """Return an error's message with a field at its beginning called as the command's option.

    Args:
        message: The API's.
        field: The field that it says is wrong, if it names one.
    """
    found = _FIELDS_FIRST.match(message)
    if found is None or not isinstance(field, str) or re.split(r"[.[]", field)[0] not in OPTIONS:
        return message
    words = [OPTIONS[found[1]], *((found[2], OPTIONS[found[3]]) if found[2] else ())]
    return " ".join(words) + re.sub(r"^\.[0-9]+", "", message[found.end() :])


def _node_errors(details: object) -> Iterator[tuple[str, str]]:
    found = details.get("node_errors") if isinstance(details, dict) else None
    if not isinstance(found, dict):
        return
    for node, problems in found.items():
        if isinstance(problems, list):
            words = [
                str(problem.get("message") or problem.get("reason") or problem)
                if isinstance(problem, dict)
                else str(problem)
                for problem in problems
            ]
            yield str(node), "; ".join(words)
