"""
A server that is killed: deploys the events it finds, one forked process each, and dies at the step it is told.

    python killed_server.py HOME directory:ROOT|objects:URL ASIDE ENGINE_URL    reads {event id: step} on standard input
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from keynet_core import Event, LocalStore, ModelPublished, open_store
from keynet_server._database import open_database
from keynet_server._deployer import Deployer
from keynet_server._engine import KServeEngine
from keynet_server._journal import Journal
from keynet_server._materialize import DirectoryRepository
from keynet_server._object_repository import ObjectRepository

if TYPE_CHECKING:
    from collections.abc import Callable

    from keynet_core import ObjectInfo


class DyingStore(LocalStore):
    """Tells of each file it has handed out."""

    def __init__(self, root: Path, on_step: Callable[[str], None]) -> None:
        super().__init__(root)
        self._on_step = on_step

    def get_file(self, key: str, target: Path) -> ObjectInfo:
        got = super().get_file(key, target)
        self._on_step("fetching")
        return got


def deploy(home: Path, address: str, aside: Path, url: str, event: Event, fatal: str) -> None:
    def on_step(step: str) -> None:
        if step == fatal:
            os.kill(os.getpid(), signal.SIGKILL)

    kind, _, where = address.partition(":")
    deployer = Deployer(
        journal=Journal(open_database(f"sqlite:///{home / 'keynet.db'}")),
        store=DyingStore(home / "store", on_step),
        repository=ObjectRepository(open_store(where), aside, on_step=on_step)
        if kind == "objects"
        else DirectoryRepository(Path(where), on_step=on_step),
        engine=KServeEngine(url=url),
        on_step=on_step,
    )
    if event.type == ModelPublished.TYPE:
        deployer.receive(event)
    else:
        deployer.journal.receive(event)
    deployer.deploy(deployer.journal.event(event.id))


def main() -> None:
    home, address, aside, url = Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3]), sys.argv[4]
    ends = {}
    for step, text in json.load(sys.stdin).items():
        pid = os.fork()
        if pid == 0:
            deploy(home, address, aside, url, Event.from_json(text.encode()), step)
            os._exit(0)
        ends[step] = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    json.dump(ends, sys.stdout)


if __name__ == "__main__":
    main()
