"""Say which engines are installed: `python -m engines` with `tests` on the path; `make engines` ends with it."""

from __future__ import annotations

import sys

from engines.ceph import Ceph
from engines.postgres import Postgres
from engines.rabbitmq import Broker
from engines.swift import Swift
from engines.triton import TritonServer

ENGINES = (Ceph, Swift, Broker, Postgres, TritonServer)


def main() -> int:
    """Print a line per engine; return 1 when one is missing."""
    missing = {kind.NAME: kind.is_installed() for kind in ENGINES}
    for name, reason in missing.items():
        print(f"  {name:12} {reason or 'installed'}")
    return 1 if any(missing.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
