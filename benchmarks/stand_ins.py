"""Servers that are no model server: what the client of the serving benchmark could reach on this machine at best."""

from __future__ import annotations

import contextlib
import json
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from onnx_models import to_session

if TYPE_CHECKING:
    from collections.abc import Iterator

EMPTY = "HTTP, empty application on uvicorn"
FLOOR = "HTTP, fastest conceivable server"
FLOOR_RUN = "HTTP, fastest conceivable server with session.run"


def stand_ins(repository: Path) -> dict[str, tuple[str, ...]]:
    """Return what is asked in place of a model server, each a process of this file."""
    return {
        EMPTY: ("empty",),
        FLOOR: ("floor",),
        **{
            f"{FLOOR_RUN} {model}": ("floor", str(repository / model / "1" / "model.onnx"), *map(str, shape))
            for model, shape in {"mlp": (1, 16), "conv": (1, 3, 224, 224)}.items()
        },
    }


def run_stand_in(port: str, kind: str, *model: str) -> None:
    if kind == "empty":
        run_empty_server(int(port))
    else:
        run_floor_server(int(port), *model)


def made_up_answer() -> tuple[bytes, int]:
    """Return a body as tritonclient takes it, and the length of its JSON."""
    output = {"name": "output_0", "datatype": "FP32", "shape": [1, 10], "parameters": {"binary_data_size": 40}}
    head = json.dumps({"model_name": "none", "model_version": "1", "outputs": [output]}).encode()
    return head + bytes(40), len(head)


def run_empty_server(port: int) -> None:
    import uvicorn

    body, length = made_up_answer()
    headers = [(b"content-length", b"%d" % len(body)), (b"inference-header-content-length", b"%d" % length)]

    async def app(_: Any, receive: Any, send: Any) -> None:
        while (await receive()).get("more_body", False):
            pass
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    uvicorn.run(app, port=port, log_level="error", lifespan="off", server_header=False, date_header=False)


def run_floor_server(port: int, path: str = "", *shape: str) -> None:
    """Answer every request with the same bytes, one connection after the other, behind a run where there is a model."""
    body, length = made_up_answer()
    lengths = f"Content-Length: {len(body)}\r\nInference-Header-Content-Length: {length}\r\n"
    answer = f"HTTP/1.1 200 OK\r\n{lengths}\r\n".encode() + body
    session = to_session(Path(path)) if path else None
    sizes = tuple(map(int, shape))
    page = bytearray(1 << 20)
    with socket.create_server(("127.0.0.1", port)) as listener:
        while True:
            connection, _ = listener.accept()
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with connection:
                while size := receive(connection, page):
                    if session is not None:
                        data = np.frombuffer(memoryview(page)[:size], np.uint8)[-4 * int(np.prod(sizes)) :]
                        session.run(None, {"input_0": data.view(np.float32).reshape(sizes)})
                    connection.sendall(answer)


def receive(connection: socket.socket, page: bytearray) -> int:
    """Read one request and return its size, or 0 at the end."""
    view = memoryview(page)
    filled = connection.recv_into(view)
    if not filled:
        return 0
    end = page.find(b"\r\n\r\n") + 4
    told = bytes(view[:end]).lower().partition(b"\r\ncontent-length: ")[2]
    size = end + int(told.partition(b"\r\n")[0])
    while filled < size:
        filled += connection.recv_into(view[filled:])
    return size


@contextlib.contextmanager
def stand_in(kind: str, *model: str) -> Iterator[str]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    process = subprocess.Popen([sys.executable, __file__, str(port), kind, *model])
    try:
        deadline = time.monotonic() + 30
        while not is_listening(port):
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"the server {kind!r} did not start")
            time.sleep(0.02)
        yield f"127.0.0.1:{port}"
    finally:
        process.kill()
        process.wait()


def is_listening(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


if __name__ == "__main__":
    run_stand_in(*sys.argv[1:])
