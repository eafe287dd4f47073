"""Which addresses are public, and which hosts a configuration allows."""

from __future__ import annotations

import socket
from typing import Any

import pytest

from keynet_core import SettingsInvalid
from keynet_inference import SourceRefused, Storage
from keynet_inference._addresses import is_public, resolve
from keynet_inference._web import WebHost, WebUrl


@pytest.mark.parametrize("address", ["8.8.8.8", "2001:4860:4860::8888", "::ffff:8.8.8.8", "64:ff9b::808:808"])
def test_addresses_of_the_internet_are_public(address: str) -> None:
    assert is_public(address)


@pytest.mark.parametrize(
    "address", ["fec0::1", "ff02::1", "100.64.0.1", "198.18.0.1", "192.0.2.1", "240.0.0.1", "2001:db8::1", "fe80::1%lo"]
)
def test_addresses_of_no_host_on_the_internet_are_not(address: str) -> None:
    assert not is_public(address)


def test_a_name_with_one_address_inside_is_refused() -> None:
    """The one that would be taken could be either."""

    def lookup(_host: str, port: int, **_: Any) -> Any:
        return [(socket.AF_INET, 1, 6, "", (each, port)) for each in ("93.184.215.14", "10.0.0.1")]

    with pytest.raises(SourceRefused, match=r"images\.example is 10\.0\.0\.1, which is no public address"):
        resolve("images.example", 443, may_be_private=False, lookup=lookup)


@pytest.mark.parametrize(
    ("allowed", "url", "covers"),
    [
        ("https://images.example.com", "https://images.example.com/a", True),
        ("https://images.example.com/", "https://IMAGES.example.com.:443/a", True),
        ("https://images.example.com", "http://images.example.com/a", False),
        ("https://images.example.com", "https://images.example.com:8443/a", False),
        ("https://images.example.com", "https://images.example.com.evil.org/a", False),
        ("https://*.example.com", "https://a.b.example.com/a", True),
        ("https://*.example.com", "https://example.com/a", False),
        ("https://*.example.com", "https://evilexample.com/a", False),
        ("https://*", "https://anyone.org/a", True),
        ("https://*:8443", "https://anyone.org:8443/a", True),
        ("http://[::1]:9000", "http://[::1]:9000/a", True),
    ],
)
def test_a_host_covers_itself_and_what_its_star_stands_for(allowed: str, url: str, *, covers: bool) -> None:
    assert WebHost.read(allowed).covers(WebUrl.read(url)) is covers


@pytest.mark.parametrize(
    "text", ["https://", "https://host/path", "https://user@host", "https://a*b", "http://host:0", "http://host:99999"]
)
def test_more_or_less_than_a_host_cannot_be_made_readable(text: str) -> None:
    with pytest.raises(SettingsInvalid, match="only whole hosts can"):
        Storage(readable=[text])
