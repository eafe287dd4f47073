"""MLflow as the way of a model uses it: two at once, nested, with a user who does as they like."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from typing import TYPE_CHECKING

import mlflow
import pytest

from keynet_core import read_settings
from keynet_train import _tracking as tracking
from keynet_train._errors import TrackingFailed
from keynet_train._settings import TrainSettings, open_package_store, to_experiment_name

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def settings(tmp_path: Path) -> TrainSettings:
    return read_settings(TrainSettings, {}, home=tmp_path / "home")


@pytest.fixture(autouse=True)
def _no_run_is_left_open():
    yield
    assert mlflow.active_run() is None


def test_a_database_and_artifacts_appear_in_the_home_and_nowhere_else(settings, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    experiment = tracking.open_experiment(settings, "first")
    with tracking.active_run(experiment, None) as run:
        tracking.log_text(run, "notes/a.txt", "hello")
    assert {each.name for each in tmp_path.iterdir()} == {"home"}
    assert (settings.state_directory / "mlflow.db").exists()
    assert list((settings.state_directory / "mlartifacts").rglob("a.txt"))
    assert settings.state_directory.stat().st_mode & 0o777 == 0o700


def test_another_home_in_the_same_process_is_used(settings, tmp_path):
    tracking.open_experiment(settings, "first")
    other = read_settings(TrainSettings, {}, home=tmp_path / "other")
    tracking.open_experiment(other, "first")
    assert str(tmp_path / "other") in mlflow.get_tracking_uri()


def test_first_runs_of_several_processes_share_one_whole_database(settings, tmp_path):
    program = textwrap.dedent(f"""
        from pathlib import Path
        from keynet_core import read_settings
        from keynet_train import _tracking as tracking
        from keynet_train._settings import TrainSettings
        settings = read_settings(TrainSettings, {{}}, home=Path({str(settings.home)!r}))
        print(tracking.open_experiment(settings, "shared").id)
    """)
    environ = {k: v for k, v in os.environ.items() if not k.startswith("MLFLOW_")}
    children = [
        subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, env=environ, text=True, cwd=tmp_path)
        for _ in range(3)
    ]
    answers = [child.communicate(timeout=120)[0].strip() for child in children]
    assert [child.returncode for child in children] == [0, 0, 0]
    assert len(set(answers)) == 1
    assert not list(settings.home.glob(".*.part"))


def test_a_deleted_experiment_is_refused_with_the_command_that_restores_it(settings):
    experiment = tracking.open_experiment(settings, "gone")
    mlflow.MlflowClient().delete_experiment(experiment.id)
    with pytest.raises(TrackingFailed, match="restore --experiment-id"):
        tracking.open_experiment(settings, "gone")


def test_a_run_that_raises_is_failed(settings):
    experiment = tracking.open_experiment(settings, "first")
    with pytest.raises(ZeroDivisionError), tracking.active_run(experiment, "named") as run:
        raise ZeroDivisionError
    found = mlflow.get_run(run.id).info
    assert (found.status, found.run_name) == ("FAILED", "named")


def test_a_run_nests_in_the_active_one_of_another_experiment(settings):
    outer_experiment = tracking.open_experiment(settings, "outer")
    inner_experiment = tracking.open_experiment(settings, "inner")
    with mlflow.start_run(experiment_id=outer_experiment.id) as outer:
        with tracking.active_run(inner_experiment, None) as run:
            mlflow.log_metric("m", 1)
        assert mlflow.active_run().info.run_id == outer.info.run_id
    found = mlflow.get_run(run.id)
    assert found.data.tags["mlflow.parentRunId"] == outer.info.run_id
    assert found.info.experiment_id == inner_experiment.id
    assert found.data.metrics == {"m": 1.0}


def test_a_run_named_by_the_environment_is_the_parent(settings, monkeypatch):
    experiment = tracking.open_experiment(settings, "inner")
    parent = mlflow.MlflowClient().create_run("0")
    monkeypatch.setenv("MLFLOW_RUN_ID", parent.info.run_id)
    with tracking.active_run(experiment, None) as run:
        pass
    assert mlflow.get_run(run.id).data.tags["mlflow.parentRunId"] == parent.info.run_id
    assert mlflow.get_run(run.id).info.experiment_id == experiment.id


@pytest.mark.parametrize("mischief", [mlflow.end_run, lambda: mlflow.start_run(nested=True)], ids=["ended", "opened"])
def test_a_run_that_the_user_ended_or_nested_in_is_reclaimed(settings, mischief):
    experiment = tracking.open_experiment(settings, "first")
    with tracking.active_run(experiment, None) as run:
        mischief()
        tracking.reclaim(run)
        mlflow.log_metric("after", 1)
        assert mlflow.active_run().info.run_id == run.id
    found = mlflow.get_run(run.id)
    assert (found.info.status, found.data.metrics) == ("FINISHED", {"after": 1.0})


@pytest.mark.parametrize("mischief", [mlflow.end_run, lambda: mlflow.start_run(nested=True)], ids=["ended", "opened"])
def test_a_run_ends_whatever_the_user_left_open_inside_another(settings, mischief):
    experiment = tracking.open_experiment(settings, "first")
    with mlflow.start_run(experiment_id=experiment.id) as outer:
        with tracking.active_run(experiment, None) as run:
            mischief()
        assert mlflow.active_run().info.run_id == outer.info.run_id
    assert mlflow.get_run(run.id).info.status == "FINISHED"


def test_a_parameter_the_user_logged_keeps_its_value(settings):
    experiment = tracking.open_experiment(settings, "first")
    with tracking.active_run(experiment, None) as run:
        mlflow.log_param("device", "my own")
        tracking.log_params(run, {"device": "cpu", "total_params": 3})
    assert mlflow.get_run(run.id).data.params == {"device": "my own", "total_params": "3"}


def test_another_address_set_while_training_does_not_lose_the_run(settings, tmp_path):
    experiment = tracking.open_experiment(settings, "first")
    before = mlflow.get_tracking_uri()
    with tracking.active_run(experiment, None) as run:
        mlflow.set_tracking_uri(f"sqlite:///{tmp_path / 'elsewhere.db'}")
        tracking.reclaim(run)
        tracking.set_tags(run, {"after": "1"})
        mlflow.set_tracking_uri(f"sqlite:///{tmp_path / 'elsewhere.db'}")
    assert mlflow.get_tracking_uri() == before
    assert mlflow.get_run(run.id).info.status == "FINISHED"
    assert mlflow.get_run(run.id).data.tags["after"] == "1"


def test_a_child_process_keeps_its_artifacts_in_the_same_home(settings, tmp_path):
    """MLflow hands the address on in the environment, where it looks like somebody's choice."""
    tracking.open_experiment(settings, "parent")
    program = textwrap.dedent(f"""
        from pathlib import Path
        from keynet_core import read_settings
        from keynet_train import _tracking as tracking
        from keynet_train._settings import TrainSettings
        settings = read_settings(TrainSettings, {{}}, home=Path({str(settings.home)!r}))
        print(tracking.open_experiment(settings, "child").artifact_root)
    """)
    environ = os.environ | {"MLFLOW_TRACKING_URI": mlflow.get_tracking_uri()}
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, env=environ, cwd=tmp_path, timeout=60, check=True)
    assert done.stdout.strip() == (settings.home / "mlartifacts").as_uri()


def test_an_experiment_is_the_name_or_the_model_id_and_the_name():
    assert to_experiment_name(read_settings(TrainSettings, {"MODEL_ID": " "}), "seg") == "seg"
    assert to_experiment_name(read_settings(TrainSettings, {"MODEL_ID": "7"}), "seg") == "7_seg"


def test_a_store_is_chosen_in_the_documented_order(tmp_path):
    def url(artifact_root: str = "file:///x", **environ: str) -> str:
        return open_package_store(read_settings(TrainSettings, environ, home=tmp_path), artifact_root).url

    chosen = (tmp_path / "chosen").as_uri()
    assert url() == (tmp_path / "store").as_uri()
    assert url(KEYNET_STORE=chosen, AWS_BUCKET_NAME="models") == chosen
    assert url(AWS_BUCKET_NAME="models", artifact_root="s3://mlflow/x") == "s3://models"
    assert url(artifact_root="s3://mlflow/x") == "s3://mlflow"
