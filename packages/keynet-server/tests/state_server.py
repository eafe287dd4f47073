"""
A server that meets its end, or a long pause, at a step of a deployment; without HTTP, else as the real one.

    python state_server.py HOME DATABASE_URL STORE SERVING_ROOT ENGINE_URL [STEP]    acts on events until it is killed
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import time
from pathlib import Path

from keynet_core import LocalStore, Outbox
from keynet_server._claims import open_claims
from keynet_server._database import migrate, open_database
from keynet_server._deployer import Deployer
from keynet_server._engine import KServeEngine
from keynet_server._journal import Journal
from keynet_server._materialize import DirectoryRepository
from keynet_server._worker import Worker


def main() -> None:
    home, url, store, root, engine_url, *fatal = sys.argv[1:]
    logging.basicConfig(level=logging.INFO, format="%(message)s")

    def on_step(step: str) -> None:
        if step in fatal:
            os.kill(os.getpid(), signal.SIGKILL)

    database = open_database(url)
    migrate(database, Path(home) / "migrate.lock")
    packages = LocalStore(Path(store))
    deployer = Deployer(
        journal=Journal(database),
        store=packages,
        repository=DirectoryRepository(Path(root), on_step=on_step),
        engine=KServeEngine(url=engine_url),
        claims=open_claims(database),
        on_step=on_step,
    )
    worker = Worker(deployer, Outbox(Path(home) / "outbox"), packages, tick_s=0.1)
    worker.start(deployer.repair_links())
    sys.stdout.write("acts on events\n")
    sys.stdout.flush()
    while True:
        time.sleep(60)


if __name__ == "__main__":
    main()
