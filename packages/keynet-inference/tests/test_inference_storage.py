"""Files by key or URL, and everything storage must not read."""

from __future__ import annotations

import gzip
import io
import json
import os
import re
import tempfile
from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image

from keynet_core import ObjectMissing, StoreError, StoreUnsupported
from keynet_inference import SourceRefused, Storage

if TYPE_CHECKING:
    from pathlib import Path


def png() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (2, 2)).save(buffer, format="PNG")
    return buffer.getvalue()


def test_what_was_put_is_got_by_its_url_and_stands_at_its_beginning() -> None:
    storage = Storage()

    buffer = storage.get(storage.put(b"cat"))

    assert isinstance(buffer, io.BytesIO)
    assert buffer.tell() == 0
    assert buffer.read() == b"cat"


def test_files_live_beside_the_packages_in_the_home(home: Path) -> None:
    url = Storage().put(b"cat")

    assert url.startswith((home / "storage").as_uri() + "/")


def test_a_key_can_be_chosen_and_asked_for() -> None:
    storage = Storage()

    url = storage.put(b"cat", key="cats/고양이 #1?.png")

    assert storage.get("cats/고양이 #1?.png").read() == b"cat"
    assert storage.get(url).read() == b"cat"
    assert " " not in url


def test_a_relative_home_and_a_directory_as_argument_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("KEYNET_HOME", "state")
    storage = Storage()

    assert storage.get(storage.put(b"cat")).read() == b"cat"
    assert Storage(tmp_path / "state/storage").url == storage.url == Storage("state/storage").url


@pytest.mark.parametrize("position", [0, 1, 3])
def test_the_whole_buffer_is_stored_wherever_it_stands(position: int) -> None:
    buffer = io.BytesIO(b"cat")
    buffer.seek(position)

    assert Storage().get(Storage().put(buffer)).read() == b"cat"
    assert buffer.tell() == position


def test_text_files_and_paths_are_stored(tmp_path: Path) -> None:
    path = tmp_path / "cat.txt"
    path.write_text("고양이", encoding="utf-8")
    storage = Storage()
    with path.open(encoding="utf-8") as text, path.open("rb") as binary, tempfile.TemporaryFile() as empty:
        for each in ("고양이", path, text, binary, io.StringIO("고양이"), bytearray("고양이".encode())):
            assert storage.get(storage.put(each)).read().decode() == "고양이"
        assert storage.get(storage.put(empty)).read() == b""


def test_a_stream_that_cannot_seek_is_stored_from_where_it_stands() -> None:
    reader, writer = os.pipe()
    os.write(writer, b"cat")
    os.close(writer)
    with os.fdopen(reader, "rb") as stream:
        assert Storage().get(Storage().put(stream)).read() == b"cat"


@pytest.mark.parametrize(
    "value", [None, 3, np.zeros(2), Image.new("RGB", (1, 1))], ids=["none", "int", "array", "image"]
)
def test_what_is_no_buffer_is_refused_with_the_way_to_one(value: object) -> None:
    with pytest.raises(SourceRefused, match="storage puts bytes") as caught:
        Storage().put(value)

    assert "image.save(buffer" in str(caught.value.hint)


def npy() -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.zeros(2))
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("data", "ending"),
    [
        (png(), "png"),
        (b"\xff\xd8\xff\xe0rest", "jpg"),
        (b"GIF89a", "gif"),
        (b"%PDF-1.7", "pdf"),
        (npy(), "npy"),
        (gzip.compress(b"x"), "gz"),
        (b"PK\x03\x04", "zip"),
        (b"RIFF0000WEBPVP8", "webp"),
        (b"RIFF0000none", "bin"),
        (b"\x00\x00\x00\x18ftypmp42", "mp4"),
        (json.dumps({"a": [1]}).encode(), "json"),
        (b'{"a": ', "txt"),
        (b"[" * 100_000, "txt"),
        ("고양이".encode(), "txt"),
        ("가".encode() * 500_000, "txt"),
        (b"a" * (1 << 20) + b"\xff", "txt"),
        (b"\xff" + b"a" * (1 << 21), "bin"),
        (b"\xff\x00", "bin"),
        (b"a\x00b", "bin"),
        (b"", "txt"),
    ],
)
def test_a_generated_key_tells_the_day_and_the_kind(data: bytes, ending: str) -> None:
    storage = Storage()

    key = storage.put(data).removeprefix(storage.url + "/")

    assert re.fullmatch(rf"\d{{4}}/\d\d/\d\d/[0-9a-f-]{{36}}\.{ending}", key)


@pytest.mark.parametrize(
    "source",
    [
        "file:///etc/passwd",
        "FILE:///etc/passwd",
        "file:/etc/passwd",
        "file://localhost/etc/passwd",
        "file://evil.example/etc/passwd",
        "http://169.254.169.254/latest/meta-data",
        "https://example.com/cat.png",
        "ftp://example.com/cat.png",
        "s3://bucket/cat.png",
        "gopher://x",
        "",
        None,
        3,
    ],
)
def test_other_sources_are_refused_with_what_is_read(source: object) -> None:
    with pytest.raises(SourceRefused, match=r"storage (does not read|reads a key)"):
        Storage().get(source)


@pytest.mark.parametrize("key", ["/etc/passwd", "../outside", "a/../../outside", "a\\b", "a\nb", "a//b"])
def test_keys_that_climb_are_refused(key: str) -> None:
    with pytest.raises(StoreError, match="is no key"):
        Storage().get(key)


@pytest.mark.parametrize("path", ["../outside.txt", "a/%2e%2e/%2e%2e/outside.txt", "%2e%2e/outside.txt", "outside%00"])
def test_urls_that_climb_out_of_the_store_are_refused(home: Path, path: str) -> None:
    storage = Storage()
    storage.put(b"x", key="a/x")
    (home / "outside.txt").write_text("secret")

    with pytest.raises(StoreError):
        storage.get(f"{storage.url}/{path}")


@pytest.mark.parametrize("name", ["none.png", "."])
def test_a_path_that_cannot_be_read_is_named(tmp_path: Path, name: str) -> None:
    with pytest.raises(SourceRefused, match=f"cannot put {re.escape(str(tmp_path / name))}: (No such|Is a)"):
        Storage(tmp_path / "store").put(tmp_path / name)


def test_symbolic_links_do_not_lead_out(home: Path) -> None:
    storage = Storage()
    storage.put(b"x", key="x")
    (home / "secret").write_text("secret")
    (home / "storage/link").symlink_to(home / "secret")

    for source in ("link", f"{storage.url}/link", f"{storage.url.replace('file://', 'file://localhost')}/link"):
        with pytest.raises(StoreError, match=r"symbolic link|does not read"):
            storage.get(source)


def test_a_directory_that_was_named_can_be_read_and_not_written(tmp_path: Path) -> None:
    images = tmp_path / "images"
    images.mkdir()
    (images / "cat.png").write_bytes(png())
    url = (images / "cat.png").as_uri()

    with pytest.raises(SourceRefused, match="does not read"):
        Storage().get(url)
    storage = Storage(readable=[images])
    assert storage.get(url).read() == png()
    with pytest.raises(SourceRefused):
        storage.get((tmp_path / "other.png").as_uri())
    with pytest.raises(SourceRefused):
        storage.presign(url)


@pytest.mark.parametrize("decoration", ["?versionId=1", "#part"])
def test_a_file_url_with_more_than_a_path_is_no_object(tmp_path: Path, decoration: str) -> None:
    (tmp_path / "x").write_bytes(b"x")

    with pytest.raises(SourceRefused):
        Storage(tmp_path / "store", readable=[tmp_path]).get(f"file://localhost{tmp_path}/x{decoration}")


def test_what_is_not_there_is_missing() -> None:
    storage = Storage()

    for source in ("none", f"{storage.url}/none", storage.url.replace("file://", "file://localhost") + "/none"):
        with pytest.raises(ObjectMissing):
            storage.get(source)


def test_larger_objects_than_the_cap_are_refused_both_ways(tmp_path: Path) -> None:
    Storage(tmp_path).put(b"12345", key="five")
    small = Storage(tmp_path, max_bytes=4)

    with pytest.raises(StoreError, match="larger than the 4 bytes"):
        small.get("five")
    for value in (b"12345", io.BytesIO(b"12345"), "12345", tmp_path / "five"):
        with pytest.raises(StoreError, match="larger than the 4 bytes"):
            small.put(value)
    assert small.get(small.put(b"1234")).read() == b"1234"


def test_a_url_for_others_is_the_file_s_own(tmp_path: Path) -> None:
    storage = Storage(tmp_path)
    url = storage.put(b"cat", key="cat.png")

    assert storage.presign("cat.png") == storage.presign(url, expires_s=10) == (tmp_path / "cat.png").as_uri()
    with pytest.raises(ObjectMissing):
        storage.presign("none")
    with pytest.raises(StoreError, match="cannot expire"):
        storage.presign("cat.png", expires_s=0)


def test_a_bucket_says_that_no_engine_is_there_for_it_yet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_BUCKET_NAME", "functions")

    with pytest.raises(StoreUnsupported, match="s3://") as caught:
        Storage()
    assert "AWS_BUCKET_NAME" in str(caught.value.hint)
