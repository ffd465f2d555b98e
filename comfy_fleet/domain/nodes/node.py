"""A node: one ComfyUI server, usually one GPU."""

import base64
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from urllib.parse import quote, unquote, urlsplit

from comfy_fleet.domain.errors import BadInput
from comfy_fleet.domain.jobs.job import DEFAULT_POOL
from comfy_fleet.domain.nodes.weights import DEFAULT, default_weight

LIVE = ("cordoned", "cordon_reason", "twin", "speed", "free_idle_s")
"""Facts about a node that are not part of its registration, because they change while the fleet runs."""

AGENT_DRAINS = "its agent says drain"
"""HAProxy's reason for giving a node no lease when it knows no other; the agent's own reason says more."""

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
        sealed: The user and password that the server there asks for, encrypted; empty if it needs none.
        pool: The one pool it is in, which is a backend of the broker.
        weight: HAProxy's base weight, 1 to 256.
        weight_by_gpu: True if nobody has set the weight. It then follows the GPU's model, once that is known.
        cordoned: True while it must not get new jobs (drain).
        cordon_reason: Who or what cordoned it.
        twin: If it is cordoned as a duplicate, the node that is the same ComfyUI; else empty.
        simulated: True for a simulated node of :mod:`comfy_fleet.sim`.
        agent: ``HOST:PORT`` that answers HAProxy's agent-check for it; None means the central agent.
        speed: Measured speed relative to what its GPU's model promises, see
            :mod:`comfy_fleet.domain.nodes.speed`; None until it has been measured. It is used only if
            ``weight_by_gpu`` is true: a weight that somebody has set stays.
        free_idle_s: Its pool's setting, for agents; see :class:`comfy_fleet.domain.nodes.pool.Pool`.
        editor: Whether it serves ComfyUI's editor to people: True: before nodes of which nobody has said
            so, False: never, None: if no other does.
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
    editor: bool | None = None

    def __post_init__(self) -> None:
        check_name("name", self.name)
        check_name("pool", self.pool)
        if not 1 <= self.weight <= 256:
            raise BadInput(
                f"weight {self.weight} is not between 1 and 256",
                details={"field": "weight", "value": self.weight},
            )
        # Both raise on values that HAProxy can't use: one such node would block all changes to HAProxy.
        _ = self.address, self.agent_address

    @property
    def pace(self) -> float | None:
        """The measured speed if the node's weight follows it; else None."""
        return self.speed if self.weight_by_gpu else None

    @property
    def share(self) -> float:
        """Its share of the work while it is idle: its weight times its measured speed."""
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
        """What identifies one ComfyUI: its host and port, and its path prefix."""
        return parse_place(self.url).key

    @property
    def proxied(self) -> bool:
        """Whether it is behind a proxy that needs its own host name, a path, or a password."""
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
    """What a node's ComfyUI last reported, except the content of its inventory.

    Attributes:
        inventory: Content hash of its inventory; empty while it is not known.
        object_info: Content hash of the whole answer that it was read from; empty if it is not kept.
        comfyui: Its version.
        pytorch: PyTorch's version.
        python: Python's version.
        gpu: The device's name as ComfyUI writes it.
        device: ``cuda``, ``cpu``, ``mps``, ...
        vram_bytes: The device's memory; 0 while it is not known.
        ram_bytes: The machine's main memory; 0 while it is not known.
        read_at: Unix seconds of the last answer; 0: never.
        changed_at: Unix seconds when the inventory became what it is.
        wanted: Whether somebody wants it to be read again.
        starts: How often the node was seen to come back.
        trouble: Why the last reading failed; empty if it did not.
    """

    inventory: str = ""
    object_info: str = ""
    comfyui: str = ""
    pytorch: str = ""
    python: str = ""
    gpu: str = ""
    device: str = ""
    vram_bytes: int = 0
    ram_bytes: int = 0
    read_at: float = 0.0
    changed_at: float = 0.0
    wanted: bool = False
    starts: int = 0
    trouble: str = ""


@dataclass(frozen=True, kw_only=True)
class Work:
    """A run that is not over on its node.

    Attributes:
        phase: ``claimed``, ``accepted``, or ``left`` (only its outputs are still being fetched).
    """

    run: str
    job: str
    phase: str


@dataclass(frozen=True, kw_only=True)
class NodeState:
    """What the fleet knows of a node right now.

    Attributes:
        verdict: ``up``, ``drain``, ``down`` or ``new`` (no agent has answered for it yet), as HAProxy sees
            it.
        why: The reason in words, empty when it is up.
        run: The run that leases it.
        job: That run's job.
        done: Jobs that succeeded on it since it was added.
        failed: Jobs that failed on it since it was added.
        work: Every run that still needs it: the one with the lease, and those whose outputs are being
            fetched.
        quarantined: True if the fleet itself cordoned it, after faults.
        reading: What its ComfyUI last reported.
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
        """Whether it is simulated, by its registration or by the version that it reports."""
        return self.node.simulated or self.reading.comfyui.startswith("sim-")

    @property
    def state(self) -> str:
        """Its verdict, unless an operator or the fleet has taken it out: ``drained`` or ``quarantined``."""
        if self.quarantined:
            return "quarantined"
        return "drained" if self.node.cordoned else self.verdict

    @property
    def speed(self) -> float:
        """How fast it computes: what its GPU's model promises times what was measured.

        1.0 is an RTX 4090, and a node of which nothing is known. A weight that somebody has set does not
        count: it says how much work the node should get, see :attr:`Node.share`.
        """
        promised = default_weight(self.reading.gpu, self.reading.device) / DEFAULT
        return promised * (self.node.speed or 1.0)


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
        prefix: The prefix of every path, such as ``/comfy``; usually empty.
        authority: Host and port as in the URL, for a ``Host`` header.
    """

    host: str
    port: int
    tls: bool
    prefix: str
    authority: str

    @property
    def key(self) -> str:
        """What identifies one ComfyUI."""
        return f"{self.host}:{self.port}{self.prefix}"

    @property
    def proxied(self) -> bool:
        """Whether a proxy answers there. A proxy gets its own name as ``Host``, a plain node does not."""
        return self.tls or bool(self.prefix)


def split_credentials(url: str) -> tuple[str, str]:
    """Take user and password out of ``http[s]://USER:PASSWORD@HOST...``; no error repeats them.

    Returns:
        The URL without them, and ``USER:PASSWORD`` decoded; empty if the URL has none.

    Raises:
        BadInput: They can't be used, see :func:`check_credentials`.
    """
    found = _USERINFO.fullmatch(url)
    if found is None:
        return url, ""
    scheme, userinfo, rest = found.groups()
    if re.search(r"%(?![0-9A-Fa-f]{2})", userinfo):
        raise _unusable("contain a % that is not a code such as %40: write % as %25")
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
        BadInput: It has no user, is longer than 512 characters, or contains control characters.
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
    """Return the URL with ``USER:PASSWORD`` in it, as :func:`split_credentials` reads it; unchanged if
    empty."""
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


@lru_cache(maxsize=4096)  # called twice a second for up to a thousand nodes
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

    if "@" in url:  # Checked first, and the URL is not shown: the text before the @ may be a password.
        raise BadInput(
            "url has an @ that does not follow a user and password: inside these, write @ as %40, "
            "/ as %2F, ? as %3F, # as %23 and % as %25",
            details={"field": "url"},
        )
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise refused("is not a URL") from None
    host = parts.hostname or ""
    if parts.scheme not in ("http", "https"):
        raise refused("is neither http nor https")
    # urlsplit drops newlines and tabs silently.
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
