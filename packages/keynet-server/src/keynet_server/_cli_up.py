"""`keynet up`."""

from __future__ import annotations

import os
from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from keynet_server._options import examples, home_option, json_option, settings_for
from keynet_server._output import Output

if TYPE_CHECKING:
    from pathlib import Path

    from keynet_core import Endpoints


def _show(told: dict[str, str]) -> str:
    return (
        f"keynet server  {told['server']}\n"
        f"MLflow         {told['tracking']}\n"
        f"model server   {told['serving']}  {told['serving_grpc']}\n"
        "next: run a training script in this directory, then: keynet models list   (Ctrl-C here stops everything)"
    )


@examples(
    "keynet up", "keynet up --port 0 --mlflow-port 0 --serving-port 0 --grpc-port 0", "keynet up --home /srv/keynet"
)
@click.command()
@home_option
@click.option("--port", type=click.IntRange(0, 65535), help="Port of the keynet server.  [default: 8700]")
@click.option("--mlflow-port", type=click.IntRange(0, 65535), help="Port of MLflow.  [default: 5000]")
@click.option("--serving-port", type=click.IntRange(0, 65535), help="HTTP port of the model server.  [default: 8000]")
@click.option("--grpc-port", type=click.IntRange(0, 65535), help="gRPC port of the model server.  [default: 8001]")
@json_option
def up(
    home: Path | None,
    port: int | None,
    mlflow_port: int | None,
    serving_port: int | None,
    grpc_port: int | None,
    *,
    as_json: bool,
) -> None:
    """
    Start MLflow, the keynet server and the model server, and keep them running.

    Everything listens on 127.0.0.1 only. A usual port that is in use is replaced by a free one; 0 means any.
    """
    from keynet_server._up import run_up, without_directions

    output = Output(as_json)
    asked = {"port": port, "mlflow-port": mlflow_port, "serving-port": serving_port, "grpc-port": grpc_port}

    def announce(endpoints: Endpoints) -> None:
        output.data(asdict(endpoints), _show)

    run_up(settings_for(home), asked, without_directions(os.environ), say=output.say, announce=announce)
