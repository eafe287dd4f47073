"""MLflow's server as `keynet up` starts it: its database made first, whole or not at all, then its own command."""

from __future__ import annotations

import runpy
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from keynet_core import create_once

if TYPE_CHECKING:
    from collections.abc import Iterator

_LOCK_TIMEOUT_S = 120.0


def main(arguments: list[str]) -> None:
    """Prepare the home that is the first argument, and become `mlflow` with the others."""
    prepare_database(Path(arguments[0]))
    sys.argv = ["mlflow", *arguments[1:]]
    runpy.run_module("mlflow", run_name="__main__", alter_sys=True)


def prepare_database(home: Path) -> None:
    """
    Create MLflow's database in the home, once, as a training process that comes first does.

    MLflow creates its tables in many steps and without a lock: killed in between, or beside a first training, it
    would leave a file that nobody can open.
    """

    def make(path: Path) -> None:
        from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

        with _without_waiting_for_the_disk():
            SqlAlchemyStore(f"sqlite:///{path}", (home / "mlartifacts").as_uri()).engine.dispose()

    create_once(home / "mlflow.db", home / "run" / "mlflow.lock", make, timeout_s=_LOCK_TIMEOUT_S)


@contextmanager
def _without_waiting_for_the_disk() -> Iterator[None]:
    """
    Have SQLite sync nothing after each of MLflow's many steps: half of their time is waiting for it.

    The file is synced once, when it is whole and before it has its name; a crash before leaves nothing anyhow.
    """
    import sqlalchemy as sa

    def hurry(connection: Any, _record: object) -> None:
        connection.execute("PRAGMA synchronous = OFF")
        connection.execute("PRAGMA journal_mode = MEMORY")

    sa.event.listen(sa.Engine, "connect", hurry)
    try:
        yield
    finally:
        sa.event.remove(sa.Engine, "connect", hurry)


if __name__ == "__main__":
    main(sys.argv[1:])
