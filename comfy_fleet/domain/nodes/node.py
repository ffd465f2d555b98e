"""A node: one ComfyUI server, usually one GPU."""

import base64
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from urllib.parse import quote, unquote, urlsplit

from comfy_fleet.domain.errors import BadInput
from comfy_fleet.domain.jobs.job import DEFAULT_POOL

LIVE = ("cordoned", "cordon_reason", "twin", "speed", "free_idle_s")
"""What of a node is no part of its registration: it changes while the fleet runs."""

AGENT_DRAINS = "its agent says drain"
"""Why HAProxy gives a node no lease, if that is all that it knows; the agent's own words say more."""

NAME = re.compile(r"[a-z0-9][a-z0-9_.-]{0,62}")
_PREFIX = re.compile(r"(/(?!\.{1,2}(/|$))[A-Za-z0-9._~-]{1,80}){0,8}")
_USERINFO = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*://)([^/?#]*)@(.*)", re.DOTALL)
_MOST_CREDENTIALS = 512
_AGENT = re.compile(r"([A-Za-z0-9.-]{1,253}|\[[0-9A-Fa-f:.]{2,45}\]):[0-9]{1,5}")


@dataclass(frozen=True, kw_only=True)
class Node:
    """A registered ComfyUI server.

    Attributes:
        name: Unique; what HAProxy calls its server.
        url: ``http[s]://HOST:PORT[/PREFIX]`` of the ComfyUI.
        sealed: The user and password that what stands there asks for, encrypted; empty: it asks for none.
        pool: The one lease backend it stands in.
        weight: HAProxy's base weight, 1 to 256.
        weight_by_gpu: True if nobody has set the weight: it follows the GPU's model once that is known.
        cordoned: True while it must not get new jobs (drain).
        cordon_reason: Who or what wanted that.
        twin: The node that is the same ComfyUI, if it is cordoned for that; else empty.
        simulated: True for the stand-in of :mod:`comfy_fleet.sim`.
        agent: ``HOST:PORT`` that answers HAProxy's agent-check for it; None means the central agent.
        speed: Measured speed beside what its GPU's model promises, see
            :mod:`comfy_fleet.domain.nodes.speed`; None while it was not measured. It counts where
            ``weight_by_gpu`` is true: a weight that somebody has set stays what it is.
        free_idle_s: What is set for its pool, as agents are told; see
            :class:`comfy_fleet.domain.nodes.pool.Pool`.
    """

    name: str
    url: str
    pool: str = DEFAULT_POOL
    weight: int = 100
    weight_by_gpu: bool = False
    zone: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    cordoned: bool = False
    cordon_reason: str = ""
    twin: str = ""
    simulated: bool = False
    agent: str | None = None
    sealed: str = field(default="", repr=False)
    added_at: float = 0.0
    speed: float | None = field(default=None, compare=False)  # it changes with every run
    free_idle_s: float | None = None

    def __post_init__(self) -> None:
        check_name("name", self.name)
        check_name("pool", self.pool)
        if not 1 <= self.weight <= 256:
            raise BadInput(
                f"weight {self.weight} is not between 1 and 256",
                details={"field": "weight", "value": self.weight},
            )
        # Both raise on what HAProxy could not use: one such node would keep it from every change.
        _ = self.address, self.agent_address

    @property
    def pace(self) -> float | None:
        """The measured speed if the node's weight follows it; else None."""
        return self.speed if self.weight_by_gpu else None

    @property
    def share(self) -> float:
        """How much work it gets beside others while it is idle: its weight at its measured speed."""
        return self.weight * (self.pace or 1.0)

    @property
    def address(self) -> tuple[str, int]:
        """Host and port.

        Raises:
            BadInput: The URL is not ``http[s]://HOST[:PORT][/PREFIX]``.
        """
        return parse_url(self.url)

    @property
    def key(self) -> str:
        """What tells one ComfyUI from another: its host and port, and the path before it."""
        return parse_place(self.url).key

    @property
    def proxied(self) -> bool:
        """Whether something stands before it that needs its own name, its path, or a password."""
        return parse_place(self.url).proxied or bool(self.sealed)

    @property
    def agent_address(self) -> tuple[str, int] | None:
        """Host and port of its own agent; None for the central one.

        Raises:
            BadInput: It is not ``HOST:PORT``.
        """
        if self.agent is None:
            return None
        if not _AGENT.fullmatch(self.agent) or not 0 < int(self.agent.rpartition(":")[2]) < 65536:
            raise BadInput(
                f"agent {self.agent[:80]!r} must be HOST:PORT",
                details={"field": "agent", "value": self.agent},
            )
        return parse_url(f"http://{self.agent}")


@dataclass(frozen=True, kw_only=True)
class Reading:
    """What a node's ComfyUI last told of itself, apart from its inventory's content.

    Attributes:
        inventory: Content hash of its inventory; empty while it is not known.
        comfyui: Its version.
        pytorch: PyTorch's version.
        python: Python's version.
        gpu: The device's name as ComfyUI writes it.
        device: ``cuda``, ``cpu``, ``mps``, ...
        vram_bytes: The device's memory; 0 while it is not known.
        read_at: Unix seconds of the last answer; 0: never.
        changed_at: Unix seconds when the inventory became what it is.
        wanted: Somebody wants it to be read again.
        starts: How often the node was seen to come back.
        trouble: Why it could not be read the last time; empty if it could.
    """

    inventory: str = ""
    comfyui: str = ""
    pytorch: str = ""
    python: str = ""
    gpu: str = ""
    device: str = ""
    vram_bytes: int = 0
    read_at: float = 0.0
    changed_at: float = 0.0
    wanted: bool = False
    starts: int = 0
    trouble: str = ""


@dataclass(frozen=True, kw_only=True)
class Work:
    """A run that is not over yet on its node.

    Attributes:
        phase: ``claimed``, ``accepted``, or ``left``: only its outputs are still being fetched.
    """

    run: str
    job: str
    phase: str


@dataclass(frozen=True, kw_only=True)
class NodeState:
    """What the fleet knows of a node right now.

    Attributes:
        verdict: ``up``, ``drain``, ``down`` or ``new`` (not yet answered for), as HAProxy sees it.
        why: The reason in words, empty when it is up.
        run: The run that leases it.
        job: That run's job.
        done: Jobs that succeeded on it since it was added.
        failed: Jobs that failed on it since it was added.
        work: Every run that still needs it; that of the lease, and those whose outputs are being fetched.
        quarantined: True if the fleet itself cordoned it, after faults.
        reading: What its ComfyUI told of itself.
    """

    node: Node
    verdict: str = "new"
    why: str = ""
    run: str | None = None
    job: str | None = None
    done: int = 0
    failed: int = 0
    work: tuple[Work, ...] = ()
    quarantined: bool = False
    reading: Reading = field(default_factory=Reading)

    @property
    def simulated(self) -> bool:
        """Whether it is a stand-in, by its registration or by the version that it tells of itself."""
        return self.node.simulated or self.reading.comfyui.startswith("sim-")


def check_name(what: str, value: str) -> str:
    """Return ``value`` if it is safe in HAProxy's configuration, headers and paths.

    Raises:
        BadInput: Anything but lower-case letters, digits, ``_``, ``.`` and ``-``.
    """
    if not NAME.fullmatch(value):
        raise BadInput(
            f"{what} {value!r} must be 1 to 63 of a-z 0-9 _ . - and start with a letter or digit",
            details={"field": what, "value": value},
        )
    return value


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a node's URL leads.

    Attributes:
        host: Host name or address.
        port: TCP port.
        tls: Whether it is https.
        prefix: What stands before every path, such as ``/comfy``; empty for most.
        authority: Host and port as the URL writes them: what a ``Host`` header says.
    """

    host: str
    port: int
    tls: bool
    prefix: str
    authority: str

    @property
    def key(self) -> str:
        """What tells one ComfyUI from another."""
        return f"{self.host}:{self.port}{self.prefix}"

    @property
    def proxied(self) -> bool:
        """Whether a proxy answers there, which is told its own name; a plain node is not."""
        return self.tls or bool(self.prefix)


def split_credentials(url: str) -> tuple[str, str]:
    """Take user and password out of ``http[s]://USER:PASSWORD@HOST...``; neither is ever repeated.

    Returns:
        The URL without them, and ``USER:PASSWORD`` decoded; empty if it names none.

    Raises:
        BadInput: They can't be used, see :func:`check_credentials`.
    """
    found = _USERINFO.fullmatch(url)
    if found is None:
        return url, ""
    scheme, userinfo, rest = found.groups()
    if re.search(r"%(?![0-9A-Fa-f]{2})", userinfo):
        raise _unusable("hold a % that is no code such as %40: write % as %25")
    try:
        user, password = (unquote(part, errors="strict") for part in userinfo.partition(":")[::2])
    except UnicodeDecodeError:
        raise _unusable("hold a code that is not UTF-8") from None
    if ":" in user:
        raise _unusable("hold a colon in the user's name, which ends there")
    return scheme + rest, check_credentials(f"{user}:{password}")


def check_credentials(credentials: str) -> str:
    """Return ``USER:PASSWORD`` if basic authentication (RFC 7617) can carry it; the password may be empty.

    Raises:
        BadInput: It names no user, is longer than 512 characters, or holds control characters.
    """
    user, colon, _ = credentials.partition(":")
    if not user or not colon:
        raise _unusable("must be USER:PASSWORD")
    if not credentials.isprintable():
        raise _unusable("hold control characters")
    if len(credentials) > _MOST_CREDENTIALS:
        raise _unusable(f"are longer than {_MOST_CREDENTIALS} characters")
    return credentials


def with_credentials(url: str, credentials: str) -> str:
    """Return a URL that holds ``USER:PASSWORD``, as :func:`split_credentials` reads it; as it is if empty."""
    if not credentials:
        return url
    scheme, slashes, rest = url.partition("://")
    user, _, password = credentials.partition(":")
    return f"{scheme}{slashes}{quote(user, safe='')}:{quote(password, safe='')}@{rest}"


def authorization(credentials: str) -> str:
    """Return the ``Authorization`` header for ``USER:PASSWORD``."""
    return f"Basic {base64.b64encode(credentials.encode()).decode()}"


def _unusable(why: str) -> BadInput:
    return BadInput(f"url: its user and password {why}", details={"field": "url"})


@lru_cache(maxsize=4096)  # a thousand nodes are looked at twice a second
def parse_place(url: str) -> Place:
    """Split ``http[s]://HOST[:PORT][/PREFIX]``; the port is 8188 for http and 443 for https if none is named.

    Raises:
        BadInput: Another scheme, an ``@``, a query or fragment, or characters that don't belong there.
    """

    def refused(why: str) -> BadInput:
        return BadInput(
            f"url {url!r} {why}: it must look like http://HOST:PORT or https://HOST:PORT/PREFIX",
            details={"field": "url", "value": url},
        )

    if "@" in url:  # Not shown, and looked for before anything else: what is before it may be a password.
        raise BadInput(
            "url holds an @ in another place than behind a user and password: in these, write @ as %40, "
            "/ as %2F, ? as %3F, # as %23 and % as %25",
            details={"field": "url"},
        )
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise refused("is no URL") from None
    host = parts.hostname or ""
    if parts.scheme not in ("http", "https"):
        raise refused("is neither http nor https")
    # urlsplit drops newlines and tabs without a word.
    if not url.isprintable() or " " in url:
        raise refused("holds blanks or control characters")
    if "?" in url or "#" in url:
        raise refused("has a query or fragment")
    if not re.fullmatch(r"[A-Za-z0-9.-]{1,253}|[0-9a-fA-F:.]{2,45}", host):
        raise refused("names no host")
    if port == 0:  # not the same as none
        raise refused("names port 0, at which nothing listens")
    prefix = parts.path.rstrip("/")
    if not _PREFIX.fullmatch(prefix):
        raise refused("has a path of other characters than A-Z a-z 0-9 . _ ~ - and /")
    tls = parts.scheme == "https"
    if tls and (":" in host or re.fullmatch(r"[0-9.]+", host)):
        raise refused("names an address, but certificates are checked by host name")
    port = port or (443 if tls else 8188)
    shown = f"[{host}]" if ":" in host else host
    authority = shown if tls and port == 443 else f"{shown}:{port}"
    return Place(host=host, port=port, tls=tls, prefix=prefix, authority=authority)


def parse_url(url: str) -> tuple[str, int]:
    """Return host and port of a node's URL. Raises BadInput, see :func:`parse_place`."""
    place = parse_place(url)
    return place.host, place.port
