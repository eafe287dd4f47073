"""One suite for every store a function's files may be in: what holds in a directory holds on S3."""

from __future__ import annotations

import gzip
import io
import json
import os
import re
import tempfile
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image

from keynet_core import ObjectMissing, StoreError
from keynet_inference import SourceRefused, Storage

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.usefixtures("store")


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


def test_a_buffer_may_be_written_to_without_changing_the_object() -> None:
    storage = Storage()
    url = storage.put(b"cat")

    storage.get(url).write(b"dog")

    assert storage.get(url).read() == b"cat"


def test_another_process_s_storage_reads_what_was_put() -> None:
    assert Storage().get(Storage().put(b"cat", key="cats/1")).read() == b"cat"


def test_a_key_can_be_chosen_and_asked_for() -> None:
    storage = Storage()

    url = storage.put(b"cat", key="cats/고양이 #1?%20.png")

    assert storage.get("cats/고양이 #1?%20.png").read() == b"cat"
    assert storage.get(url).read() == b"cat"
    assert url.startswith(storage.url + "/cats/")


def test_what_is_put_again_is_replaced() -> None:
    storage = Storage()
    storage.put(b"cat", key="pet")

    storage.put(b"a dog", key="pet")

    assert storage.get("pet").read() == b"a dog"


def test_nothing_is_stored_and_got_as_nothing() -> None:
    assert Storage().get(Storage().put(b"", key="empty")).read() == b""


def test_some_megabytes_arrive_whole() -> None:
    data = np.random.default_rng(0).bytes(20 << 20)

    assert Storage().get(Storage().put(data)).read() == data


def test_threads_share_a_storage() -> None:
    storage = Storage()

    def there_and_back(number: int) -> bytes:
        return storage.get(storage.put(b"%d" % number, key=f"n/{number}")).read()

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(there_and_back, range(24))) == [b"%d" % number for number in range(24)]


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
        cats = ("고양이", path, text, binary, io.StringIO("고양이"), bytearray("고양이".encode()))
        for each in (*cats, memoryview("고양이".encode())):
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
        (npy(), "npy"),
        (gzip.compress(b"x"), "gz"),
        (json.dumps({"a": [1]}).encode(), "json"),
        ("고양이".encode(), "txt"),
        (b"\xff\x00", "bin"),
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
        "http://127.0.0.1:1/bucket/cat.png?X-Amz-Signature=1",
        "https://example.com/cat.png",
        "https://s3.amazonaws.com/cats/cat.png",
        "ftp://example.com/cat.png",
        "s3://bucket/cat.png",
        "s3://bucket-0/../bucket-1/cat.png",
        "gs://bucket/cat.png",
        "gopher://x",
        "",
        None,
        3,
    ],
)
def test_other_sources_are_refused_with_what_is_read(source: object) -> None:
    with pytest.raises(SourceRefused, match=r"storage (does not read|reads a key)"):
        Storage().get(source)


@pytest.mark.parametrize("key", ["/etc/passwd", "../outside", "a/../../outside", "a\\b", "a\nb", "a//b", "a" * 2000])
def test_keys_that_climb_or_are_none_are_refused(key: str) -> None:
    for use in (Storage().get, Storage().presign, lambda each: Storage().put(b"x", key=each)):
        with pytest.raises(StoreError, match="is no key"):
            use(key)


def test_urls_that_climb_out_of_the_store_are_refused() -> None:
    storage = Storage()
    storage.put(b"x", key="a/x")

    for path in ("../outside.txt", "a/../../outside.txt", "/x"):
        with pytest.raises(StoreError, match="is no key"):
            storage.get(f"{storage.url}/{path}")


@pytest.mark.parametrize("name", ["none.png", "."])
def test_a_path_that_cannot_be_read_is_named(tmp_path: Path, name: str) -> None:
    with pytest.raises(SourceRefused, match=f"cannot put {re.escape(str(tmp_path / name))}: (No such|Is a)"):
        Storage().put(tmp_path / name)


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


def test_what_is_not_there_is_missing() -> None:
    storage = Storage()
    storage.put(b"cat", key="cat")

    for source in ("none", f"{storage.url}/none", "cat/none"):
        with pytest.raises(ObjectMissing, match="none"):
            storage.get(source)
    with pytest.raises(ObjectMissing, match="none"):
        storage.presign("none")


def test_larger_objects_than_the_cap_are_refused_both_ways(tmp_path: Path) -> None:
    Storage().put(b"12345", key="five")
    (tmp_path / "five").write_bytes(b"12345")
    small = Storage(max_bytes=4)

    with pytest.raises(StoreError, match="larger than the 4 bytes"):
        small.get("five")
    for value in (b"12345", io.BytesIO(b"12345"), "12345", tmp_path / "five"):
        with pytest.raises(StoreError, match="larger than the 4 bytes"):
            small.put(value)
    assert small.get(small.put(b"1234")).read() == b"1234"


def test_a_url_for_others_hands_the_object_out() -> None:
    storage = Storage()
    url = storage.put(b"cat", key="cats/고양이 1.png")

    for named in ("cats/고양이 1.png", url):
        with urllib.request.urlopen(storage.presign(named, expires_s=60), timeout=30) as answer:
            assert answer.read() == b"cat"


def test_storage_reads_the_urls_it_signed() -> None:
    storage = Storage()
    storage.put(b"cat", key="cats/고양이 #1?.png")

    assert Storage().get(storage.presign("cats/고양이 #1?.png")).read() == b"cat"


@pytest.mark.parametrize("expires_s", [0, -1, 604_801])
def test_a_url_for_others_is_good_for_a_second_to_a_week(expires_s: int) -> None:
    Storage().put(b"cat", key="cat.png")

    with pytest.raises(StoreError, match="cat"):
        Storage().presign("cat.png", expires_s=expires_s)
