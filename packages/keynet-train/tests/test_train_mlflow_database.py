"""MLflow's database in the home: the one MLflow would have made, made at once, whole or not at all."""

from __future__ import annotations

import os
import shutil
import signal
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import mlflow
import pytest

from keynet_train import _mlflow_database as database


def contents(path: Path) -> tuple[list[tuple[object, ...]], dict[str, list[tuple[object, ...]]]]:
    """Return the schema, and the rows of every table; moments are left out."""
    with closing(sqlite3.connect(path)) as connection:
        schema = connection.execute(
            "SELECT type, name, tbl_name, sql FROM sqlite_master ORDER BY type, name"
        ).fetchall()
        tables = [name for kind, name, *_ in schema if kind == "table"]
        rows = {name: connection.execute(f'SELECT * FROM "{name}"').fetchall() for name in tables}
    schema = [(*named, lines_of(sql or "")) for *named, sql in schema]
    return schema, {name: [tuple(map(without_time, row)) for row in found] for name, found in rows.items()}


def lines_of(sql: str) -> list[str]:
    """Return a definition's lines in one order: MLflow writes the constraints of a table as a set gives them."""
    return sorted(line.strip().rstrip(",") for line in sql.splitlines())


def without_time(value: object) -> object:
    return "a moment" if isinstance(value, int) and value > 1_500_000_000_000 else value


def test_the_known_schema_is_that_of_the_installed_mlflow():
    """If it is not: python -m keynet_train._mlflow_database, when constraints.txt has another MLflow."""
    assert database.known_schema() is not None


def test_the_database_made_at_once_is_the_one_mlflow_makes(tmp_path):
    schema = database.known_schema()
    assert schema is not None
    database.make_from_schema(tmp_path / "quick.db", schema, "file:///artifacts")
    database.make_by_migrations(tmp_path / "slow.db", "file:///artifacts")
    quick, slow = contents(tmp_path / "quick.db"), contents(tmp_path / "slow.db")
    assert quick[0] == slow[0]
    assert quick[1] == slow[1]
    assert quick[1]["experiments"][0][:3] == (0, "Default", "file:///artifacts/0")


def test_the_script_is_written_again_from_the_installed_mlflow(tmp_path):
    script = database.schema_of_installed()
    assert script.partition("\n")[0] == database.SCHEMA.read_text().partition("\n")[0]
    database.make_from_schema(tmp_path / "again.db", script, "file:///artifacts")
    database.make_from_schema(tmp_path / "kept.db", database.SCHEMA.read_text(), "file:///artifacts")
    assert contents(tmp_path / "again.db") == contents(tmp_path / "kept.db")


def test_an_mlflow_with_other_migrations_makes_its_database_itself(tmp_path, monkeypatch, clean_environment):
    stale = tmp_path / "stale.sql"
    stale.write_text("-- migrations: those of another MLflow\nCREATE TABLE wrong (it);\n")
    monkeypatch.setattr(database, "SCHEMA", stale)
    home = tmp_path / "home"
    home.mkdir()
    database.prepare_database(home)
    schema, rows = contents(home / "mlflow.db")
    assert "wrong" not in [name for _, name, *_ in schema]
    assert rows["experiments"][0][2] == f"{(home / 'mlartifacts').as_uri()}/0"


def test_mlflows_own_upgrade_has_nothing_to_do(tmp_path, clean_environment):
    home = tmp_path / "home"
    home.mkdir()
    database.prepare_database(home)
    before = contents(home / "mlflow.db")
    command = [sys.executable, "-m", "mlflow", "db", "upgrade", database.default_uri(home)]
    subprocess.run(command, check=True, capture_output=True, timeout=120)
    assert contents(home / "mlflow.db") == before


def test_a_database_that_is_there_is_left_alone(tmp_path, mlflow_database):
    home = tmp_path / "home"
    home.mkdir()
    shutil.copyfile(mlflow_database, home / "mlflow.db")
    mlflow.MlflowClient(database.default_uri(home)).create_experiment("mine")
    database.prepare_database(home)
    assert mlflow.MlflowClient(database.default_uri(home)).get_experiment_by_name("mine")


KILLED = """
import os, signal, sqlite3, sys
from pathlib import Path
from keynet_train import _mlflow_database as database
real = database.make_from_schema
def killed(path, schema, artifacts):
    real(path, schema[: schema.rindex("COMMIT")], artifacts) if sys.argv[2] == "half" else real(path, schema, artifacts)
    os.kill(os.getpid(), signal.SIGKILL)
database.make_from_schema = killed
database.prepare_database(Path(sys.argv[1]))
"""


@pytest.mark.parametrize("when", ["half", "whole"])
def test_killed_while_it_is_made_and_made_again(tmp_path, mlflow_database, when):
    home = tmp_path / "home"
    home.mkdir()
    done = subprocess.run([sys.executable, "-c", KILLED, home, when], timeout=60, env=os.environ)
    assert done.returncode == -signal.SIGKILL
    assert not (home / "mlflow.db").exists()
    database.prepare_database(home)
    assert contents(home / "mlflow.db")[0] == contents(mlflow_database)[0]
