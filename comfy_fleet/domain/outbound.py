"""URLs that clients name: which of them the fleet may call.

A URL of a client's could lead to what only the fleet's machine reaches: Redis, a node, a cloud's metadata.
So a guarded call goes to public addresses only, and to what an operator allows. Everything here is pure;
names are looked up and called by :mod:`comfy_fleet.adapters.outbound.guarded_calls`.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from ipaddress import (
    IPv4Address,
    IPv4Network,
    IPv6Address,
    IPv6Network,
    ip_network,
)
from urllib.parse import quote, urljoin, urlsplit

from comfy_fleet.domain.errors import ConfigError, OutboundRefused

MAX_URL = 4096
"""Longest URL; signed ones of object stores have about 2,000 characters."""
_PORTS = {"http": 80, "https": 443}
_UNPRIVILEGED = 1024
_IN_PATHS = "/%:@!$&'()*+,;=~-._"

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

_NAME = re.compile(
    r"(?=.{1,253}\Z)[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?(?:\.[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?)*"
)
_NUMBER = re.compile(r"(?:.*\.)?(?:[0-9]+|0x[0-9a-f]*)")
"""A name that ends like this is read as an address by some, such as ``127.1`` and ``0x7f000001``."""

# Not from ``ipaddress``: what it says of an address changed between patch releases of Python.
_NOT_PUBLIC_4 = tuple(
    IPv4Network(text)
    for text in (
        *("0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12"),
        *("192.0.0.0/24", "192.0.2.0/24", "192.88.99.0/24", "192.168.0.0/16", "198.18.0.0/15"),
        *("198.51.100.0/24", "203.0.113.0/24", "224.0.0.0/3"),
        "168.63.129.16/32",  # answers inside one cloud only, though its number is a public one
    )
)
_PUBLIC_6 = IPv6Network("2000::/3")
_NOT_PUBLIC_6 = tuple(
    IPv6Network(text)
    for text in (
        "2001::/23",  # special purposes, Teredo among them
        "2001:db8::/32",
        "2002::/16",  # 6to4
        "3fff::/20",
    )
)
_HOLDING_4 = (IPv6Network("::ffff:0:0/96"), IPv6Network("64:ff9b::/96"))
"""Mapped addresses, and NAT64's: they lead where the IPv4 address in their last 32 bits leads."""


@dataclass(frozen=True, kw_only=True)
class OutboundTarget:
    """A URL of a client's, taken apart once, so that all who handle it mean the same.

    Attributes:
        url: The whole, in ASCII, without its fragment.
        scheme: ``http`` or ``https``.
        host: Its name in lower case without a final dot, or the address.
        port: TCP port.
        address: The host, if it is an address.
    """

    url: str
    scheme: str
    host: str
    port: int
    address: Address | None

    @property
    def shown(self) -> str:
        """The URL without its query, which may be a credential, for messages and logs."""
        plain, question, _ = self.url.partition("?")
        return f"{plain}{question and '?…'}"

    def redirected(self, location: str) -> "OutboundTarget":
        """Return where a redirect leads. Raises OutboundRefused, also from https to http."""
        try:
            joined = urljoin(self.url, location)
        except ValueError:
            raise OutboundRefused(f"{self.shown} redirects to something that is not a URL") from None
        try:
            target = parse_target(joined)
        except OutboundRefused as error:
            raise OutboundRefused(f"{self.shown} redirects, and {error}") from None
        if self.scheme == "https" and target.scheme != "https":
            raise OutboundRefused(f"{self.shown} redirects from https to http")
        return target


def parse_target(url: str) -> OutboundTarget:
    """Take a URL apart.

    Raises:
        OutboundRefused: It is no ``http[s]://HOST[:PORT][/PATH][?QUERY]``. The message says why, and does not
            repeat the URL.
    """
    if len(url) > MAX_URL:
        raise OutboundRefused(f"the URL is longer than {MAX_URL} characters")
    # urlsplit drops some of these silently, and programs differ in what they make of a backslash.
    if not url.isprintable() or " " in url or "\\" in url:
        raise OutboundRefused(
            "the URL has blanks, control characters or backslashes: write them as %20 and so on"
        )
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise OutboundRefused("this is not a URL") from None
    if parts.scheme not in _PORTS:
        raise OutboundRefused("the URL is neither http:// nor https://")
    if "@" in parts.netloc:
        raise OutboundRefused(
            "the URL has a user or password, which would be kept with the job: leave it out"
        )
    if port == 0:
        raise OutboundRefused("the URL names port 0, at which nothing listens")
    host, address = _host(parts.hostname or "", bracketed="[" in parts.netloc)
    shown = f"[{host}]" if address is not None and address.version == 6 else host
    port = port or _PORTS[parts.scheme]
    authority = shown if port == _PORTS[parts.scheme] else f"{shown}:{port}"
    path = quote(parts.path, safe=_IN_PATHS) or "/"
    query = f"?{quote(parts.query, safe=_IN_PATHS + '?')}" if parts.query else ""
    return OutboundTarget(
        url=f"{parts.scheme}://{authority}{path}{query}",
        scheme=parts.scheme,
        host=host,
        port=port,
        address=address,
    )


def _host(text: str, *, bracketed: bool) -> tuple[str, Address | None]:
    if bracketed:
        try:
            address = IPv6Address(text)
        except ValueError:
            raise OutboundRefused("the URL names no host that is valid") from None
        if address.scope_id:
            raise OutboundRefused("the URL names a network interface")
        return str(address), address
    try:
        name = text.encode("idna").decode("ascii").lower()
    except UnicodeError:
        raise OutboundRefused("the URL names no host that is valid") from None
    name = name.removesuffix(".")
    if not _NAME.fullmatch(name):
        raise OutboundRefused("the URL names no host that is valid")
    if not _NUMBER.fullmatch(name):
        return name, None
    try:
        four = IPv4Address(name)
    except ValueError:
        raise OutboundRefused(
            "the URL names an address that is not written as four decimal numbers"
        ) from None
    return str(four), four


def is_public(address: Address) -> bool:
    """Return whether an address is one of the public internet's.

    Not loopback, private, link-local, shared (CGNAT), multicast, reserved or for documentation; and no IPv6
    form of such an IPv4 address. 6to4 and Teredo never are.
    """
    address = _plain(address)
    if isinstance(address, IPv4Address):
        return not any(address in network for network in _NOT_PUBLIC_4)
    return address in _PUBLIC_6 and not any(address in network for network in _NOT_PUBLIC_6)


def _plain(address: Address) -> Address:
    if isinstance(address, IPv6Address) and any(address in network for network in _HOLDING_4):
        return IPv4Address(int(address) & 0xFFFFFFFF)
    return address


@dataclass(frozen=True)
class AllowedHosts:
    """Hosts and networks that an operator allows besides the public internet.

    Attributes:
        hosts: Names, such as ``images.shop.test``; ``*.shop.test`` for all below one. Each with a port, or
            None for every port.
        networks: Networks, likewise.
        setting: What lists them; empty if no setting does.
    """

    hosts: tuple[tuple[str, int | None], ...] = ()
    networks: tuple[tuple[Network, int | None], ...] = ()
    setting: str = field(default="", compare=False)

    def names(self, host: str, port: int) -> bool:
        """Return whether a host is allowed by its name, so that it may be at any address."""
        for name, only in self.hosts:
            meant = host.endswith(name[1:]) if name.startswith("*") else host == name
            if meant and only in (None, port):
                return True
        return False

    def holds(self, address: Address, port: int) -> bool:
        """Return whether an address is in an allowed network."""
        plain = _plain(address)
        return any(
            plain.version == network.version and plain in network and only in (None, port)
            for network, only in self.networks
        )


def parse_allowed(setting: str, text: str) -> AllowedHosts:
    """Read an operator's list, such as ``images.shop.test,*.lan:8443,10.1.0.0/16,[fd00::1]:80``.

    Args:
        setting: The setting's name, for the message.
        text: Entries separated by commas.

    Raises:
        ConfigError: One is no host, address or network.
    """
    hosts: list[tuple[str, int | None]] = []
    networks: list[tuple[Network, int | None]] = []
    for entry in filter(None, map(str.strip, text.lower().split(","))):
        found = re.fullmatch(r"\[([^\]]+)\](?::([0-9]{1,5}))?|([^:]+)(?::([0-9]{1,5}))?", entry)
        place, number = entry, None
        if found is not None:
            place = found[1] or found[3]
            number = found[2] or found[4]
        port = int(number) if number else None
        if port is None or 0 < port < 65536:
            try:
                networks.append((ip_network(place), port))
                continue
            except ValueError:
                pass
            if _NAME.fullmatch(place.removeprefix("*.")) and not _NUMBER.fullmatch(place):
                hosts.append((place, port))
                continue
        raise ConfigError(
            f"{setting}: {entry!r} is no host, address or network: write, for example, images.shop.test, "
            "*.shop.test, 10.1.0.0/16 or [fd00::1], each with :PORT if it is about one port"
        )
    return AllowedHosts(tuple(hosts), tuple(networks), setting)


def checked_addresses(
    target: OutboundTarget, addresses: Iterable[Address], allowed: AllowedHosts
) -> tuple[Address, ...]:
    """Return the addresses that a call may connect to, of all those of the target's host.

    One that may not be called spoils the others: a name with public and private addresses is a trick.

    Raises:
        OutboundRefused: The message names no address: clients need not know what a name means here.
    """
    found = tuple(addresses)
    if allowed.names(target.host, target.port):
        return found
    for address in found:
        if allowed.holds(address, target.port):
            continue
        if not is_public(address):
            raise OutboundRefused(
                f"{target.shown} leads to an address that is not public, and the operator has not allowed it"
                + (f" ({allowed.setting})" if allowed.setting else "")
            )
        if target.port < _UNPRIVILEGED and target.port not in _PORTS.values():
            raise OutboundRefused(
                f"{target.shown} names port {target.port}: only 80, 443 and those from 1024 may be called"
            )
    return found
