"""What may be read and stored, at its edges: addresses that look like two, roads around a prefix, streams that drip."""

from __future__ import annotations

import mmap
import os
import socket
import threading
from typing import TYPE_CHECKING

import pytest

from keynet_core import LocalStore, SettingsInvalid, open_store
from keynet_inference import SourceRefused, Storage, TritonPlugin
from keynet_inference._download import Download, Target
from keynet_inference._settings import S3Address
from keynet_inference._sources import Sources
from keynet_inference._web import WebUrl

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

S3 = S3Address("https://s3.corp.example", checks_certificate=True, authorities=None)
SIGNATURE = "?" + "&".join(
    f"X-Amz-{each}=a" for each in ("Algorithm", "Credential", "Date", "Expires", "SignedHeaders", "Signature")
)


@pytest.fixture
def bucket() -> Callable[[str], Sources]:
    return lambda url: Sources(open_store(url), ["https://*"], S3)


@pytest.mark.parametrize(
    "url",
    [
        "https://s3.corp.example/minio/v2/metrics/cluster",
        "https://s3.corp.example/bucket/public/x",
        "https://vault.s3.corp.example/v1/secret",
        f"https://vault.s3.corp.example/v1/secret{SIGNATURE}",
    ],
)
def test_all_that_is_public_is_not_the_store_inside(url: str, tmp_path: Path) -> None:
    """`https://*` stands for public hosts; the store's address inside is for what the store has signed."""
    assert not Sources(LocalStore(tmp_path), ["https://*"], S3).admit(url).may_be_private


def test_a_signed_url_is_read_at_an_address_inside_though_every_host_is_readable(
    bucket: Callable[[str], Sources],
) -> None:
    assert bucket("s3://bucket/public").admit(f"https://s3.corp.example/bucket/public/x{SIGNATURE}").may_be_private


def test_the_store_s_host_is_read_where_it_was_named_itself(tmp_path: Path) -> None:
    sources = Sources(LocalStore(tmp_path), ["https://s3.corp.example"], S3)

    assert sources.admit("https://s3.corp.example/open/x").may_be_private


@pytest.mark.parametrize(
    "path",
    ["public/../private/x", "public/%2e%2e/private/x", "public/%2E%2E%2Fprivate/x", "public/../../admin", "public//x"],
)
def test_a_signed_url_does_not_climb_out_of_the_prefix(path: str) -> None:
    """S3 takes such a key as it is; a proxy before it may not."""
    sources = Sources(open_store("s3://bucket/public"), [], S3)

    with pytest.raises(SourceRefused):
        sources.admit(f"https://s3.corp.example/bucket/{path}{SIGNATURE}")


@pytest.mark.parametrize("name", ["My_Bucket", "bucket"])
def test_a_signed_url_names_whatever_bucket_the_store_takes(name: str, bucket: Callable[[str], Sources]) -> None:
    assert bucket(f"s3://{name}").admit(f"https://s3.corp.example/{name}/x{SIGNATURE}").may_be_private


@pytest.mark.parametrize(
    "url", ["http://evil[::1]/", "http://[::1]evil/", "http://evil[::1]:80/x", "http://evil.example[2001:db8::1]/"]
)
def test_a_host_that_is_one_thing_and_says_another_is_refused(url: str) -> None:
    """The first is connected to; the second would be its `Host` header."""
    with pytest.raises(SourceRefused):
        WebUrl.read(url)


@pytest.mark.parametrize(
    "url", ["http://user:hunter2 x@h/", "http://user:hunter2[@h/", "http://user:hunter2\\@h/", "s3://u:hunter2@b/k"]
)
def test_a_password_is_not_repeated_when_its_url_is_refused(url: str, tmp_path: Path) -> None:
    with pytest.raises(SourceRefused) as refused:
        Sources(LocalStore(tmp_path), [], S3).find(url)

    assert "hunter2" not in str(refused.value)


@pytest.mark.parametrize("location", ["//[bad", "http://[::1", "http://u:hunter2@[x/"])
def test_a_redirect_that_cannot_be_read_is_refused(location: str, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def reply() -> None:
            connection, _ = server.accept()
            with connection:
                connection.recv(65536)
                connection.sendall(f"HTTP/1.1 302 x\r\nLocation: {location}\r\nContent-Length: 0\r\n\r\n".encode())

        replying = threading.Thread(target=reply)
        replying.start()
        url = WebUrl.read(f"http://127.0.0.1:{server.getsockname()[1]}/x")
        admit = Sources(LocalStore(tmp_path), ["http://*"], S3).admit
        with pytest.raises(SourceRefused) as refused:
            Download(timeout_s=30, max_bytes=100).fetch(Target(url, may_be_private=True), admit)
        replying.join()

    assert "hunter2" not in str(refused.value)


def test_a_stream_that_comes_in_pieces_is_stored_whole(tmp_path: Path) -> None:
    """An unbuffered file returns what is there, and that is not the end."""
    reader, writer = os.pipe()
    is_empty = threading.Event()

    def write() -> None:
        with os.fdopen(writer, "wb", buffering=0) as file:
            file.write(b"a" * 1000)
            is_empty.wait(30)
            file.write(b"b" * 1000)

    class Reader:
        """The pipe, which lets its writer go on once the first piece was read."""

        def __init__(self) -> None:
            self.file = os.fdopen(reader, "rb", buffering=0)

        def read(self, size: int) -> bytes:
            data = self.file.read(size)
            is_empty.set()
            return data

    writing = threading.Thread(target=write)
    writing.start()
    storage, source = Storage(tmp_path), Reader()
    try:
        url = storage.put(source)  # type: ignore[arg-type]
    finally:
        source.file.close()
        writing.join()

    assert storage.get(url).read() == b"a" * 1000 + b"b" * 1000


def test_memory_that_is_mapped_is_a_buffer(tmp_path: Path) -> None:
    storage = Storage(tmp_path)
    with mmap.mmap(-1, 3) as memory:
        memory.write(b"cat")
        url = storage.put(memory)  # type: ignore[arg-type]
        assert memory.tell() == 3

    assert storage.get(url).read() == b"cat"


def test_a_password_in_the_address_of_no_model_server_is_not_shown() -> None:
    for text in ("htp://user:hunter2@host:1", "http://user:hunter2@[::1", "user:hunter2@host:port"):
        with pytest.raises(SettingsInvalid) as refused:
            TritonPlugin(text)
        assert "hunter2" not in str(refused.value)
