"""
MLflow's database in the home: made once, whole or not at all, and in milliseconds when its schema is known.

MLflow makes an empty database by going through every migration it ever had, which takes a second. What comes out is
always the same, so it is kept here as a script, `mlflow_schema.sql`, with a fingerprint of the migrations it came from.
An MLflow with other migrations makes its database itself.

    python -m keynet_train._mlflow_database      write the script again, from the MLflow that is installed
"""

from __future__ import annotations

import hashlib
import sqlite3
import tempfile
import time
from contextlib import closing
from pathlib import Path

from keynet_core import create_once
from keynet_train._disk import noticing_full_disk

SCHEMA = Path(__file__).with_name("mlflow_schema.sql")
_FINGERPRINT = "-- migrations: "
_LOCK_TIMEOUT_S = 60.0


def default_uri(home: Path) -> str:
    """Return the tracking address of a home."""
    return f"sqlite:///{home / 'mlflow.db'}"


def artifact_root(home: Path) -> str:
    """Return where MLflow keeps the artifacts of a home."""
    return (home / "mlartifacts").as_uri()


def prepare_database(home: Path) -> None:
    """
    Create MLflow's database in the home, once.

    MLflow creates its tables in many steps and without a lock; two first runs at once, or one that is killed, would
    leave a file that no later run can open.

    Raises:
        HomeFull: The disk of the home has no room for it.
    """

    def make(path: Path) -> None:
        if schema := known_schema():
            make_from_schema(path, schema, artifact_root(home))
        else:
            make_by_migrations(path, artifact_root(home))

    with noticing_full_disk(home):
        create_once(home / "mlflow.db", home / "run" / "mlflow.lock", make, timeout_s=_LOCK_TIMEOUT_S)


def known_schema() -> str | None:
    """Return the script that makes what the installed MLflow would make, or None when that is not known."""
    script = SCHEMA.read_text(encoding="utf-8")
    return script if script.startswith(f"{_FINGERPRINT}{_fingerprint()}\n") else None


def make_from_schema(path: Path, schema: str, artifacts: str) -> None:
    """Write the database with a script."""
    now_ms = time.time_ns() // 1_000_000
    with closing(sqlite3.connect(path)) as database:
        database.executescript(schema)
        with database:
            database.execute(
                "UPDATE experiments SET artifact_location = ?, creation_time = ?, last_update_time = ?",
                (f"{artifacts}/0", now_ms, now_ms),
            )


def make_by_migrations(path: Path, artifacts: str) -> None:
    """Have MLflow write the database."""
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    SqlAlchemyStore(f"sqlite:///{path}", artifacts).engine.dispose()


def schema_of_installed() -> str:
    """Have the installed MLflow make a database, and return the script that makes the same."""
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory, "mlflow.db")
        make_by_migrations(path, "file:///mlartifacts")
        with closing(sqlite3.connect(path)) as database:
            return "\n".join([f"{_FINGERPRINT}{_fingerprint()}", *database.iterdump(), ""])


def _fingerprint() -> str:
    """Return what tells one set of migrations from another: their names, each of which carries a random number."""
    import mlflow

    versions = Path(str(mlflow.__file__)).parent / "store" / "db_migrations" / "versions"
    names = sorted(each.name for each in versions.glob("*.py"))
    return hashlib.sha256("\n".join(names).encode()).hexdigest()


if __name__ == "__main__":
    SCHEMA.write_text(schema_of_installed(), encoding="utf-8")
