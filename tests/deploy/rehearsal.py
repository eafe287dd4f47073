"""
compose.yaml without containers: each service that is an engine here is asked in its place, ours run as it says.

What a service is told stays as it stands in the file, but for the addresses, which are those of this machine.
"""

from __future__ import annotations

import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from contextlib import contextmanager
from pathlib import Path

from deploy.files import DEPLOY, dev_variables, health, instructions, read_compose

BIN = Path(sys.executable).parent
OURS = ("KEYNET", "MLFLOW", "AWS", "RABBIT", "TRITON", "MODEL", "POSTGRES")
DEADLINE_S = 120.0


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


class Rehearsal:
    """The services of compose.yaml, on this machine."""

    def __init__(self, directory: Path, *, ceph, rabbitmq, postgresql: dict[str, str]) -> None:
        broker = re.fullmatch(r"amqp://keynet:(?P<password>[^@]+)@(?P<address>[\d.:]+)/%2F", rabbitmq.url)
        self.variables = dev_variables() | {
            "S3_ACCESS_KEY": ceph.access_key,
            "S3_SECRET_KEY": ceph.secret_key,
            "RABBIT_PASSWORD": broker["password"],
        }
        self.services = read_compose(self.variables)["services"]
        self.directory = directory
        self._postgresql = postgresql
        self._rabbitmq = rabbitmq
        self.addresses = {
            "minio:9000": ceph.url.removeprefix("http://"),
            "postgresql:5432": f"{postgresql['PGHOST']}:{postgresql['PGPORT']}",
            "rabbitmq:5672": broker["address"],
        }

    def here(self, text: object) -> str:
        """Return what a service is told, with this machine's addresses."""
        told = str(text)
        for there, here in self.addresses.items():
            told = told.replace(there, here)
        return told

    def environ(self, service: str) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith(OURS)}
        told = self.services[service].get("environment", {})
        return kept | {name: self.here(value) for name, value in told.items()}

    def command(self, service: str) -> list[str]:
        told = self.services[service]["command"]
        return [self.here(each) for each in (shlex.split(told) if isinstance(told, str) else told)]

    @contextmanager
    def virtual_host(self):
        """Have the broker's virtual host, which its image makes at the first start."""
        told = self.services["rabbitmq"]["environment"]
        name, user = told["RABBITMQ_DEFAULT_VHOST"], told["RABBITMQ_DEFAULT_USER"]
        self._rabbitmq.ctl("add_vhost", name)
        self._rabbitmq.ctl("set_permissions", "--vhost", name, user, ".*", ".*", ".*")
        yield
        self._rabbitmq.ctl("delete_vhost", name)

    def make_databases(self) -> None:
        environ = self.environ("postgresql") | self._postgresql
        subprocess.run(["bash", str(DEPLOY / "postgresql/databases.sh")], env=environ, check=True, timeout=60)

    def make_buckets(self) -> None:
        _, script = self.services["buckets"]["entrypoint"]
        command = [sys.executable, str(DEPLOY / Path(script).name), *self.command("buckets")]
        subprocess.run(command, env=self.environ("buckets"), check=True, timeout=120)

    @contextmanager
    def triton(self, engine):
        repository, *arguments = (each for each in self.command("triton")[1:])
        told = {name: value for name, value in self.environ("triton").items() if name.startswith("AWS")}
        with engine.serve(repository.removeprefix("--model-repository="), *arguments, environ=told) as server:
            self.addresses["triton:8000"] = server.url.removeprefix("http://")
            yield server

    @contextmanager
    def mlflow(self):
        port = free_port()
        # The command is the image's; the file gives the rest as variables.
        [command] = [
            re.findall(r'"([^"]*)"', rest) for word, rest in instructions("Dockerfile.mlflow") if word == "CMD"
        ]
        on_this = {"0.0.0.0": "127.0.0.1", "5000": str(port)}
        full = [str(BIN / "mlflow"), *(on_this.get(each, each) for each in command)]
        with self._running(
            "mlflow", full, self.environ("mlflow"), f"http://127.0.0.1:{port}{health(self.services['mlflow'])[1]}"
        ) as process:
            # Each of its processes opens the database at its first request, which a training would not wait for.
            for _ in range(8):
                assert answers(f"http://127.0.0.1:{port}/api/2.0/mlflow/experiments/get?experiment_id=0", 60)
            self.addresses["mlflow:5000"] = f"127.0.0.1:{port}"
            yield process

    @contextmanager
    def keynet(self, name: str):
        """Run a keynet server with a home of its own; yield its address and its process."""
        port = free_port()
        on_this = {"0.0.0.0": "127.0.0.1", "8700": str(port)}
        command = [str(BIN / "keynet"), *(on_this.get(each, each) for each in self.command("keynet"))]
        environ = self.environ("keynet") | {"KEYNET_HOME": str(self.directory / name)}
        with self._running(
            name, command, environ, f"http://127.0.0.1:{port}{health(self.services['keynet'])[1]}"
        ) as process:
            yield f"http://127.0.0.1:{port}", process

    @contextmanager
    def _running(self, name: str, command: list[str], environ: dict[str, str], health_url: str):
        log = self.directory / f"{name}.log"
        with log.open("wb") as told:
            process = subprocess.Popen(command, env=environ, stdout=told, stderr=told, start_new_session=True)
        try:
            deadline = time.monotonic() + DEADLINE_S
            while not answers(health_url):
                assert process.poll() is None, log.read_text()[-8000:]
                assert time.monotonic() < deadline, log.read_text()[-8000:]
                time.sleep(0.1)
            yield process
        finally:
            end(process)


def answers(url: str, timeout_s: float = 10) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=timeout_s) as answer:
            return answer.status == 200
    except (urllib.error.URLError, OSError):
        return False


def end(process: subprocess.Popen[bytes]) -> None:
    """End a program and what it started, first gently."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, number)
            process.wait(30)
        except (ProcessLookupError, subprocess.TimeoutExpired):
            continue
    process.wait()
