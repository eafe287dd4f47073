"""What only S3 has: buckets, keys that sign, URLs that expire."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import pytest

from keynet_core import StoreError, StoreForbidden, StoreUnavailable
from keynet_inference import SourceRefused, Storage

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

CAT = b"\x89PNG\r\n\x1a\n cat"


def test_a_url_names_the_bucket_and_the_key_as_other_tools_write_them(s3: Any) -> None:
    bucket = os.environ["AWS_BUCKET_NAME"]

    assert Storage().put(CAT, key="cats/고양이 1.png") == f"s3://{bucket}/cats/고양이 1.png"
    answer = s3.client().get_object(Bucket=bucket, Key="cats/고양이 1.png")
    assert answer["Body"].read() == CAT
    assert answer["ContentType"] == "image/png"


def test_what_another_tool_stored_is_read(s3: Any) -> None:
    s3.client().put_object(Bucket=os.environ["AWS_BUCKET_NAME"], Key="dog.png", Body=b"dog")

    assert Storage().get("dog.png").read() == b"dog"
    assert Storage().get(f"s3://{os.environ['AWS_BUCKET_NAME']}/dog.png").read() == b"dog"


def test_a_prefix_is_a_store_of_its_own(s3: Any) -> None:
    bucket = os.environ["AWS_BUCKET_NAME"]
    Storage().put(b"secret", key="secret")
    inner = Storage(f"s3://{bucket}/function")

    url = inner.put(CAT, key="cat")

    assert url == f"s3://{bucket}/function/cat"
    assert inner.get(url).read() == CAT
    for source in (f"s3://{bucket}/secret", Storage().presign("secret")):
        with pytest.raises(SourceRefused, match="does not read"):
            inner.get(source)


def test_another_bucket_is_read_where_it_was_made_readable(s3: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    other = f"s3://{s3.bucket()}"
    url = Storage(other).put(CAT, key="in/cat.png")
    sources = [url, Storage(other).presign(url)]

    for source in sources:
        with pytest.raises(SourceRefused, match="does not read"):
            Storage().get(source)
    monkeypatch.setenv("KEYNET_STORAGE_READABLE", f"{other}/in")
    for source in sources:
        assert Storage().get(source).read() == CAT
    monkeypatch.setenv("KEYNET_STORAGE_READABLE", f"{other}/out")
    for source in sources:
        with pytest.raises(SourceRefused, match="does not read"):
            Storage().get(source)


def test_a_signed_url_is_read_though_the_store_is_on_a_private_address(s3: Any) -> None:
    assert urlsplit(s3.url).hostname == "127.0.0.1"

    Storage().put(CAT, key="cat.png")

    assert Storage().get(Storage().presign("cat.png")).read() == CAT


def test_a_signed_url_reads_what_its_signature_is_for_and_no_more(s3: Any) -> None:
    storage = Storage()
    storage.put(CAT, key="cat.png")
    storage.put(b"secret", key="secret")
    url = storage.presign("cat.png")

    for changed in (
        url.replace("cat.png", "secret"),
        url.replace("X-Amz-Expires=3600", "X-Amz-Expires=36000"),
        url[:-1] + ("0" if url[-1] != "0" else "1"),
    ):
        with pytest.raises(SourceRefused, match=r"answered 403") as caught:
            storage.get(changed)
        assert "Signature=" not in str(caught.value)


def test_a_signed_url_that_expired_is_refused(s3: Any) -> None:
    Storage().put(CAT, key="cat.png")
    url = Storage().presign("cat.png", expires_s=1)

    wait_for(lambda: is_refused(url))

    with pytest.raises(SourceRefused, match="answered 403") as caught:
        Storage().get(url)
    assert "still valid" in str(caught.value.hint)


def is_refused(url: str) -> bool:
    try:
        Storage().get(url)
    except SourceRefused:
        return True
    return False


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.2)


def test_a_url_of_the_store_without_a_signature_is_refused_with_what_to_hand_over(s3: Any) -> None:
    Storage().put(CAT, key="cat.png")
    bucket = os.environ["AWS_BUCKET_NAME"]

    for query in ("", "?X-Amz-Signature=1", "?Signature=1&Expires=1"):
        with pytest.raises(SourceRefused, match="it is not signed") as caught:
            Storage().get(f"{s3.url}/{bucket}/cat.png{query}")
        assert caught.value.hint == f"hand over s3://{bucket}/cat.png"


def test_addresses_near_the_store_are_not_the_store(s3: Any) -> None:
    Storage().put(CAT, key="cat.png")
    parts = urlsplit(Storage().presign("cat.png"))
    signed = f"{parts.path}?{parts.query}"

    for origin in (
        f"https://{parts.netloc}",
        f"http://127.0.0.1:{(parts.port or 0) + 1}",
        f"http://localhost:{parts.port}",
        f"http://user@{parts.netloc}",
    ):
        with pytest.raises(SourceRefused):
            Storage().get(origin + signed)
    for path in ("/", "//cat.png", f"/{parts.path.split('/')[1]}/", "/other/cat.png", "/../cat.png"):
        with pytest.raises(StoreError):
            Storage().get(f"{s3.url}{path}?{parts.query}")


@pytest.fixture
def tls(tmp_path: Path) -> Iterator[str]:
    """Where a server answers whose certificate, `cert.pem`, it signed itself."""
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "1",
         "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost", "-keyout", "key.pem", "-out", "cert.pem"],
        cwd=tmp_path, check=True, capture_output=True,
    )  # fmt: skip
    (tmp_path / "cats").mkdir()
    (tmp_path / "cats/cat.png").write_bytes(CAT)
    code = (
        "import http.server, ssl\n"
        "server = http.server.ThreadingHTTPServer(('localhost', 0), http.server.SimpleHTTPRequestHandler)\n"
        "context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)\n"
        "context.load_cert_chain('cert.pem', 'key.pem')\n"
        "server.socket = context.wrap_socket(server.socket, server_side=True)\n"
        "print(server.server_address[1], flush=True)\n"
        "server.serve_forever()\n"
    )
    command = [sys.executable, "-c", code]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as server:
        yield f"https://localhost:{int(server.stdout.readline())}"
        server.terminate()


def test_the_store_s_certificate_is_believed_as_its_engine_believes_it(
    tls: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_BUCKET_NAME", "cats")
    monkeypatch.setenv("MLFLOW_S3_ENDPOINT_URL", tls)
    url = f"{tls}/cats/cat.png?AWSAccessKeyId=k&Expires=1&Signature=s"

    with pytest.raises(StoreUnavailable, match="certificate verify failed"):
        Storage().get(url)
    with monkeypatch.context() as patch:
        patch.setenv("AWS_CA_BUNDLE", str(tmp_path / "cert.pem"))
        assert Storage().get(url).read() == CAT
    monkeypatch.setenv("MLFLOW_S3_IGNORE_TLS", "true")
    assert Storage().get(url).read() == CAT


def test_keys_that_are_wrong_are_told(s3: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")

    for use in (lambda: Storage().put(CAT), lambda: Storage().get("cat.png")):
        with pytest.raises(StoreForbidden) as caught:
            use()
        assert "wrong" not in str(caught.value)


def test_a_bucket_that_is_not_there_is_told(s3: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_BUCKET_NAME", "nobody-s-bucket")

    with pytest.raises(StoreError, match="nobody-s-bucket"):
        Storage().put(CAT)


def test_a_store_that_is_away_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    environ = {"AWS_BUCKET_NAME": "cats", "AWS_ACCESS_KEY_ID": "k", "AWS_SECRET_ACCESS_KEY": "s"}
    for name, value in (environ | {"MLFLOW_S3_ENDPOINT_URL": "http://127.0.0.1:1"}).items():
        monkeypatch.setenv(name, value)
    storage = Storage()

    for use in (lambda: storage.put(CAT), lambda: storage.get("cat.png")):
        with pytest.raises(StoreUnavailable):
            use()
    with pytest.raises(StoreUnavailable, match="refused"):
        storage.get("http://127.0.0.1:1/cats/cat.png?AWSAccessKeyId=k&Expires=1&Signature=s")


@pytest.mark.parametrize(
    "host",
    [
        "s3.amazonaws.com/cats",
        "cats.s3.amazonaws.com",
        "s3.eu-central-1.amazonaws.com/cats",
        "cats.s3.eu-central-1.amazonaws.com",
        "cats.s3.dualstack.us-gov-west-1.amazonaws.com",
        "cats.s3-ap-northeast-2.amazonaws.com",
        "cats.s3.cn-north-1.amazonaws.com.cn",
    ],
)
def test_without_an_endpoint_the_store_is_aws(host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_BUCKET_NAME", "cats")

    with pytest.raises(SourceRefused) as caught:
        Storage().get(f"https://{host}/cat.png")
    assert caught.value.hint == "hand over s3://cats/cat.png"


@pytest.mark.parametrize(
    "url",
    [
        "http://cats.s3.amazonaws.com",
        "https://cats.s3.amazonaws.com:8443",
        "https://dogs.s3.amazonaws.com",
        "https://cats.s3-website-us-east-1.amazonaws.com",
        "https://cats.s3.amazonaws.com.evil.example",
        "https://evil.example/cats.s3.amazonaws.com",
        "https://cats.ec2.amazonaws.com",
    ],
)
def test_hosts_that_look_like_aws_are_not_the_store(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_BUCKET_NAME", "cats")

    with pytest.raises(SourceRefused, match="does not read"):
        Storage().get(f"{url}/cat.png?AWSAccessKeyId=k&Expires=1&Signature=s")


def test_without_its_library_the_install_line_is_named() -> None:
    code = (
        "import sys; sys.modules['boto3'] = None\n"
        "import keynet_inference as k, keynet_core\n"
        "try: k.Storage('s3://cats')\n"
        "except keynet_core.MissingDependency as error: print(error.hint)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)

    assert re.fullmatch(r"pip install 'keynet-\w+\[s3\]'\n", done.stdout)
