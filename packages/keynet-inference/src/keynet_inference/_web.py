"""http and https URLs, read strictly, and the hosts that a configuration allows."""

from __future__ import annotations

import re
from dataclasses import dataclass
from ipaddress import ip_address
from urllib.parse import quote, urlsplit

from keynet_core import SettingsInvalid
from keynet_inference._errors import SourceRefused

MAX_URL_CHARS = 8192

_PORTS = {"http": 80, "https": 443}
_HOST = re.compile(r"[a-z0-9._:-]{1,253}", re.ASCII)
_AUTHORITY = re.compile(r"(?:\[[0-9a-f:.]+\]|[a-z0-9._-]+)(?::[0-9]*)?", re.ASCII)
"""One host alone: the standard library reads `::1` in `other[::1]`."""

_WEB_HOST = re.compile(r"(https?)://(\*|(?:\*\.)?[a-z0-9._-]+|\[[0-9a-f:.]+\])(?::([0-9]{1,5}))?/?", re.ASCII)
_TARGET_SAFE = "%/:?#[]@!$&'()*+,;=~"


@dataclass(frozen=True, slots=True, kw_only=True)
class WebUrl:
    """An http or https URL; `authority` is its host and port as it was written, `target` its path and query."""

    scheme: str
    host: str
    port: int
    authority: str
    target: str

    @classmethod
    def read(cls, text: str) -> WebUrl:
        """
        Read a URL.

        Raises:
            SourceRefused: It is too long, carries a user or a password, or can be read in more than one way.

        """
        if len(text) > MAX_URL_CHARS:
            raise SourceRefused(f"a URL of {len(text)} characters is not read; at most {MAX_URL_CHARS}")
        if not text.isprintable() or " " in text or "\\" in text:
            raise SourceRefused(f"{shown(text)!r} holds characters that no URL has", hint="percent-encode them")
        try:
            parts = urlsplit(text)
            scheme, host, port = parts.scheme, (parts.hostname or "").rstrip("."), parts.port
        except ValueError:
            # What it says may quote a password.
            raise SourceRefused(f"{shown(text)!r} cannot be read") from None
        if "@" in parts.netloc:
            raise SourceRefused(f"the URL of {host} carries a user or a password", hint="hand over a presigned URL")
        is_host = _HOST.fullmatch(host) and _AUTHORITY.fullmatch(parts.netloc.lower())
        if scheme not in _PORTS or not is_host or port == 0:
            raise SourceRefused(f"{shown(text)!r} names no host")
        path = quote(parts.path or "/", safe=_TARGET_SAFE)
        query = f"?{quote(parts.query, safe=_TARGET_SAFE)}" if parts.query else ""
        return cls(
            scheme=scheme, host=host, port=port or _PORTS[scheme], authority=parts.netloc.lower(), target=path + query
        )

    @property
    def path(self) -> str:
        """The path, percent-encoded."""
        return self.target.partition("?")[0]

    @property
    def query(self) -> str:
        """The query, percent-encoded."""
        return self.target.partition("?")[2]

    def __str__(self) -> str:
        return f"{self.scheme}://{self.authority}{self.path}"


@dataclass(frozen=True, slots=True, kw_only=True)
class WebHost:
    """Hosts that may be read from: one, those below `*.example.com`, or `*` for all that are public."""

    scheme: str
    host: str
    port: int

    @classmethod
    def read(cls, text: str) -> WebHost:
        """
        Read `https://images.example.com`, `https://*.example.com:8443`, `https://*` or `http://10.0.0.5:9000`.

        Raises:
            SettingsInvalid: It is no such thing, or has a path.

        """
        found = _WEB_HOST.fullmatch(text.lower())
        port = int(found[3]) if found and found[3] else None
        if found is None or port == 0 or (port or 0) > 65535:
            raise SettingsInvalid(
                f"{text!r:.200} cannot be made readable: only whole hosts can",
                hint="write https://images.example.com, https://*.example.com:8443, https://* or http://10.0.0.5:9000",
            )
        return cls(scheme=found[1], host=found[2].strip("[]"), port=port or _PORTS[found[1]])

    def covers(self, url: WebUrl) -> bool:
        """Whether a URL leads there."""
        if (url.scheme, url.port) != (self.scheme, self.port):
            return False
        return self.host in {"*", url.host} or (self.host.startswith("*.") and url.host.endswith(self.host[1:]))

    def names(self, url: WebUrl) -> bool:
        """Whether it is the very host of a URL that it covers, and no star."""
        return self.host == url.host

    @property
    def is_address(self) -> bool:
        """Whether it names a network address, which is then allowed wherever it is: nothing resolves to another."""
        try:
            ip_address(self.host)
        except ValueError:
            return False
        return True


def shown(text: str) -> str:
    """
    Return a URL that is refused as it may be repeated in a sentence, and not long.

    What may be a password goes, up to the last `@`, as does its query, which may be a signature.
    """
    return f"{re.sub('//.*@', '//', text, flags=re.DOTALL).partition('?')[0]:.200}"
