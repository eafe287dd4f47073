"""URLs of the web: what storage fetches, and all that it must not, however it is written."""

from __future__ import annotations

import gzip
import socket
import threading
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

import pytest

from keynet_core import KeynetError, ObjectMissing, StoreError, StoreUnavailable
from keynet_inference import SourceRefused, Storage
from keynet_inference._download import Download, Target
from keynet_inference._web import WebUrl

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

CAT = b"\x89PNG cat"


@dataclass
class Web:
    """A server of this machine: what it answers by path, and what it was asked."""

    url: str
    port: int
    answers: dict[str, tuple[int, dict[str, str], bytes]] = field(default_factory=dict)
    asked: list[tuple[str, dict[str, str]]] = field(default_factory=list)

    def redirect(self, path: str, location: str, status: int = 302) -> str:
        self.answers[path] = (status, {"Location": location}, b"")
        return self.url + path


@pytest.fixture
def web() -> Iterator[Web]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            told.asked.append((self.path, dict(self.headers)))
            status, headers, body = told.answers.get(self.path.partition("?")[0], (404, {}, b""))
            self.send_response(status)
            for name, value in ({"Content-Length": str(len(body))} | headers).items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    port = server.server_address[1]
    told = Web(f"http://127.0.0.1:{port}", port, {"/cat.png": (200, {}, CAT)})
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield told
    server.shutdown()
    server.server_close()
    thread.join(30)


def test_a_host_that_was_made_readable_is_fetched_from(web: Web) -> None:
    assert Storage(readable=[web.url]).get(f"{web.url}/cat.png").read() == CAT


def test_the_environment_makes_hosts_and_directories_readable(
    web: Web, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "x y").mkdir()
    (tmp_path / "x y/dog.png").write_bytes(b"dog")
    directory = (tmp_path / "x y").as_uri()
    monkeypatch.setenv("KEYNET_STORAGE_READABLE", f" {web.url}\n {directory}")

    assert Storage().get(f"{web.url}/cat.png").read() == CAT
    assert Storage().get(f"{directory}/dog.png").read() == b"dog"
    with pytest.raises(SourceRefused):
        Storage(readable=()).get(f"{web.url}/cat.png")


def test_no_right_of_this_process_is_sent_along(web: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hunter2")
    monkeypatch.setenv("KEYNET_TOKEN", "hunter2")
    Storage(readable=[web.url]).get(f"{web.url}/cat.png?a=1#part")

    assert web.asked == [
        (
            "/cat.png?a=1",
            {
                "Host": web.url.removeprefix("http://"),
                "Accept": "*/*",
                "Accept-Encoding": "identity",
                "User-Agent": "keynet",
                "Connection": "close",
            },
        )
    ]


def test_proxies_of_the_environment_are_not_asked(web: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "https_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")

    assert Storage(readable=[web.url]).get(f"{web.url}/cat.png").read() == CAT


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1:{port}/cat.png",
        "http://[::1]:{port}/cat.png",
        "http://0.0.0.0:{port}/cat.png",
        "http://[::]:{port}/cat.png",
        "http://127.1:{port}/cat.png",
        "http://2130706433:{port}/cat.png",
        "http://0x7f000001:{port}/cat.png",
        "http://0x7f.1:{port}/cat.png",
        "http://0177.0.0.1:{port}/cat.png",
        "http://[::ffff:127.0.0.1]:{port}/cat.png",
        "http://[::ffff:7f00:1]:{port}/cat.png",
        "http://[::127.0.0.1]:{port}/cat.png",
        "http://[64:ff9b::7f00:1]:{port}/cat.png",
        "http://[2002:7f00:1::]:{port}/cat.png",
        "http://localhost:{port}/cat.png",
        "http://LOCALHOST.:{port}/cat.png",
        "http://169.254.169.254:{port}/latest/meta-data/",
        "http://[fd00:ec2::254]:{port}/latest/meta-data/",
        "http://168.63.129.16:{port}/",
        "http://100.100.100.200:{port}/",
        "http://10.0.0.1:{port}/",
        "http://172.16.0.1:{port}/",
        "http://192.168.0.1:{port}/",
        "http://[fe80::1]:{port}/",
        "http://[fc00::1]:{port}/",
        "http://224.0.0.1:{port}/",
        "http://255.255.255.255:{port}/",
    ],
)
def test_addresses_inside_are_refused_even_where_every_host_is_readable(web: Web, url: str) -> None:
    storage = Storage(readable=[f"http://*:{web.port}"])

    with pytest.raises(SourceRefused, match="is no public address"):
        storage.get(url.format(port=web.port))
    assert web.asked == []


@pytest.mark.parametrize(
    "url",
    [
        "http://images.example@127.0.0.1:{port}/cat.png",
        "http://user:hunter2@127.0.0.1:{port}/cat.png",
        "http://127.0.0.1:{port}@images.example/cat.png",
        "http://127.0.0.1:{port}\\@images.example/cat.png",
        "http://127.0.0.1:{port}/cat.png\r\nX-Injected: 1",
        "http://127.0.0.1:{port}/\tcat.png",
        "http://127.0.0.1:{port}/a cat.png",
        "http://127.0.0.1:0/cat.png",
        "http://127.0.0.1:{port}x/cat.png",
        "http://127.0.0.1:99999/cat.png",
        "http:///cat.png",
        "http://[::1/cat.png",
        "http://127.0.0.1%00.example:{port}/cat.png",
        "http://127。0。0。1:{port}/cat.png",
        "http://ⓛocalhost:{port}/cat.png",
        "http://127.0.0.1:{port}/" + "a" * 9000,
    ],
)
def test_a_url_that_can_be_read_in_more_than_one_way_is_not_read_at_all(web: Web, url: str) -> None:
    storage = Storage(readable=["http://*", "https://*", f"http://*:{web.port}", web.url])

    with pytest.raises(SourceRefused) as caught:
        storage.get(url.format(port=web.port))
    assert web.asked == []
    assert "hunter2" not in str(caught.value)
    assert len(str(caught.value)) < 700


@pytest.mark.parametrize(
    "url",
    [
        "ftp://127.0.0.1/cat.png",
        "gopher://127.0.0.1:{port}/_GET%20/cat.png",
        "data://text/plain,cat",
        "dict://127.0.0.1:{port}/x",
        "ldap://127.0.0.1:{port}",
        "jar:http://127.0.0.1:{port}/cat.png",
        "file:///etc/passwd",
        "file://127.0.0.1/etc/passwd",
        "//127.0.0.1:{port}/cat.png",
        "s3://other/cat.png",
        "https://127.0.0.1:{port}/cat.png",
    ],
)
def test_other_schemes_are_refused(web: Web, url: str) -> None:
    with pytest.raises(StoreError):
        Storage(readable=[web.url]).get(url.format(port=web.port))
    assert web.asked == []


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_is_followed_where_it_may_be_read(web: Web, status: int) -> None:
    url = web.redirect("/moved", "/cat.png", status)

    assert Storage(readable=[web.url]).get(url).read() == CAT


@pytest.mark.parametrize(
    "location",
    [
        "http://127.0.0.1:1/secret",
        "http://169.254.169.254/latest/meta-data/",
        "//169.254.169.254/latest",
        "http://localhost:{port}/cat.png",
        "https://127.0.0.1:{port}/cat.png",
        "file:///etc/passwd",
        "ftp://127.0.0.1/x",
        "http://user@127.0.0.1:{port}/cat.png",
        "",
    ],
)
def test_a_redirect_to_what_may_not_be_read_is_refused(web: Web, location: str) -> None:
    url = web.redirect("/moved", location.format(port=web.port))

    with pytest.raises(SourceRefused):
        Storage(readable=[web.url, "http://*"]).get(url)
    assert {path for path, _ in web.asked} == {"/moved"}


def test_a_redirect_without_an_end_ends(web: Web) -> None:
    url = web.redirect("/moved", "/moved")

    with pytest.raises(SourceRefused, match="more than 5 times"):
        Storage(readable=[web.url]).get(url)
    assert len(web.asked) == 6


def test_a_name_is_looked_up_once_and_what_was_judged_is_connected_to(web: Web) -> None:
    """A name that answers with another address the second time leads nowhere else."""
    looked_up: list[str] = []

    def lookup(host: str, port: int, **_: Any) -> Any:
        looked_up.append(host)
        address = "127.0.0.1" if len(looked_up) == 1 else "192.0.2.1"
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port))]

    url = WebUrl.read(f"http://images.example:{web.port}/cat.png")
    data = Download(timeout_s=30, max_bytes=100, lookup=lookup).fetch(Target(url, may_be_private=True), never)

    assert bytes(data) == CAT
    assert looked_up == ["images.example"]
    assert web.asked[0][1]["Host"] == f"images.example:{web.port}"


def never(text: str) -> Target:
    raise AssertionError(text)


@pytest.mark.parametrize("host", ["nowhere.invalid", "a" * 64 + ".example", "a..b"])
def test_a_name_that_leads_nowhere_is_told(host: str) -> None:
    with pytest.raises(KeynetError, match=r"no address is known|is no name of a host"):
        Storage(readable=["http://*"]).get(f"http://{host}/cat.png")


@pytest.mark.parametrize(
    "framing", [{}, {"Transfer-Encoding": "chunked", "Content-Length": ""}], ids=["length", "chunks"]
)
def test_more_than_the_cap_is_not_read(web: Web, framing: dict[str, str]) -> None:
    body = b"9\r\n123456789\r\n0\r\n\r\n" if framing else b"123456789"
    headers = {name: value for name, value in framing.items() if value}
    web.answers["/nine"] = (200, headers, body)
    if framing:
        headers["Content-Length"] = "0"  # a length beside chunks counts for nothing

    with pytest.raises(StoreError, match="larger than the 8 bytes"):
        Storage(readable=[web.url], max_bytes=8).get(f"{web.url}/nine")
    assert Storage(readable=[web.url], max_bytes=9).get(f"{web.url}/nine").read() == b"123456789"


def test_what_is_compressed_stays_so(web: Web) -> None:
    """A few thousand bytes that expand to a gigabyte are a few thousand bytes."""
    bomb = gzip.compress(b"\0" * (1 << 22))
    web.answers["/bomb"] = (200, {"Content-Encoding": "gzip"}, bomb)

    assert Storage(readable=[web.url], max_bytes=1 << 16).get(f"{web.url}/bomb").read() == bomb


def test_a_length_that_is_claimed_is_refused_before_it_is_read(web: Web) -> None:
    web.answers["/huge"] = (200, {"Content-Length": str(1 << 50)}, b"x")

    with pytest.raises(StoreError, match="larger than"):
        Storage(readable=[web.url]).get(f"{web.url}/huge")


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, SourceRefused),
        (403, SourceRefused),
        (404, ObjectMissing),
        (410, ObjectMissing),
        (429, StoreUnavailable),
        (500, StoreUnavailable),
        (503, StoreUnavailable),
        (304, SourceRefused),
        (204, SourceRefused),
    ],
)
def test_every_status_is_one_error(web: Web, status: int, kind: type[Exception]) -> None:
    web.answers["/x"] = (status, {}, b"" if status in {204, 304} else b"no\x1b[31m way")

    with pytest.raises(StoreError, match=rf"/x answered {status}") as caught:
        Storage(readable=[web.url]).get(f"{web.url}/x?secret=1")
    assert type(caught.value) is kind
    assert "secret" not in str(caught.value)
    assert "\x1b" not in str(caught.value)


def test_a_server_that_does_not_answer_or_drips_is_left_in_time() -> None:
    def drip() -> None:
        connection, _ = listener.accept()
        with connection:
            for each in b"HTTP/1.1 200 OK\r\n" * 1000:
                try:
                    connection.sendall(bytes([each]))
                except OSError:
                    return
                time.sleep(0.02)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=drip, daemon=True)
        thread.start()
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        with pytest.raises(StoreUnavailable, match=r"within 0\.3 s") as caught:
            Storage(readable=[url], timeout_s=0.3).get(f"{url}/x")
        thread.join(30)
    assert caught.value.hint == "Storage(timeout_s=...)"


@pytest.mark.parametrize(
    "answer", [b"", b"SSH-2.0-OpenSSH\r\n\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n123"]
)
def test_an_answer_that_is_none_or_breaks_off_is_told(answer: bytes) -> None:
    def reply() -> None:
        connection, _ = listener.accept()
        with connection:
            connection.recv(65536)
            connection.sendall(answer)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=reply, daemon=True)
        thread.start()
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        with pytest.raises(StoreUnavailable, match=r"cannot be fetched|is no HTTP"):
            Storage(readable=[url], timeout_s=30).get(f"{url}/x")
        thread.join(30)


def test_a_server_that_is_away_is_told() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"

    with pytest.raises(StoreUnavailable, match="refused"):
        Storage(readable=[url]).get(f"{url}/x")
