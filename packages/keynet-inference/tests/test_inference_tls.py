"""https to a model server: a certificate that nobody signed, and one that is trusted."""

from __future__ import annotations

import json
import ssl
import subprocess
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING

import pytest

from keynet_inference import InferenceFailed, Retry, TritonPlugin

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

ROW = {"name": "x", "datatype": "FP32", "shape": [1]}


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.tell({"inputs": [ROW], "outputs": [ROW]})

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.tell({"outputs": [ROW | {"data": [2]}]})

    def tell(self, value: object) -> None:
        body = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def url(tmp_path: Path) -> Iterator[str]:
    """A server whose certificate, `cert.pem`, it signed itself."""
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "1",
         "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost", "-keyout", "key.pem", "-out", "cert.pem"],
        cwd=tmp_path, check=True, capture_output=True,
    )  # fmt: skip
    server = ThreadingHTTPServer(("localhost", 0), Handler)
    server.daemon_threads = True
    server.handle_error = lambda *_: None  # a client that did not like the certificate
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "cert.pem", tmp_path / "key.pem")
    server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield f"https://localhost:{server.server_address[1]}"
    server.shutdown()
    server.server_close()
    thread.join(30)


def ask(url: str) -> list[float]:
    with TritonPlugin(url, "m", retry=Retry(attempts=1), timeout_s=30) as plugin:
        return list(plugin.predict({"x": [1]})["x"])


def test_a_certificate_nobody_signed_is_refused(url: str) -> None:
    with pytest.raises(InferenceFailed, match=r"certificate of https://localhost:\d+ is not trusted") as caught:
        ask(url)

    assert "SSL_CERT_FILE" in str(caught.value.hint)


def test_a_server_that_is_trusted_is_asked(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "cert.pem"))

    assert ask(url) == [2]
