"""What only the stores over fsspec do: their addresses, and the errors of the libraries below them."""

from __future__ import annotations

import errno
import sys
from types import ModuleType

import pytest

from keynet_core import (
    MissingDependency,
    ObjectMissing,
    StoreError,
    StoreForbidden,
    StoreFull,
    StoreUnavailable,
    StoreUnsupported,
    open_store,
)
from keynet_core._fsspec_errors import translating_fsspec
from keynet_core._fsspec_store import FsspecStore

aiohttp = pytest.importorskip("aiohttp", reason="needs aiohttp: pip install aiohttp")

EXTRAS = [("gs", "gcsfs", "gcs"), ("abfs", "adlfs", "azure"), ("abfss", "adlfs", "azure")]


@pytest.mark.parametrize(("scheme", "library", "extra"), EXTRAS)
def test_without_its_library_the_line_that_installs_it_is_told(monkeypatch, scheme, library, extra):
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(MissingDependency, match=f"{scheme}:// needs {library}") as caught:
        open_store(f"{scheme}://bucket/prefix")
    assert caught.value.hint == f"pip install 'keynet-core[{extra}]'"


@pytest.mark.parametrize(
    "url", ["gs://", "gs:bucket", "gs://user:hunter2@bucket", "abfs://c@a:443", "gs://b?k=hunter2"]
)
def test_an_address_that_is_more_or_less_than_bucket_and_prefix_is_refused(url):
    with pytest.raises(StoreError, match="is no bucket and prefix alone") as caught:
        open_store(url)
    assert "hunter2" not in str(caught.value)


def test_a_file_system_that_cannot_sign_says_so(open_engine):
    store = open_engine("fsspec-memory")
    store.put("a", b"abc")
    with pytest.raises(StoreUnsupported, match="cannot sign URLs"):
        store.presign("a", expires_s=60)


@pytest.mark.parametrize("key", ["what?", "a#1"])
def test_a_key_that_the_file_system_would_read_otherwise_is_refused(key):
    store = FsspecStore("gs://bucket", "bucket", dict, unfit="?#")
    with pytest.raises(StoreError, match=r"gs://bucket has no place for .*: its keys have none of \?#"):
        store.put(key, b"abc")


def test_a_bucket_that_is_not_there_is_no_missing_object(open_engine, monkeypatch, tmp_path):
    store = open_engine("fsspec-memory")
    (tmp_path / "source").write_bytes(b"abc")

    def absent(*_told, **_more):
        raise FileNotFoundError(errno.ENOENT, "No such container")

    for name in ("pipe_file", "put_file"):
        monkeypatch.setattr(store._filesystem(), name, absent)
    for ask in (lambda: store.put("a", b"abc"), lambda: store.put_file("a", tmp_path / "source")):
        with pytest.raises(StoreError, match="there is no bucket") as caught:
            ask()
        assert type(caught.value) is StoreError


def test_an_object_that_is_shorter_than_its_size_is_not_taken(open_engine, tmp_path, monkeypatch):
    store = open_engine("fsspec-file")
    store.put("a", b"abc")
    files = store._filesystem()
    monkeypatch.setattr(files, "info", lambda _path: {"type": "file", "size": 4})
    for ask in (
        lambda: store.get("a", max_bytes=9),
        lambda: store.get_file("a", tmp_path / "t"),
        lambda: store.stat("a"),
        lambda: store.put("b", b"abc"),
    ):
        with pytest.raises(StoreUnavailable, match="bytes where"):
            ask()
    assert not (tmp_path / "t").exists()


class HttpError(Exception):
    """As `gcsfs.retry` has it."""

    def __init__(self, code):
        super().__init__(f"because, {code}")
        self.code = code


class AzureError(Exception):
    """As `azure.core.exceptions` has it, and what is below it."""


class HttpResponseError(AzureError):
    def __init__(self, status_code):
        super().__init__(f"because, {status_code}")
        self.status_code = status_code


class ClientAuthenticationError(HttpResponseError):
    pass


class ServiceRequestError(AzureError):
    pass


class GoogleAuthError(Exception):
    """As `google.auth.exceptions` has it, and what is below it."""


class RefreshError(GoogleAuthError):
    pass


class TransportError(GoogleAuthError):
    pass


@pytest.fixture
def loaded(monkeypatch):
    """The modules of the libraries, as far as errors go: their file systems are not installed here."""
    for name, kind in (
        ("gcsfs.retry", HttpError),
        ("azure.core.exceptions", AzureError),
        ("google.auth.exceptions", GoogleAuthError),
    ):
        module = ModuleType(name)
        setattr(module, kind.__name__, kind)
        monkeypatch.setitem(sys.modules, name, module)


RAISED = [
    (FileNotFoundError("x"), ObjectMissing),
    (PermissionError("x"), StoreForbidden),
    (TimeoutError("x"), StoreUnavailable),
    (ConnectionResetError("x"), StoreUnavailable),
    (OSError(errno.ENOSPC, "x"), StoreFull),
    (OSError("x"), StoreUnavailable),
    (ValueError("x"), StoreError),
    (aiohttp.ClientPayloadError("x"), StoreUnavailable),
    (aiohttp.ServerTimeoutError("x"), StoreUnavailable),
    (aiohttp.ServerDisconnectedError(), StoreUnavailable),
    (aiohttp.InvalidURL("x"), StoreError),
    *(
        (HttpError(code), kind)
        for code, kind in ((404, ObjectMissing), ("403", StoreForbidden), (503, StoreUnavailable))
    ),
    (HttpError(400), StoreError),
    (HttpError(429), StoreUnavailable),
    (HttpResponseError(404), ObjectMissing),
    (HttpResponseError(409), StoreError),
    (HttpResponseError(413), StoreFull),
    (HttpResponseError(500), StoreUnavailable),
    (ClientAuthenticationError(403), StoreForbidden),
    (ServiceRequestError("x"), StoreUnavailable),
    (RefreshError("x"), StoreForbidden),
    (TransportError("x"), StoreUnavailable),
]


@pytest.mark.parametrize(("error", "kind"), RAISED, ids=lambda each: getattr(each, "__name__", repr(each)))
def test_what_the_libraries_raise_is_translated(loaded, error, kind):
    with pytest.raises(StoreError) as caught, translating_fsspec("bucket/a"):
        raise error
    assert type(caught.value) is kind
    assert "bucket/a" in caught.value.message
    assert caught.value.__cause__ is error
    assert caught.value.hint


def test_what_is_nobodys_goes_its_way():
    with pytest.raises(ZeroDivisionError), translating_fsspec("bucket/a"):
        raise ZeroDivisionError
