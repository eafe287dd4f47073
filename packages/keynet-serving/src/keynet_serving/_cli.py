"""`keynet-serving`: the command line. Nothing heavy is imported before there is something to serve."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from keynet_core import KeynetError

if TYPE_CHECKING:
    from keynet_serving._run import Addresses, ListenOptions
    from keynet_serving._server import ControlMode, ModelServer

_EXIT_REFUSED = 2
_EXIT_NO_PORT = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class _Ready:
    """Who is told that the server is ready, and how."""

    file: Path | None

    def tell(self, addresses: Addresses) -> None:
        if self.file is not None:
            told = {"http": addresses.http, "grpc": addresses.grpc, "pid": os.getpid()}
            half = self.file.with_name(f".{self.file.name}.{os.getpid()}")
            half.write_text(json.dumps(told))
            half.replace(self.file)
        click.echo(f"READY http={addresses.http} grpc={addresses.grpc}", err=True)


@click.command(context_settings={"show_default": True})
@click.option(
    "--model-repository",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    required=True,
    help="The directory with one folder per model.",
)
@click.option("--host", default="127.0.0.1", help="Where to listen.")
@click.option("--allow-remote", is_flag=True, help="Take a --host that other machines can reach.")
@click.option("--http-port", default=8000, type=click.IntRange(0, 65535), help="0 is any free port.")
@click.option("--grpc-port", default=8001, type=click.IntRange(0, 65535), help="0 is any free port.")
@click.option(
    "--model-control-mode",
    type=click.Choice(["explicit", "none"]),
    default="explicit",
    help="explicit: load by request. none: load everything at start and refuse requests to load.",
)
@click.option("--load-model", multiple=True, metavar="NAME", help="Load this model at start, '*' is all; repeatable.")
@click.option("--intra-op-threads", default=0, help="Threads inside one operator; 0 leaves it to ONNX Runtime.")
@click.option("--max-queue", default=256, type=click.IntRange(1), help="Requests one model takes at once.")
@click.option("--max-body-bytes", default=512 << 20, type=click.IntRange(1), help="The largest request.")
@click.option("--ready-file", type=click.Path(path_type=Path), help="Write the addresses here as JSON when ready.")
def main(  # noqa: PLR0913 -- click passes one argument per option
    *,
    model_repository: Path,
    host: str,
    allow_remote: bool,
    http_port: int,
    grpc_port: int,
    model_control_mode: ControlMode,
    load_model: tuple[str, ...],
    intra_op_threads: int,
    max_queue: int,
    max_body_bytes: int,
    ready_file: Path | None,
) -> None:
    r"""
    Serve a Triton model repository of ONNX files over HTTP and gRPC.

    \b
    Examples:
      keynet-serving --model-repository models --load-model '*'
      keynet-serving --model-repository models --http-port 0 --grpc-port 0 --ready-file run/serving.json
    """
    from keynet_serving._http import HttpLimits
    from keynet_serving._loading import LoadOptions
    from keynet_serving._process import keep_freed_memory
    from keynet_serving._run import ListenOptions
    from keynet_serving._server import ModelServer

    keep_freed_memory()
    server = ModelServer(
        model_repository,
        control_mode=model_control_mode,
        load_options=LoadOptions(default_threads=intra_op_threads, max_queue=max_queue),
    )
    options = ListenOptions(
        host=host,
        http_port=http_port,
        grpc_port=grpc_port,
        may_be_remote=allow_remote,
        limits=HttpLimits(max_body_bytes=max_body_bytes),
    )
    code = _serve(server, options, load_model, _Ready(file=ready_file))
    # A run of ONNX Runtime cannot be interrupted, and Python would wait for its thread.
    sys.stderr.flush()
    os._exit(code)


def _serve(server: ModelServer, options: ListenOptions, models: tuple[str, ...], ready: _Ready) -> int:
    from keynet_serving._run import listening

    stopped = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopped.set())
    try:
        with listening(server, options) as addresses:
            starting = threading.Thread(
                target=_start, args=(server, models, ready, addresses), name="keynet-serving-start", daemon=True
            )
            starting.start()
            stopped.wait()
            server.close()
    except KeynetError as error:
        click.echo(str(error), err=True)
        return _EXIT_REFUSED
    except OSError as error:
        click.echo(str(error), err=True)
        return _EXIT_NO_PORT
    return 0


def _start(server: ModelServer, models: tuple[str, ...], ready: _Ready, addresses: Addresses) -> None:
    from keynet_serving._process import settle

    server.load_at_start(models)
    settle()
    for line in server.index():
        if line.state == "UNAVAILABLE":
            click.echo(f"{line.name} {line.version or '-'} {line.state}: {line.reason}", err=True)
    ready.tell(addresses)


if __name__ == "__main__":
    main()
