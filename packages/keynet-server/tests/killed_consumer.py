"""
A server that is killed while it takes an event: between the journal's commit and the acknowledgement.

    python killed_consumer.py HOME RABBIT_URL
"""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

from keynet_core import LocalStore, RabbitAddress, Secret
from keynet_server._broker import Broker
from keynet_server._consumer import Consumer
from keynet_server._database import open_database
from keynet_server._deployer import Deployer
from keynet_server._engine import KServeEngine
from keynet_server._journal import Journal
from keynet_server._materialize import DirectoryRepository


def main() -> None:
    home, url = Path(sys.argv[1]), sys.argv[2]
    deployer = Deployer(
        journal=Journal(open_database(f"sqlite:///{home / 'keynet.db'}")),
        store=LocalStore(home / "store"),
        repository=DirectoryRepository(home / "serving"),
        engine=KServeEngine(url="http://127.0.0.1:9"),
        on_step=lambda _step: os.kill(os.getpid(), signal.SIGKILL),
    )
    broker = Broker(address=RabbitAddress.from_url(Secret(url)), topic="keynet.models")
    Consumer(broker, deployer.receive, on_taken=lambda: None).start()
    time.sleep(120)


if __name__ == "__main__":
    main()
