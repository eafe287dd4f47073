"""What a function may read by the text it was handed: a short list, and everything else is refused."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import quote, unquote, urlsplit

from keynet_core import LocalStore, StoreError, open_store, to_key
from keynet_inference._errors import SourceRefused

if TYPE_CHECKING:
    from collections.abc import Iterable

    from keynet_core import ObjectStore
    from keynet_inference._download import Target
    from keynet_inference._s3_urls import S3Endpoint
    from keynet_inference._settings import S3Address
    from keynet_inference._web import WebHost, WebUrl

_WEB = {"http", "https"}
_MORE = "or make it readable: Storage(readable=[...]), KEYNET_STORAGE_READABLE"


class Place(NamedTuple):
    """An object that is read with this process's own rights."""

    store: ObjectStore
    key: str


class Sources:
    """
    The places that may be read: a store, and what was made readable beside it.

    Args:
        store: The store whose keys need no URL.
        readable: Directories, prefixes such as `s3://uploads/images`, and hosts such as `https://images.example.com`.
        s3: Where S3 answers.

    Raises:
        SettingsInvalid: One of `readable` is a URL of the web, and more than a host.
        StoreUnsupported: One of `readable` has a scheme for which no engine is known.

    """

    def __init__(self, store: ObjectStore, readable: Iterable[str | Path], s3: S3Address) -> None:
        given = [str(each) for each in readable]
        self._hosts = _read_hosts([each for each in given if _scheme_of(each) in _WEB])
        self._stores = (store, *(open_store(each) for each in given if _scheme_of(each) not in _WEB))
        self._s3 = s3

    def find(self, text: object) -> Place | Target:
        """
        Return what a text names.

        Raises:
            SourceRefused: It names nothing that may be read.
            StoreError: It is a key that cannot be.

        """
        if isinstance(text, str) and _scheme_of(text) in _WEB:
            return self.admit(text)
        return find_object(text, self._stores)

    def admit(self, text: str) -> Target:
        """
        Return a URL of the web that may be fetched: of a host that was made readable, or signed by the store.

        Raises:
            SourceRefused: It is another, or cannot be read.

        """
        from keynet_inference._download import Target, Trust
        from keynet_inference._s3_urls import S3Endpoint
        from keynet_inference._web import WebUrl

        url, endpoint = WebUrl.read(text), S3Endpoint.read(self._s3.url)
        hosts = [each for each in self._hosts if each.covers(url)]
        refusal = self._refusal_of(url, endpoint)
        if refusal is not None and not hosts:
            raise refusal
        is_the_stores = endpoint.covers(url)
        # A star stands for what is public: also of the store, only what is signed is read at an address inside.
        may_be_private = refusal is None or any(
            each.is_address or (is_the_stores and each.names(url)) for each in hosts
        )
        trust = Trust(self._s3.checks_certificate, self._s3.authorities) if is_the_stores else Trust()
        return Target(url, may_be_private=may_be_private, trust=trust)

    def _refusal_of(self, url: WebUrl, endpoint: S3Endpoint) -> SourceRefused | None:
        """Return why a URL is not one that the store signed for an object that may be read here, or None."""
        from keynet_inference._s3_urls import is_signed

        named = endpoint.find(url)
        if named is None or not any(_is_key(_key_in(each, str(named)) or "") for each in self._stores):
            return _refusal(str(url), self._stores)
        if not is_signed(url):
            return SourceRefused(f"storage does not read {url}: it is not signed", hint=f"hand over {named}")
        return None


def find_object(text: object, stores: tuple[ObjectStore, ...]) -> Place:
    """
    Return the object that a text names: a key of the first store, or a URL of any.

    Raises:
        SourceRefused: It names none.
        StoreError: It is a key that cannot be.

    """
    if not isinstance(text, str) or not text:
        raise SourceRefused(f"storage reads a key or a URL, not {text!r}", hint="was the parameter handed over?")
    if not _scheme_of(text):
        return Place(stores[0], to_key(text))
    for store in stores:
        key = _key_in(store, text)
        if key:
            return Place(store, to_key(key))
    raise _refusal(text, stores)


def to_url(store: ObjectStore, key: str) -> str:
    """Return the URL of an object; keys on S3 stand in theirs as they are, as all tools of S3 write them."""
    return f"{store.url}/{quote(key) if isinstance(store, LocalStore) else key}"


def _scheme_of(text: str) -> str:
    """Return the scheme of a URL in small letters; a key and a path have none, also with a colon in them."""
    scheme, found, _ = text.partition("://")
    if found:
        return scheme.lower()
    return "file" if text[:5].lower() == "file:" else ""


def _key_in(store: ObjectStore, url: str) -> str | None:
    """Return the key a URL has in a store, or None where it has none."""
    base = f"{store.url}/"
    if url.startswith(base):
        key = url.removeprefix(base)
        return unquote(key) if isinstance(store, LocalStore) else key
    if not isinstance(store, LocalStore):
        return None
    parts = urlsplit(url)
    if parts.scheme != "file" or parts.netloc not in {"", "localhost"}:
        return None
    if parts.query or parts.fragment or "\x00" in unquote(parts.path):
        return None
    path, root = Path(unquote(parts.path)).resolve(), store.root.resolve()
    return path.relative_to(root).as_posix() if path.is_relative_to(root) and path != root else None


def _is_key(text: str) -> bool:
    """Return whether a text is a key; a path that climbs is none, and a proxy before S3 may follow it."""
    try:
        to_key(text)
    except StoreError:
        return False
    return True


def _read_hosts(texts: list[str]) -> list[WebHost]:
    if not texts:
        return []
    from keynet_inference._web import WebHost

    return [WebHost.read(each) for each in texts]


def _refusal(text: str, stores: Iterable[ObjectStore]) -> SourceRefused:
    allowed = ", ".join(each.url for each in stores)
    shown = re.sub("//[^/]*@", "//", text).partition("?")[0]  # a password, and what may be a signature
    return SourceRefused(
        f"storage does not read '{shown:.200}': it reads its own keys, and URLs below {allowed}",
        hint=f"hand over what Storage.put returned, {_MORE}",
    )
