"""Which network addresses may be connected to: what a name resolved to is judged, and then used as it was judged."""

from __future__ import annotations

import ipaddress
import socket
from typing import TYPE_CHECKING, Any, NamedTuple

from keynet_core import StoreUnavailable
from keynet_inference._errors import SourceRefused

if TYPE_CHECKING:
    from collections.abc import Callable

    Address = ipaddress.IPv4Address | ipaddress.IPv6Address
    Lookup = Callable[..., list[tuple[Any, ...]]]

_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
_PUBLIC_BUT_INSIDE = {ipaddress.IPv4Address("168.63.129.16")}
"""Azure's own agent answers every machine there at this address."""


class Peer(NamedTuple):
    """Where a socket connects to."""

    family: int
    address: tuple[Any, ...]


def resolve(host: str, port: int, *, may_be_private: bool, lookup: Lookup = socket.getaddrinfo) -> list[Peer]:
    """
    Return where a host is, looked up once: whoever connects uses this answer, not the name.

    Raises:
        SourceRefused: One of its addresses is not public, and it may not be private.
        StoreUnavailable: It has none.

    """
    try:
        found = lookup(host, port, type=socket.SOCK_STREAM)
    except OSError as error:
        raise StoreUnavailable(f"no address is known for {host}: {error.strerror or error}") from error
    except UnicodeError as error:
        raise SourceRefused(f"{host!r:.200} is no name of a host: {error}") from error
    peers = [Peer(each[0], each[4]) for each in found]
    inside = [peer.address[0] for peer in peers if not is_public(peer.address[0])]
    if inside and not may_be_private:
        raise SourceRefused(
            f"{host} is {inside[0]}, which is no public address",
            hint="hand over what Storage.put returned; an address inside is named as itself: readable=['http://10.0.0.5']",
        )
    return peers


def is_public(text: str) -> bool:
    """Whether an address belongs to the internet: not to this machine, a private network or a cloud's own services."""
    address = ipaddress.ip_address(text.partition("%")[0])
    inner = _carried(address)
    if inner is not None:
        return is_public(str(inner))
    if address in _PUBLIC_BUT_INSIDE or address.is_multicast or address.is_reserved:
        return False
    return address.is_global and not (address.version == 6 and address.is_site_local)


def _carried(address: Address) -> Address | None:
    """Return the IPv4 address that an IPv6 address leads to, where it is a form of one."""
    if address.version == 4:
        return None
    if address in _NAT64:
        return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    teredo = address.teredo
    return address.ipv4_mapped or address.sixtofour or (teredo[1] if teredo else None)
