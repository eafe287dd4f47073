"""Everything that takes part in a run: the engines, two servers on one database, the trainers, the watcher."""

from __future__ import annotations

import contextlib
import os
import secrets
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from chaos.ledger import Ledger, Trained
from chaos.plan import Plan
from chaos.processes import Actor, answers, wait_until
from chaos.watcher import Watcher
from engines._engine import Engine
from engines.ceph import Ceph
from engines.postgres import Postgres
from engines.rabbitmq import Broker

READY_TIMEOUT_S = 120.0


@dataclass(slots=True, kw_only=True)
class Scene:
    """Who takes part, each to be killed and started again, and where what they leave can be read."""

    plan: Plan
    directory: Path
    environ: dict[str, str]
    database_url: str
    ceph: Ceph
    broker: Broker
    postgresql: Postgres
    engine: Engine | Actor
    servers: list[Actor]
    trainers: list[Actor]
    watcher: Watcher

    def ledgers(self) -> list[Ledger]:
        """Return what each trainer writes down."""
        return [Ledger(self.directory / f"trainer-{number}.jsonl") for number in range(self.plan.trainers)]

    def trained(self) -> list[Trained]:
        """Return every item whose publication came back to its trainer."""
        return [each for ledger in self.ledgers() for each in ledger.read()]

    def trainer_homes(self) -> list[Path]:
        """Return the homes of the trainers, with their outboxes."""
        return [self.directory / f"home-trainer-{number}" for number in range(self.plan.trainers)]

    def flush_outboxes(self) -> None:
        """Finish what waits, with the command that a user is told."""
        for trainer in self.trainers:
            command = [sys.executable, "-m", "keynet_train", "outbox", "flush"]
            subprocess.run(command, env=trainer.environ, capture_output=True, timeout=300, check=False)

    def kill_engine(self) -> None:
        """End the model server, and tell the watcher before."""
        self.watcher.engine_is_away()
        self.engine.kill()
        self.watcher.engine_is_away()


@contextlib.contextmanager
def playing(plan: Plan, directory: Path) -> Iterator[Scene]:
    """Start everything, and end it whatever happens."""
    with contextlib.ExitStack() as stack:
        ceph, broker = stack.enter_context(Ceph()), stack.enter_context(Broker())
        postgresql = stack.enter_context(Postgres())
        database_url = postgresql.database()
        repository = directory / "serving"
        models = repository / "models"
        models.mkdir(parents=True)
        engine, address = _engine_of(plan, models, directory, stack)
        common = {name: value for name, value in os.environ.items() if not _is_ours(name)} | {
            **ceph.environ(),
            "PYTHONPATH": str(Path(__file__).resolve().parents[1]),
            "PYTHONUNBUFFERED": "1",
            "KEYNET_STORE": f"s3://{ceph.bucket()}",
            "RABBIT_ENDPOINT_URL": broker.vhost(),
            "RABBIT_MODEL_UPLOAD_TOPIC": "chaos.models",
            "KEYNET_ON_UNPUBLISHED": "continue",
        }
        plan_file = directory / "plan.json"
        plan.write(plan_file)
        scene = Scene(
            plan=plan,
            directory=directory,
            environ=common,
            database_url=database_url,
            ceph=ceph,
            broker=broker,
            postgresql=postgresql,
            engine=engine,
            servers=[
                _server(number, directory, common, database_url, address, repository) for number in range(plan.servers)
            ],
            trainers=[_trainer(number, directory, common, plan_file) for number in range(plan.trainers)],
            watcher=Watcher(plan, address),
        )
        for actor in (*scene.servers, *scene.trainers):
            stack.callback(actor.kill)
        yield scene


def _is_ours(name: str) -> bool:
    """Return whether a variable would change what keynet does: the run sets its own."""
    return name.startswith(("KEYNET_", "AWS_", "MLFLOW_", "RABBIT_", "TRITON_")) or name in {"MODEL_ID", "MODEL_NAME"}


def _engine_of(
    plan: Plan, models: Path, directory: Path, stack: contextlib.ExitStack
) -> tuple[Engine | Actor, tuple[str, int]]:
    if plan.engine == "triton":
        from engines.triton import TritonServer

        triton = stack.enter_context(TritonServer(models))
        parts = urlsplit(triton.url)
        return triton, (str(parts.hostname), int(parts.port or 0))
    port = free_port()
    arguments = ["keynet_serving", "--model-repository", str(models), "--http-port", str(port), "--grpc-port", "0"]
    serving = Actor("model server", arguments, os.environ, directory / "serving.log")
    serving.start()
    stack.callback(serving.kill)
    wait_until(lambda: answers(f"http://127.0.0.1:{port}/v2/health/ready"), "no model server answered", READY_TIMEOUT_S)
    return serving, ("127.0.0.1", port)


def _server(
    number: int, directory: Path, common: dict[str, str], database_url: str, address: tuple[str, int], repository: Path
) -> Actor:
    environ = common | {
        "KEYNET_HOME": str(directory / f"home-server-{number}"),
        "KEYNET_DATABASE_URL": database_url,
        "KEYNET_SERVING_REPOSITORY": str(repository),
        "KEYNET_TOKEN": secrets.token_hex(16),
        "TRITON_URL": f"http://{address[0]}:{address[1]}",
    }
    arguments = ["keynet_server", "127.0.0.1", str(free_port())]
    return Actor(f"server {number}", arguments, environ, directory / f"server-{number}.log")


def _trainer(number: int, directory: Path, common: dict[str, str], plan_file: Path) -> Actor:
    home = directory / f"home-trainer-{number}"
    arguments = ["chaos.trainer", str(plan_file), str(number), str(directory / f"trainer-{number}.jsonl")]
    return Actor(
        f"trainer {number}", arguments, common | {"KEYNET_HOME": str(home)}, directory / f"trainer-{number}.log"
    )


def free_port() -> int:
    """Return a port of loopback that nobody has now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
