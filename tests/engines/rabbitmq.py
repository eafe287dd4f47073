"""RabbitMQ, from Debian's packages."""

from __future__ import annotations

import contextlib
import itertools
import secrets
import time
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from engines._engine import Engine, missing_programs
from engines._errors import EngineFailed
from engines._ports import is_open

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

# The programs themselves: those in /usr/sbin change to another user first.
BINARIES = Path("/usr/lib/rabbitmq/bin")
USER, PASSWORD = "keynet", "keynet-tests"
DISK_FREE_LIMIT_BYTES = 50_000_000

CONFIGURATION = """\
listeners.tcp.1 = 127.0.0.1:{port}
default_user = {user}
default_pass = {password}
disk_free_limit.absolute = {disk_free_limit}
vm_memory_high_watermark.absolute = 1GB
raft.wal_max_size_bytes = 67108864
log.console = true
log.console.level = warning
log.file = false
"""

# No busy waiting: it would take the processors from what is tested.
ERLANG = "-kernel inet_dist_use_interface {127,0,0,1} +S 2:2 +sbwt none +sbwtdcpu none +sbwtdio none"


class Broker(Engine):
    """One RabbitMQ node with an epmd of its own; every `vhost()` is a new one."""

    NAME: ClassVar[str] = "RabbitMQ"
    PORT_COUNT: ClassVar[int] = 3

    @classmethod
    def is_installed(cls) -> str | None:
        programs = [str(BINARIES / name) for name in ("rabbitmq-server", "rabbitmqctl")]
        return missing_programs("epmd", "erl_call", *programs)

    def __init__(self) -> None:
        super().__init__()
        self._numbers = itertools.count(1)

    @property
    def url(self) -> str:
        """The virtual host `/`, which all tests share."""
        return f"amqp://{USER}:{PASSWORD}@127.0.0.1:{self.port}/%2F"

    def vhost(self) -> str:
        """Create a virtual host and return its URL."""
        name = f"v{next(self._numbers)}"
        every = '<<".*">>'
        self.evaluate(
            f'ok = rabbit_vhost:add(<<"{name}">>, <<"tests">>), rabbit_auth_backend_internal:set_permissions('
            f'<<"{USER}">>, <<"{name}">>, {every}, {every}, {every}, <<"tests">>).'
        )
        return f"amqp://{USER}:{PASSWORD}@127.0.0.1:{self.port}/{name}"

    def ctl(self, *arguments: str) -> str:
        """Run rabbitmqctl and return what it said; it takes a good part of a second."""
        return self._call([str(BINARIES / "rabbitmqctl"), "--quiet", *arguments])

    def evaluate(self, expression: str, timeout_s: float = 60) -> str:
        """Evaluate Erlang in the broker, in some milliseconds, and return the value as Erlang writes it."""
        said = self._ask_erlang("-e", text=expression + "\n", timeout_s=timeout_s)
        if not (said.startswith("{ok, ") and said.endswith("}")):
            raise EngineFailed(f"{self.NAME} answered {said} to {expression}")
        return said.removeprefix("{ok, ").removesuffix("}")

    @contextlib.contextmanager
    def disk_alarm(self) -> Iterator[None]:
        """Let the broker believe that its disk is full: it takes nothing from publishers until the block ends."""
        try:
            self._limit_disk(10**15, alarm="true")
            yield
        finally:
            if self.is_running:
                self._limit_disk(DISK_FREE_LIMIT_BYTES, alarm="false")

    def _limit_disk(self, limit_bytes: int, alarm: str) -> None:
        self.evaluate(f"rabbit_disk_monitor:set_disk_free_limit({limit_bytes}).")
        raised = "lists:member({{resource_limit, disk, node()}, []}, rabbit_alarm:get_alarms())."
        self._await(lambda: self.evaluate(raised) == alarm, timeout_s=30)

    def kill(self) -> None:
        """
        End every process with SIGKILL, and keep its data.

        RabbitMQ 3.10 writes the directory of its quorum queues up to 3 s late: one declared just before the end has no
        leader ever after. No client can do anything about it, so what was declared is written first.
        """
        if self.is_running:
            with contextlib.suppress(EngineFailed):
                self.evaluate("[dets:sync(Table) || Table <- dets:all()].", timeout_s=5)  # a frozen one is silent
        super().kill()

    @property
    def _node(self) -> str:
        return f"keynet{self.port}@localhost"

    def _environ(self) -> dict[str, str]:
        return super()._environ() | {
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            "ERL_EPMD_PORT": str(self.port + 2),
            "RABBITMQ_CONF_ENV_FILE": "/dev/null",
            "RABBITMQ_CONFIG_FILE": str(self.directory / "rabbitmq.conf"),
            "RABBITMQ_DIST_PORT": str(self.port + 1),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(self.directory / "enabled_plugins"),
            "RABBITMQ_LOG_BASE": str(self.directory / "log"),
            "RABBITMQ_MNESIA_BASE": str(self.directory / "data"),
            "RABBITMQ_NODENAME": self._node,
            "RABBITMQ_PID_FILE": str(self.directory / "pid"),
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": ERLANG,
        }

    def _prepare(self) -> None:
        files: Mapping[str, str] = {
            ".erlang.cookie": secrets.token_hex(16),
            "enabled_plugins": "[].",
            "rabbitmq.conf": CONFIGURATION.format(
                port=self.port, user=USER, password=PASSWORD, disk_free_limit=DISK_FREE_LIMIT_BYTES
            ),
        }
        for name, text in files.items():
            path = self.directory / name
            path.write_text(text, encoding="utf-8")
            path.chmod(0o400)

    def _launch(self) -> None:
        # Its own epmd: one that the node starts itself would stay behind.
        self._run("epmd", ["epmd", "-port", str(self.port + 2), "-address", "127.0.0.1"])
        self._await(lambda: is_open(self.port + 2))
        self._run("rabbitmq", [str(BINARIES / "rabbitmq-server")])
        self._await(lambda: is_open(self.port) and self._has_booted())

    def _has_booted(self) -> bool:
        """Say whether the node answers that it runs; after a kill, its port may be open before it takes calls."""
        try:
            return self._ask_erlang("-a", "rabbit is_running []", tries=1) == "true"
        except EngineFailed:
            return False

    def _ask_erlang(self, *arguments: str, text: str = "", timeout_s: float = 60, tries: int = 5) -> str:
        """Have the node do something, which it has not when it refuses the connection, as a busy one may."""
        cookie = (self.directory / ".erlang.cookie").read_text(encoding="ascii")
        command = ["erl_call", "-sname", self._node, "-c", cookie, *arguments]
        for _ in range(tries - 1):
            try:
                return self._call(command, text=text, timeout_s=timeout_s)
            except EngineFailed as error:
                if "failed to connect" not in str(error) or not self.is_running:
                    raise
            time.sleep(1)
        return self._call(command, text=text, timeout_s=timeout_s)
