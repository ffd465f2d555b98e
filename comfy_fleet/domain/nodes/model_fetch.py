"""Model files that agents fetch because an operator wants them: the order, and what each host says of it."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from urllib.parse import unquote, urlsplit

from comfy_fleet.domain.errors import BadInput
from comfy_fleet.domain.nodes.model_lists import UNLISTED

SAFE = (".safetensors", ".sft", ".gguf")
"""Ends of names of files that hold nothing but numbers and texts."""
PICKLES = (".ckpt", ".pt", ".pth", ".bin")
"""Ends of names of files that can run code where they are loaded."""
MOST_PARTS = 5
"""Most folders in a name, with the file."""
LONGEST_WORDS = 500
MODELS_FACT = "models"
"""In an agent's facts about a node: whether it sees the node's folder of models."""
HEAD_START_S = 5.0
"""How long the others leave it to one host to begin: it gives them the file, which comes from afar once."""

_SHA256 = re.compile(r"[0-9a-f]{64}")
_FOLDER = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


class FetchState(StrEnum):
    """What a host makes of an order."""

    WAITING = "waiting"
    FETCHING = "fetching"
    DONE = "done"
    FAILED = "failed"
    CANCELED = "canceled"


ENDS = frozenset({FetchState.DONE, FetchState.FAILED, FetchState.CANCELED})


def check_id(value: str) -> str:
    """Return an order's id. Raises BadInput."""
    if not _UUID.fullmatch(value):
        raise BadInput(f"{value[:80]!r} is not the id of a fetch", details={"field": "id"})
    return value


def check_sha256(value: str) -> str:
    """Return a hash in lower case. Raises BadInput."""
    if not _SHA256.fullmatch(value := value.strip().lower()):
        raise BadInput("sha256 must be 64 hexadecimal digits", details={"field": "sha256"})
    return value


def check_folder(value: str) -> str:
    """Return a folder below ``models``, if models may be put there.

    Raises:
        BadInput: It is a path, or a folder of programs.
    """
    if not _FOLDER.fullmatch(value) or value in UNLISTED:
        raise BadInput(
            f"folder {value[:80]!r} must be the name of a folder of models, such as loras",
            details={"field": "folder"},
        )
    return value


def check_file_name(value: str, *, pickles: bool) -> str:
    """Return a model file's name, with ``/`` between its folders.

    Args:
        value: The name.
        pickles: Whether it may be of a kind that can run code.

    Raises:
        BadInput: It leads elsewhere, or is not a model file's.
    """
    parts = value.split("/")
    odd = "\\" in value or ":" in value or not value.isprintable() or len(parts) > MOST_PARTS
    if odd or not all(map(_is_part, parts)):
        raise BadInput(
            f"name {value[:80]!r} must be a file's name, or one below folders that do not begin with a dot",
            details={"field": "name"},
        )
    if value.lower().endswith(PICKLES) and not pickles:
        raise BadInput(
            f"name {value[-80:]!r}: such a file can run code on every node that loads it; if you trust it, "
            "allow pickles",
            details={"field": "allow_pickle"},
        )
    if not value.lower().endswith((*SAFE, *PICKLES)):
        raise BadInput(
            f"name {value[-80:]!r} must end like a model file's: {', '.join((*SAFE, *PICKLES))}",
            details={"field": "name"},
        )
    return value


def name_in(url: str) -> str:
    """Return the file's name that a URL ends with; empty if there is none."""
    return unquote(urlsplit(url).path.rpartition("/")[2])


def _is_part(part: str) -> bool:
    return bool(part) and part == part.strip() and part[0] != "." and len(part.encode()) <= 200


@dataclass(frozen=True, kw_only=True)
class ModelOrder:
    """What an agent is told to do.

    Attributes:
        id: A UUID.
        url: Where the file is.
        folder: Below ``models``.
        name: With ``/`` between its folders.
        sha256: Its hash.
        pickles: Whether it may be of a kind that can run code.
        nodes: The host's nodes that shall have it.
        canceled: Whether it is not wanted any more.
        wait: Whether another host fetches it just now, and this one had better wait.
        serve: Whether this host has it, and may give it to the others.
        neighbours: ``HOST:PORT`` of agents that give it to who shows the ticket.
        ticket: That ticket.
    """

    id: str
    url: str = field(repr=False)
    folder: str
    name: str
    sha256: str
    pickles: bool = False
    nodes: tuple[str, ...] = ()
    canceled: bool = False
    wait: bool = False
    serve: bool = False
    neighbours: tuple[str, ...] = ()
    ticket: str = field(default="", repr=False)

    def checked(self) -> "ModelOrder":
        """Return this, if nothing in it leads anywhere but to a model file. Raises BadInput."""
        check_id(self.id)
        check_folder(self.folder)
        check_sha256(self.sha256)
        check_file_name(self.name, pickles=self.pickles)
        return self


@dataclass(frozen=True, kw_only=True)
class HostFetch:
    """How far a host is.

    Attributes:
        state: In a word.
        words: Why, or where from.
        bytes: How many are there.
        total: How many there will be; None: not known yet.
        at: When its agent said so, in Unix seconds.
    """

    state: FetchState = FetchState.WAITING
    words: str = ""
    bytes: int = 0
    total: int | None = None
    at: float = 0.0


@dataclass(frozen=True, kw_only=True)
class ModelFetch:
    """An operator's order for some hosts, with what these say.

    Attributes:
        id: A UUID.
        url: Where the file is; without its query once all hosts are through.
        folder: Below ``models``.
        name: With ``/`` between its folders.
        sha256: Its hash.
        hosts: The nodes that shall have it, by host.
        pickles: Whether it may be of a kind that can run code.
        pool: The pool whose nodes they are; empty: all.
        by: Who wants it.
        created_at: Unix seconds.
        ticket: What hosts show each other.
        canceled: Whether it is not wanted any more.
        told: What hosts have said.
        serving: ``HOST:PORT`` of agents that can give it to others, by host.
    """

    id: str
    url: str = field(repr=False)
    folder: str
    name: str
    sha256: str
    hosts: Mapping[str, tuple[str, ...]]
    pickles: bool = False
    pool: str = ""
    by: str = ""
    created_at: float = 0.0
    ticket: str = field(default="", repr=False)
    canceled: bool = False
    told: Mapping[str, HostFetch] = field(default_factory=dict)
    serving: Mapping[str, str] = field(default_factory=dict)

    def of(self, host: str) -> HostFetch:
        """Return how far a host is."""
        return self.told.get(host, HostFetch())

    @property
    def state(self) -> FetchState:
        """Return the whole's state: how it ended once all hosts are through."""
        states = {self.of(host).state for host in self.hosts}
        if not states <= ENDS:
            return FetchState.FETCHING if FetchState.FETCHING in states else FetchState.WAITING
        for end in (FetchState.FAILED, FetchState.CANCELED):
            if end in states:
                return end
        return FetchState.DONE

    @property
    def open(self) -> bool:
        """Return whether a host is not through."""
        return self.state not in ENDS

    def order(self, host: str, *, now: float, fresh_s: float, local: bool) -> ModelOrder | None:
        """Return what a host's agent is to do; None: nothing.

        Args:
            host: The host.
            now: Unix seconds.
            fresh_s: For how long a host that fetches may be silent before others begin, too.
            local: Whether its agent is on the fleet's machine, so that it reaches others there by loopback.
        """
        if host not in self.hosts:
            return None
        mine = self.of(host).state
        if mine in ENDS and mine is not FetchState.DONE:
            return None
        having = [
            self.serving[one]
            for one in sorted(self.serving)
            if one != host
            and self.of(one).state is FetchState.DONE
            and (local or not _here(self.serving[one]))
        ]
        begun = [
            one
            for one in sorted(self.hosts)
            if self.of(one).state is FetchState.FETCHING
            and now - self.of(one).at <= fresh_s
            and one in self.serving
            and (local or not _here(self.serving[one]))
        ]
        first = min(one for one in self.hosts if self.of(one).state not in ENDS) if self.open else host
        early = host != first and now - self.created_at < HEAD_START_S
        return ModelOrder(
            id=self.id,
            url=self.url,
            folder=self.folder,
            name=self.name,
            sha256=self.sha256,
            pickles=self.pickles,
            nodes=self.hosts[host],
            canceled=self.canceled and mine is not FetchState.DONE,
            wait=mine is FetchState.WAITING and not having and (bool(begun) or early),
            serve=mine is FetchState.DONE,
            neighbours=tuple(having),
            ticket=self.ticket,
        )


def _here(address: str) -> bool:
    return address.startswith(("127.", "localhost:", "[::1]"))
