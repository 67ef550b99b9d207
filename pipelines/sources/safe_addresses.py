"""Which addresses may be connected to: a URL from a table must not reach what only this machine can reach.

The check sits where the socket is made, so it sees the very address that is connected to: after the name was resolved
(a name that resolves to another address the second time gains nothing), after every redirect, for literals too.
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Callable, Sequence
from typing import Any

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network
_UNICAST = ipaddress.IPv6Network("2000::/3")
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
_METADATA = frozenset({ipaddress.ip_address("168.63.129.16")})  # Azure's, in public space; all others are link-local


class PrivateAddressError(OSError):
    """A connection to an address that is not public was refused."""


def parse_networks(allow_private: bool | Sequence[str]) -> tuple[Network, ...] | None:
    """Return the networks that are allowed besides public ones; None: all addresses are.

    Raises:
        ValueError: one of them is no network in CIDR notation.
    """
    if isinstance(allow_private, bool):
        return None if allow_private else ()
    return tuple(ipaddress.ip_network(text) for text in allow_private)


def is_public(text: str) -> bool:
    """Say whether an address, as text, is one of the public internet; an IPv4 address inside an IPv6 one counts."""
    address = ipaddress.ip_address(text.partition("%")[0])
    inner = _inner(address)
    if inner is not None:
        return is_public(str(inner))
    if isinstance(address, ipaddress.IPv6Address) and address not in _UNICAST:
        return False
    return address.is_global and not address.is_multicast and not address.is_reserved and address not in _METADATA


def socket_maker(networks: tuple[Network, ...] | None) -> Callable[[tuple[Any, ...]], socket.socket]:
    """Return what makes sockets for public addresses and those in `networks` (None: for all), for aiohttp's connector.

    What it returns raises PrivateAddressError for every other address.
    """

    def make(where: tuple[Any, ...]) -> socket.socket:
        family, kind, protocol, _, place = where
        if networks is not None and not is_public(place[0]) and not _is_in(place[0], networks):
            raise PrivateAddressError("not a public address")
        return socket.socket(family=family, type=kind, proto=protocol)

    return make


def _is_in(text: str, networks: Sequence[Network]) -> bool:
    address = ipaddress.ip_address(text.partition("%")[0])
    inner = _inner(address)
    return any(address in network or (inner is not None and inner in network) for network in networks)


def _inner(address: Address) -> ipaddress.IPv4Address | None:
    """Return the IPv4 address that an IPv6 one leads to: mapped, NAT64, 6to4, Teredo."""
    if isinstance(address, ipaddress.IPv4Address):
        return None
    if address in _NAT64:
        return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    return address.ipv4_mapped or address.sixtofour or (address.teredo[1] if address.teredo else None)
