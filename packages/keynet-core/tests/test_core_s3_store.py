"""S3: its addresses and settings, what its objects carry, presigned URLs, and clients that survive a fork."""

from __future__ import annotations

import multiprocessing
import os
import urllib.error
import urllib.request
from contextlib import contextmanager
from dataclasses import replace

import pytest

from keynet_core import (
    MissingDependency,
    ObjectCorrupt,
    ObjectInfo,
    S3Settings,
    SettingsInvalid,
    StoreError,
    open_store,
    read_settings,
)
from keynet_core._s3_store import S3Store
from keynet_core._s3_transfers import Transfers

ABC = ObjectInfo(size_bytes=3, sha256="ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad")
SERVERS = pytest.mark.parametrize("engine", ["ceph", "swift"])


@pytest.fixture
def store(open_engine):
    return open_engine("ceph")


@pytest.fixture
def behind(ceph):
    """A bare client, to do what keynet does not see."""
    return ceph.client()


def place_of(store, key):
    bucket, _, prefix = store.url.removeprefix("s3://").partition("/")
    return {"Bucket": bucket, "Key": f"{prefix}/{key}"}


# Addresses and settings.


@pytest.mark.parametrize(
    "url",
    ["s3://key:hunter2@bucket/x", "s3://bucket?secret=hunter2", "s3:bucket", "s3://", "s3://bucket[", "s3://bucket#x"],
)
def test_an_address_that_is_more_or_less_than_bucket_and_prefix_is_refused_without_its_password(url):
    with pytest.raises(StoreError, match=r"s3://bucket or s3://bucket/prefix") as caught:
        open_store(url)
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("bucket", ["ab", "a" * 64, "-abc", "abc-", "a..b", "a b c", "a%2fb", "버킷버킷"])
def test_a_bucket_that_cannot_be_is_refused(bucket):
    with pytest.raises(StoreError, match="is no name of a bucket"):
        open_store(f"s3://{bucket}")


@pytest.mark.parametrize("prefix", ["a//b", "../a", "a/./b", "a\\b"])
def test_a_prefix_that_is_no_key_is_refused(prefix):
    with pytest.raises(StoreError, match="is no key"):
        open_store(f"s3://bucket/{prefix}")


def test_the_scheme_may_be_written_in_any_case():
    assert open_store("S3://bucket/").url == "s3://bucket"


def test_opening_a_store_asks_nobody(monkeypatch):
    monkeypatch.setenv("MLFLOW_S3_ENDPOINT_URL", "http://127.0.0.1:1")
    assert open_store("s3://bucket/a/b").url == "s3://bucket/a/b"


def test_a_key_over_1024_bytes_with_its_prefix_is_refused():
    store = S3Store("bucket", "p" * 20)
    with pytest.raises(StoreError, match="is too long"):
        store.stat("가" * 335)


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("MLFLOW_S3_ENDPOINT_URL", "ftp://host"),
        ("MLFLOW_S3_ENDPOINT_URL", "http://key:hunter2@host"),
        ("MLFLOW_S3_IGNORE_TLS", "perhaps"),
        ("MLFLOW_BOTO_CLIENT_ADDRESSING_STYLE", "postal"),
        ("KEYNET_STORE_TIMEOUT_S", "0"),
        ("KEYNET_STORE_TIMEOUT_S", "soon"),
        ("KEYNET_STORE_TIMEOUT_S", "nan"),
    ],
)
def test_a_variable_that_cannot_be_read_is_named(monkeypatch, variable, value):
    monkeypatch.setenv(variable, value)
    with pytest.raises(SettingsInvalid, match=f"{variable} cannot be used") as caught:
        open_store("s3://bucket")
    assert "hunter2" not in str(caught.value)


def test_the_settings_are_mlflows():
    environ = {
        "MLFLOW_S3_ENDPOINT_URL": "https://s3.example.org/",
        "MLFLOW_S3_IGNORE_TLS": "true",
        "MLFLOW_BOTO_CLIENT_ADDRESSING_STYLE": "virtual",
        "KEYNET_STORE_TIMEOUT_S": "7.5",
    }
    assert read_settings(S3Settings, environ) == S3Settings(
        endpoint_url="https://s3.example.org", ignore_tls=True, addressing_style="virtual", timeout_s=7.5
    )


def client_of(store):
    return store._bucket.client


def test_the_client_takes_settings_and_boto3s_own_environment(monkeypatch):
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:2")
    client = client_of(S3Store("bucket", settings=S3Settings(timeout_s=3)))
    assert (client.meta.endpoint_url, client.meta.region_name) == ("http://127.0.0.1:2", "us-east-1")
    assert (client.meta.config.connect_timeout, client.meta.config.read_timeout) == (3, 3)

    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:3")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "eu-central-1")
    client = client_of(S3Store("bucket"))
    assert (client.meta.endpoint_url, client.meta.region_name) == ("http://127.0.0.1:3", "eu-central-1")
    assert (client.meta.config.connect_timeout, client.meta.config.read_timeout) == (5, 20)

    client = client_of(S3Store("bucket", settings=S3Settings(endpoint_url="http://127.0.0.1:4")))
    assert client.meta.endpoint_url == "http://127.0.0.1:4"


def test_the_bucket_is_named_in_the_host_or_in_the_path(monkeypatch):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "x")

    def address(style):
        settings = S3Settings(endpoint_url="http://s3.example.org", addressing_style=style)
        parameters = {"Bucket": "bucket", "Key": "k"}
        url = client_of(S3Store("bucket", settings=settings)).generate_presigned_url("get_object", parameters)
        return url.partition("?")[0]

    assert address("virtual") == "http://bucket.s3.example.org/k"
    assert address("path") == "http://s3.example.org/bucket/k"


def test_keys_may_come_from_a_profile(store, ceph, tmp_path, monkeypatch):
    (tmp_path / "credentials").write_text(
        f"[lab]\naws_access_key_id = {ceph.access_key}\naws_secret_access_key = {ceph.secret_key}\n"
    )
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    monkeypatch.setenv("AWS_PROFILE", "lab")
    assert open_store(store.url).put("a", b"abc") == ABC


def test_stores_with_the_same_settings_share_a_client_and_others_do_not(monkeypatch):
    settings = S3Settings(endpoint_url="http://127.0.0.1:5")
    assert client_of(S3Store("one-bucket", settings=settings)) is client_of(S3Store("another", settings=settings))
    other = S3Store("bucket", settings=replace(settings, timeout_s=1))
    assert client_of(other) is not client_of(S3Store("bucket", settings=settings))
    before = client_of(S3Store("bucket", settings=settings))
    monkeypatch.setenv("AWS_DEFAULT_REGION", "eu-north-1")
    assert client_of(S3Store("bucket", settings=settings)) is not before


WITHOUT_BOTO = """
import sys
sys.modules["boto3"] = None
from keynet_core import open_store
open_store("s3://bucket")
"""


def test_without_boto3_the_line_that_installs_it_is_told(python):
    done = python(WITHOUT_BOTO)
    assert MissingDependency.__name__ in done.stderr
    assert "pip install 'keynet-core[s3]'" in done.stderr


def test_opening_loads_no_boto3(python):
    done = python("import sys; from keynet_core import open_store; open_store('s3://bucket'); print(*sys.modules)")
    assert "keynet_core._s3_store" in done.stdout.split(), done.stderr
    assert not {"boto3", "botocore"} & set(done.stdout.split())


@contextmanager
def asked_of(store, operation):
    """Yield the requests of one kind that the store's client begins."""
    begun, events = [], client_of(store).meta.events

    def note(**told):
        begun.append(told)

    events.register(f"before-call.s3.{operation}", note)
    try:
        yield begun
    finally:
        events.unregister(f"before-call.s3.{operation}", note)


# What objects carry.


@SERVERS
def test_an_object_carries_its_digest_and_media_type(request, open_engine, engine, tmp_path):
    store, behind = open_engine(engine), request.getfixturevalue(engine).client()
    (tmp_path / "big").write_bytes(bytes(17_000_000))
    stored = {"cat.png": store.put("cat.png", b"abc"), "big": store.put_file("big", tmp_path / "big")}
    for key, media_type in (("cat.png", "image/png"), ("big", "application/octet-stream")):
        told = behind.head_object(**place_of(store, key))
        assert {name.lower(): value for name, value in told["Metadata"].items()} == {
            "keynet-sha256": stored[key].sha256
        }
        assert told["ContentType"] == media_type


@SERVERS
def test_an_object_of_another_tool_has_a_true_digest_too(request, open_engine, engine, tmp_path):
    store, behind = open_engine(engine), request.getfixturevalue(engine).client()
    behind.put_object(**place_of(store, "a"), Body=b"abc")
    assert store.stat("a") == store.get_file("a", tmp_path / "a") == ABC
    assert store.get("a", max_bytes=3) == b"abc"
    assert store.copy_from(store, "a", "b") == ABC
    assert behind.head_object(**place_of(store, "b"))["Metadata"]["keynet-sha256"] == ABC.sha256


def test_bytes_that_are_not_what_the_object_says_are_refused(store, behind, tmp_path):
    behind.put_object(**place_of(store, "a"), Body=b"abd", Metadata={"keynet-sha256": ABC.sha256})
    (tmp_path / "t").write_bytes(b"old")
    for ask in (lambda: store.get("a", max_bytes=3), lambda: store.get_file("a", tmp_path / "t")):
        with pytest.raises(ObjectCorrupt, match="not ba7816bf8f01"):
            ask()
    assert [(each.name, each.read_bytes()) for each in tmp_path.iterdir()] == [("t", b"old")]


def test_a_prefix_keeps_stores_apart_and_names_of_others_are_not_listed(store, behind):
    inner = open_store(f"{store.url}/inner")
    inner.put("a", b"abc")
    store.put("innermost", b"abc")
    for name in ("folder/", "a//b", "a\\b"):
        behind.put_object(**place_of(store, name), Body=b"")
    assert list(inner.list("")) == ["a"]
    assert list(store.list("")) == ["inner/a", "innermost"]
    assert inner.stat("innermost") is None


@SERVERS
def test_a_large_copy_is_made_in_parts_on_the_server(request, open_engine, engine, tmp_path):
    store, behind = open_engine(engine), request.getfixturevalue(engine).client()
    cut = Transfers(part_bytes=5 << 20, copy_part_bytes=5 << 20)
    bucket, _, prefix = store.url.removeprefix("s3://").partition("/")
    store = S3Store(bucket, prefix, settings=store._bucket.settings, transfers=cut)
    data = os.urandom(12_000_000)
    info = store.put("a", data)
    store.copy_from(store, "a", "b")
    assert store.stat("b") == store.get_file("b", tmp_path / "b") == info
    assert (tmp_path / "b").read_bytes() == data
    uploads = behind.list_multipart_uploads(Bucket=bucket, Prefix=prefix)
    assert "Uploads" not in uploads


def test_a_copy_within_a_server_does_not_come_by_here(store):
    store.put("a", b"abc")
    with asked_of(store, "GetObject") as got, asked_of(store, "CopyObject") as copied:
        assert open_store(f"{store.url}/other").copy_from(store, "a", "b") == ABC
    assert (len(got), len(copied)) == (0, 1)


# Presigned URLs.


def fetch(url):
    with urllib.request.urlopen(url, timeout=30) as answer:
        return answer.read()


def status_of(url):
    try:
        fetch(url)
    except urllib.error.HTTPError as error:
        return error.code
    return 200


@SERVERS
def test_a_presigned_url_hands_out_one_object_for_a_time(open_engine, engine, eventually):
    store = open_engine(engine)
    store.put("a b/가", b"abc")
    store.put("secret", b"xyz")
    url = store.presign("a b/가", expires_s=60)
    assert fetch(url) == b"abc"
    assert status_of(url[:-1] + ("0" if url[-1] != "0" else "1")) == 403
    assert status_of(url.replace("Expires=60", "Expires=600")) == 403
    assert status_of(url.replace("a%20b/%EA%B0%80", "secret")) == 403
    assert status_of(url.partition("?")[0]) in {400, 403}

    brief = store.presign("a b/가", expires_s=1)
    eventually(lambda: status_of(brief) == 403)


# Forks.


def use_in_child(store, key):
    info = store.put(key, b"abc")
    return os.getpid(), info, store.get(key, max_bytes=3)


def test_a_store_that_was_used_works_in_a_forked_child_and_goes_on_in_its_parent(store):
    store.put("parent", b"abc")
    with multiprocessing.get_context("fork").Pool(2) as pool:
        told = pool.starmap_async(use_in_child, [(store, f"child/{number}") for number in range(6)]).get(timeout=60)
    assert os.getpid() not in {pid for pid, _, _ in told}
    assert {(info, data) for _, info, data in told} == {(ABC, b"abc")}
    assert store.get("parent", max_bytes=3) == b"abc"
    assert len(list(store.list("child/"))) == 6


def test_a_child_forked_in_the_middle_of_a_transfer_does_not_disturb_it(store, tmp_path):
    (tmp_path / "big").write_bytes(os.urandom(40_000_000))
    children = []

    def fork(**_told):
        child = os.fork()
        if child == 0:
            is_right = open_store(store.url).put("child", b"abc") == ABC
            os._exit(0 if is_right else 1)
        children.append(child)

    events = client_of(store).meta.events
    events.register_first("after-call.s3.UploadPart", fork)
    try:
        info = store.put_file("big", tmp_path / "big")
    finally:
        events.unregister("after-call.s3.UploadPart", fork)
    assert len(children) >= 2
    assert [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children] == [0] * len(children)
    assert store.stat("big") == store.get_file("big", tmp_path / "back") == info
    assert store.stat("child") == ABC
