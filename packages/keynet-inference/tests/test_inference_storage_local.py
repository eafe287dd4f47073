"""What only a store in a directory has: paths, links, and `file://` URLs."""

from __future__ import annotations

import gzip
import json
from typing import TYPE_CHECKING

import pytest

from keynet_core import ObjectMissing, StoreError, StoreUnsupported
from keynet_inference import SourceRefused, Storage
from keynet_inference._media import guess_ending

if TYPE_CHECKING:
    from pathlib import Path


def test_files_live_beside_the_packages_in_the_home(home: Path) -> None:
    url = Storage().put(b"cat")

    assert url.startswith((home / "storage").as_uri() + "/")


def test_a_relative_home_and_a_directory_as_argument_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("KEYNET_HOME", "state")
    storage = Storage()

    assert storage.get(storage.put(b"cat")).read() == b"cat"
    assert Storage(tmp_path / "state/storage").url == storage.url == Storage("state/storage").url


def test_a_url_is_one_whatever_the_key(tmp_path: Path) -> None:
    url = Storage(tmp_path).put(b"cat", key="cats/고양이 #1?.png")

    assert " " not in url
    assert url.isascii()


@pytest.mark.parametrize("path", ["../outside.txt", "a/%2e%2e/%2e%2e/outside.txt", "%2e%2e/outside.txt", "outside%00"])
def test_urls_that_climb_out_of_the_store_are_refused(home: Path, path: str) -> None:
    storage = Storage()
    storage.put(b"x", key="a/x")
    (home / "outside.txt").write_text("secret")

    with pytest.raises(StoreError):
        storage.get(f"{storage.url}/{path}")


def test_symbolic_links_do_not_lead_out(home: Path) -> None:
    storage = Storage()
    storage.put(b"x", key="x")
    (home / "secret").write_text("secret")
    (home / "storage/link").symlink_to(home / "secret")

    for source in ("link", f"{storage.url}/link", f"{storage.url.replace('file://', 'file://localhost')}/link"):
        with pytest.raises(StoreError, match=r"symbolic link|does not read"):
            storage.get(source)


@pytest.mark.parametrize("decoration", ["?versionId=1", "#part"])
def test_a_file_url_with_more_than_a_path_is_no_object(tmp_path: Path, decoration: str) -> None:
    (tmp_path / "x").write_bytes(b"x")

    with pytest.raises(SourceRefused):
        Storage(tmp_path / "store", readable=[tmp_path]).get(f"file://localhost{tmp_path}/x{decoration}")


def test_a_file_url_may_name_this_host() -> None:
    storage = Storage()
    storage.put(b"cat", key="cat")
    url = storage.url.replace("file://", "file://localhost")

    assert storage.get(f"{url}/cat").read() == b"cat"
    with pytest.raises(ObjectMissing):
        storage.get(f"{url}/none")


def test_a_url_for_others_is_the_file_s_own(tmp_path: Path) -> None:
    storage = Storage(tmp_path)
    url = storage.put(b"cat", key="cat.png")

    assert storage.presign("cat.png") == storage.presign(url, expires_s=10) == (tmp_path / "cat.png").as_uri()


def test_an_address_that_has_no_engine_says_what_to_do() -> None:
    with pytest.raises(StoreUnsupported, match="ftp://") as caught:
        Storage("ftp://host/files")
    assert "AWS_BUCKET_NAME" in str(caught.value.hint)


@pytest.mark.parametrize(
    ("data", "ending"),
    [
        (b"\x89PNG\r\n\x1a\n", "png"),
        (b"\xff\xd8\xff\xe0rest", "jpg"),
        (b"GIF89a", "gif"),
        (b"%PDF-1.7", "pdf"),
        (b"\x93NUMPY", "npy"),
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
def test_bytes_tell_what_they_are(data: bytes, ending: str) -> None:
    assert guess_ending(data) == ending
