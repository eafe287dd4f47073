"""A home whose MLflow database was made once: making it takes a second, and most tests are about something else."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def mlflow_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return an empty MLflow database, as keynet itself makes it."""
    from keynet_train._tracking import prepare_database

    home = tmp_path_factory.mktemp("template")
    prepare_database(home)
    return home / "mlflow.db"


@pytest.fixture
def clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No variable that keynet reads is set, and the working directory is empty."""
    for name in list(os.environ):
        if name.startswith(("KEYNET_", "MLFLOW_TRACKING", "AWS_", "MODEL_")):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def home(tmp_path: Path, mlflow_database: Path, clean_environment: None, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a KEYNET_HOME with an MLflow database and nothing else."""
    home = tmp_path / "home"
    home.mkdir(mode=0o700)
    shutil.copyfile(mlflow_database, home / "mlflow.db")
    monkeypatch.setenv("KEYNET_HOME", str(home))
    return home
