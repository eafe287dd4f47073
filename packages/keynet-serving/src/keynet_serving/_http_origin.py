"""
Who may ask a server that listens on loopback: this machine's own programs, not a page in its browser.

A page on another site can make a browser send a request here, under our address or under a name of its own that it
resolves to loopback. The browser then says where the page is from (Origin), and which name it asked (Host).
"""

from __future__ import annotations

import ipaddress
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from keynet_serving._http_response import to_json_reply

if TYPE_CHECKING:
    from keynet_serving._http_head import Head
    from keynet_serving._http_response import Reply

_MANY = 64


class OriginGuard:
    """
    Refuses requests that a page of another site had a browser send.

    Args:
        is_local: Whether the server listens on loopback only; one that others may reach stands behind something
            that knows its names.
    """

    def __init__(self, *, is_local: bool) -> None:
        self._is_local = is_local
        self._known: set[bytes] = set()

    def refuse(self, head: Head) -> Reply | None:
        """Return the refusal of a request, or None."""
        if not self._is_local:
            return None
        host, origin = head.headers.get(b"host", b""), head.headers.get(b"origin")
        if host not in self._known:
            if host and not _is_ours(b"//" + host):
                return _refusal(f"this server does not answer for the host {_shown(host)}")
            if len(self._known) < _MANY:
                self._known.add(host)
        if origin is not None and not _is_ours(origin):
            return _refusal(f"this server does not answer pages from {_shown(origin)}")
        return None


def _is_ours(address: bytes) -> bool:
    """Return whether an address names this machine's loopback."""
    try:
        name = (urlsplit(address).hostname or b"").decode("latin-1")
        return name == "localhost" or ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def _shown(value: bytes) -> str:
    return repr(value[:100].decode("latin-1"))


def _refusal(message: str) -> Reply:
    return to_json_reply({"error": message}, status=403)
