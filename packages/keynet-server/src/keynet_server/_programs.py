"""What `keynet up` runs: the command, the surroundings and the health check of each engine."""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from keynet_core import MissingDependency
from keynet_server._children import Program
from keynet_server._ports import HOST

if TYPE_CHECKING:
    from collections.abc import Mapping

    from keynet_core import Secret
    from keynet_server._ports import Ports

_LOOPBACK = "127.0.0.1,localhost,::1"
_SECRETS = {"KEYNET_TOKEN", "KEYNET_DATABASE_URL", "RABBIT_ENDPOINT_URL"}
"""What the server alone may know."""


def require_engines() -> None:
    """
    Check that the embedded engines are installed, without importing them.

    Raises:
        MissingDependency: One is not.

    """
    for module in ("mlflow", "keynet_serving"):
        if find_spec(module) is None:
            raise MissingDependency(
                f"keynet up starts {module}, which is not installed", hint="pip install 'keynet-server[up]'"
            )


def mlflow_program(home: Path, ports: Ports, environ: Mapping[str, str]) -> Program:
    """Return MLflow's server on the home's SQLite: one process that answers, no job runner, no telemetry."""
    # A user's MLFLOW_* variables are for clients; several of them are also options of the server.
    own = {name: value for name, value in _without_secrets(environ).items() if not name.startswith("MLFLOW_")}
    own |= {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
    artifacts = (home / "mlartifacts").as_uri()
    options = {
        "--host": HOST,
        "--port": str(ports.mlflow),
        "--workers": "1",
        "--backend-store-uri": f"sqlite:///{home / 'mlflow.db'}",
        # A file address, the one that training on the same SQLite writes to without this server: an experiment
        # made on one way can be used on the other.
        "--default-artifact-root": artifacts,
        "--artifacts-destination": artifacts,
    }
    return Program(
        name="MLflow",
        command=(
            sys.executable,
            "-P",
            "-m",
            "keynet_server._mlflow",
            str(home),
            "server",
            *_flatten(options),
            "--serve-artifacts",
        ),
        environ=_local(own),
        directory=home,
        log=home / "logs" / "mlflow.log",
        health_url=f"http://{HOST}:{ports.mlflow}/health",
        timeout_s=180.0,
    )


def serving_program(home: Path, ports: Ports, environ: Mapping[str, str]) -> Program:
    """Return the embedded model server on the home's serving repository."""
    options = {
        "--model-repository": str(home / "serving" / "models"),
        "--host": HOST,
        "--http-port": str(ports.serving),
        "--grpc-port": str(ports.grpc),
        "--model-control-mode": "explicit",
        "--load-model": "*",
    }
    return Program(
        name="model server",
        command=(sys.executable, "-P", "-m", "keynet_serving", *_flatten(options)),
        environ=_local(_without_secrets(environ)),
        directory=home,
        log=home / "logs" / "serving.log",
        health_url=f"http://{HOST}:{ports.serving}/v2/health/live",
    )


def server_program(home: Path, ports: Ports, environ: Mapping[str, str], token: Secret) -> Program:
    """Return the keynet server itself; its token travels in its environment, which other users cannot read."""
    own = {
        "KEYNET_HOME": str(home),
        "KEYNET_TOKEN": token.reveal(),
        "TRITON_URL": f"http://{HOST}:{ports.serving}",
        "KEYNET_SERVING_REPOSITORY": str(home / "serving"),
    }
    return Program(
        name="keynet server",
        command=(sys.executable, "-P", "-m", "keynet_server", HOST, str(ports.server), f"http://{HOST}:{ports.mlflow}"),
        environ=_local({**environ, **own}),
        directory=Path.cwd(),  # a relative KEYNET_STORE means the directory the user is in
        log=home / "logs" / "server.log",
        health_url=f"http://{HOST}:{ports.server}/healthz",
    )


def _local(environ: Mapping[str, str]) -> dict[str, str]:
    """Return an environment in which loopback is never asked for through a proxy."""
    given = environ.get("no_proxy") or environ.get("NO_PROXY")
    without = f"{given},{_LOOPBACK}" if given else _LOOPBACK
    return {**environ, "NO_PROXY": without, "no_proxy": without, "PYTHONUNBUFFERED": "1"}


def _without_secrets(environ: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in environ.items() if name not in _SECRETS}


def _flatten(options: Mapping[str, str]) -> list[str]:
    return [text for pair in options.items() for text in pair]
