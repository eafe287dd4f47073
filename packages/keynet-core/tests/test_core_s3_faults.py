"""S3 over a bad line: bodies that break off, bytes that change on their way, objects replaced while they are read."""

from __future__ import annotations

import os
import re
import shutil
import socket
import ssl
import subprocess
import threading
import time
from contextlib import contextmanager, suppress
from dataclasses import replace

import pytest

from keynet_core import ObjectCorrupt, ObjectMissing, S3Settings, StoreUnavailable
from keynet_core._s3_store import S3Store
from keynet_core._s3_transfers import Transfers

SMALL, LARGE = 100_000, 12_000_000
MARK = b"=marked="
CUT, DRIP = "cut", "drip"
SERVERS = pytest.mark.parametrize("engine", ["ceph", "swift"])
SIZES = pytest.mark.parametrize("size", [SMALL, LARGE])


class Line:
    """A line to a server that does harm to some of what it carries, or hides it from others."""

    def __init__(self, port, tls=None):
        self._port, self._tls = port, tls
        self._server = socket.create_server(("127.0.0.1", 0))
        self.url = f"{'https' if tls else 'http'}://127.0.0.1:{self._server.getsockname()[1]}"
        self._lock = threading.Lock()
        self._left, self._toward, self._pattern, self._other = 0, "", MARK, CUT
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._thread.start()

    def cut(self, toward, times):
        """End the connection in the middle of marked bytes, so often."""
        self.rewrite(toward, times, MARK, CUT)

    def drip(self, toward, times):
        """Hand on what follows a mark one byte at a time, so often; all in half a minute, so that who waits is told."""
        self._drips_until_s = time.monotonic() + 30
        self.rewrite(toward, times, MARK, DRIP)

    def flip(self, toward, times):
        """Change some of the marked bytes, so often."""
        self.rewrite(toward, times, MARK, b"=MARKED=")

    def rewrite(self, toward, times, pattern, other):
        """Put other bytes where a pattern is, so often."""
        self._left, self._toward, self._pattern, self._other = times, toward, pattern, other

    def close(self):
        self._server.close()

    def _accept(self):
        with suppress(OSError):
            while True:
                near, _ = self._server.accept()
                if self._tls:
                    try:
                        near = self._tls.wrap_socket(near, server_side=True)
                    except OSError:  # it does not believe our certificate
                        continue
                far = socket.create_connection(("127.0.0.1", self._port))
                for pair in ((near, far, "server"), (far, near, "client")):
                    threading.Thread(target=self._carry, args=pair, daemon=True).start()

    def _carry(self, source, target, toward):
        with suppress(OSError):
            while data := source.recv(65536):
                if (found := re.search(self._pattern, data)) and self._takes(toward):
                    if self._other == CUT:
                        target.sendall(data[: len(data) // 2])
                        break
                    if self._other == DRIP:
                        data = self._drip(target, data, found.start())
                    else:
                        data = re.sub(self._pattern, self._other, data)
                target.sendall(data)
        for each in (source, target):
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)

    def _drip(self, target, data, start):
        target.sendall(data[:start])
        while start < len(data) and time.monotonic() < self._drips_until_s:
            target.sendall(data[start : start + 1])
            start += 1
            time.sleep(0.02)
        return data[start:]

    def _takes(self, toward):
        with self._lock:
            if toward != self._toward or self._left == 0:
                return False
            self._left -= 1
            return True


@pytest.fixture
def line(request, engine):
    line = Line(request.getfixturevalue(engine).port)
    yield line
    line.close()


@pytest.fixture
def good(open_engine, engine):
    """The store by a good line."""
    store = open_engine(engine)
    return split(store, store._bucket.settings)


@pytest.fixture
def bad(good, line):
    """The same store by a bad one."""
    return split(good, replace(good._bucket.settings, endpoint_url=line.url))


def split(store, settings):
    bucket, _, prefix = store.url.removeprefix("s3://").partition("/")
    return S3Store(
        bucket, prefix, settings=settings, transfers=Transfers(part_bytes=5 << 20, range_bytes=4 << 20, workers=3)
    )


def marked(size):
    return (MARK * (size // len(MARK) + 1))[:size]


@SERVERS
@SIZES
@pytest.mark.parametrize("harm", ["cut", "flip"])
def test_harm_on_the_way_here_is_noticed_and_asked_for_again(good, bad, line, size, harm, tmp_path):
    data = marked(size)
    info = good.put("a", data)
    getattr(line, harm)("client", 2)
    assert bad.get("a", max_bytes=size) == data
    getattr(line, harm)("client", 2)
    assert bad.get_file("a", tmp_path / "a") == info
    assert (tmp_path / "a").read_bytes() == data


@pytest.mark.parametrize("engine", ["ceph"])
@SIZES
@pytest.mark.parametrize(("harm", "error"), [("cut", StoreUnavailable), ("flip", ObjectCorrupt)])
def test_harm_without_end_is_an_error_and_leaves_no_file(good, bad, line, size, harm, error, tmp_path):
    good.put("a", marked(size))
    getattr(line, harm)("client", -1)
    for ask in (lambda: bad.get("a", max_bytes=size), lambda: bad.get_file("a", tmp_path / "a")):
        with pytest.raises(error):
            ask()
    assert list(tmp_path.iterdir()) == []


@SERVERS
@SIZES
def test_a_body_that_drips_is_given_up(good, bad, line, size, tmp_path):
    """A socket's time-out begins again with every byte."""
    good.put("a", marked(size))
    bad = split(bad, replace(bad._bucket.settings, timeout_s=0.3))
    line.drip("client", -1)
    for ask in (lambda: bad.get("a", max_bytes=size), lambda: bad.get_file("a", tmp_path / "a")):
        with pytest.raises(StoreUnavailable):
            ask()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("engine", ["ceph"])
@SIZES
def test_a_body_that_dripped_once_is_asked_for_again(good, bad, line, size, tmp_path):
    info = good.put("a", marked(size))
    bad = split(bad, replace(bad._bucket.settings, timeout_s=5.0))
    line.drip("client", 1)
    assert bad.get_file("a", tmp_path / "a") == info
    assert (tmp_path / "a").read_bytes() == marked(size)


@pytest.mark.parametrize("engine", ["ceph"])
def test_an_object_of_another_tool_that_drips_is_given_up_too(good, bad, line, ceph):
    bucket, _, prefix = good.url.removeprefix("s3://").partition("/")
    ceph.client().put_object(Bucket=bucket, Key=f"{prefix}/a", Body=marked(SMALL))
    bad = split(bad, replace(bad._bucket.settings, timeout_s=0.3))
    line.drip("client", -1)
    with pytest.raises(StoreUnavailable):
        bad.stat("a")


@SERVERS
@SIZES
def test_bytes_that_change_on_their_way_there_are_never_stored(good, bad, line, size, tmp_path):
    """The server compares each body with the digest that was signed."""
    data = marked(size)
    line.flip("server", 1)
    with pytest.raises(StoreUnavailable):
        bad.put("a", data)
    assert good.stat("a") is None
    info = bad.put("a", data)
    assert good.get_file("a", tmp_path / "a") == info
    assert (tmp_path / "a").read_bytes() == data


@SERVERS
@SIZES
def test_a_body_that_breaks_off_on_its_way_there_is_sent_again(good, bad, line, size, tmp_path):
    line.cut("server", 2)
    info = bad.put("a", marked(size))
    assert good.stat("a") == good.get_file("a", tmp_path / "a") == info


@contextmanager
def heads_of(store):
    """Yield the requests for what an object is that the store's client begins."""
    asked, events = [], store._bucket.client.meta.events

    def note(params, **_told):
        asked.append(params["url_path"])

    events.register("before-call.s3.HeadObject", note)
    try:
        yield asked
    finally:
        events.unregister("before-call.s3.HeadObject", note)


@pytest.mark.parametrize("engine", ["ceph"])
def test_an_etag_that_is_no_md5_has_the_server_asked_what_it_has(good, bad, line):
    """As with encryption by a key of the server's."""
    with heads_of(bad) as asked:
        bad.put("a", b"abc")
        assert asked == []
        line.rewrite("client", 1, rb'"[0-9a-f]{32}"', b'"' + b"0" * 32 + b'"')
        assert bad.put("a", b"abc") == good.stat("a")
        assert len(asked) == 1


@pytest.mark.parametrize("engine", ["ceph"])
def test_a_server_that_has_something_else_than_was_sent_is_found_out(good, bad, line):
    line.rewrite("client", -1, rb'"[0-9a-f]{32}"|(?<=keynet-sha256: )[0-9a-f]{64}', b"0")
    with pytest.raises(StoreUnavailable, match="is not what was stored there"):
        bad.put("a", b"abc")


@pytest.mark.parametrize("engine", ["ceph"])
@pytest.mark.parametrize("behind", ["replaced", "removed"])
def test_an_object_that_changes_between_two_ranges_is_never_mixed(good, tmp_path, behind):
    old, new = os.urandom(LARGE), os.urandom(LARGE)
    good.put("a", old)
    asked = []

    def change(**_told):
        asked.append(1)
        if len(asked) == 2:
            good.delete("a")
            if behind == "replaced":
                good.put("a", new)

    events = good._bucket.client.meta.events
    events.register("before-call.s3.GetObject", change)
    try:
        if behind == "replaced":
            good.get_file("a", tmp_path / "a")
            assert (tmp_path / "a").read_bytes() == new
        else:
            with pytest.raises(ObjectMissing):
                good.get_file("a", tmp_path / "a")
            assert list(tmp_path.iterdir()) == []
    finally:
        events.unregister("before-call.s3.GetObject", change)
    assert len(asked) >= 3 or behind == "removed"


@pytest.fixture
def certificate(tmp_path):
    """A certificate that nobody else signed, and its key."""
    if shutil.which("openssl") is None:
        pytest.skip("needs openssl: apt-get install openssl")
    names = ["-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1"]
    paths = ["-keyout", str(tmp_path / "key.pem"), "-out", str(tmp_path / "certificate.pem")]
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", *names, *paths]
    subprocess.run(command, check=True, capture_output=True)
    return tmp_path / "certificate.pem", tmp_path / "key.pem"


@SERVERS
@pytest.mark.filterwarnings("ignore:Unverified HTTPS request")
def test_over_tls_a_certificate_is_believed_that_is_known_or_when_all_are(
    good, request, engine, certificate, monkeypatch, tmp_path
):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certificate)
    line = Line(request.getfixturevalue(engine).port, context)
    settings = replace(good._bucket.settings, endpoint_url=line.url)
    try:
        with pytest.raises(StoreUnavailable, match="CERTIFICATE_VERIFY_FAILED") as caught:
            split(good, settings).stat("a")
        assert "AWS_CA_BUNDLE" in caught.value.hint

        info = split(good, replace(settings, ignore_tls=True)).put("a", marked(LARGE))
        monkeypatch.setenv("AWS_CA_BUNDLE", str(certificate[0]))
        store = split(good, settings)
        assert store.put("b", marked(SMALL)) == good.stat("b")
        assert store.stat("a") == good.stat("a") == store.get_file("a", tmp_path / "a") == info
    finally:
        line.close()


@pytest.fixture
def silent():
    """The address of a server that takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


@pytest.mark.parametrize("size", [3, LARGE])
def test_a_server_that_never_answers_is_given_up(silent, s3_keys, size, tmp_path):
    store = S3Store("bucket", settings=S3Settings(endpoint_url=silent, timeout_s=0.2))
    (tmp_path / "source").write_bytes(bytes(size))
    for ask in (
        lambda: store.put("a", bytes(size)),
        lambda: store.put_file("a", tmp_path / "source"),
        lambda: store.get("a", max_bytes=1),
        lambda: store.get_file("a", tmp_path / "t"),
        lambda: store.stat("a"),
        lambda: list(store.list("")),
        lambda: store.delete("a"),
        lambda: store.presign("a", expires_s=1),
    ):
        with pytest.raises(StoreUnavailable) as caught:
            ask()
        assert caught.value.hint == f"curl -sI {silent}"
    assert [each.name for each in tmp_path.iterdir()] == ["source"]


def test_a_port_that_refuses_is_unavailable(s3_keys):
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"http://127.0.0.1:{server.getsockname()[1]}"
    with pytest.raises(StoreUnavailable, match="Could not connect"):
        S3Store("bucket", settings=S3Settings(endpoint_url=url)).stat("a")


@pytest.fixture
def s3_keys(monkeypatch):
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "any")
