"""What is imported before a training function begins, and autologging that is there all the same."""

from __future__ import annotations

import importlib.util
import json

import pytest

NOT_BEFORE_TRAINING = (
    "lightning",
    "matplotlib",
    "onnxscript",
    "pytorch_lightning",
    "sklearn",
    "sympy",
    "torch._dynamo",
    "torchmetrics",
)
LIGHTNING = pytest.mark.skipif(
    importlib.util.find_spec("pytorch_lightning") is None,
    reason="needs pytorch-lightning: pip install pytorch-lightning lightning",
)

PREAMBLE = """
    import json, sys
    import torch
    from keynet_train import trace_pytorch

    def traced(train):
        return trace_pytorch("m", torch.rand(1, 4))(train).trace()

    def is_recording():
        from mlflow.utils.autologging_utils import autologging_is_disabled
        return not autologging_is_disabled("pytorch")
"""


def test_nothing_that_takes_seconds_is_imported_before_the_first_line_of_a_training(home, run_python):
    done = run_python(f"""{PREAMBLE}
    begun = []

    def train():
        begun.extend(sys.modules)
        return torch.nn.Linear(4, 2)

    traced(train)
    print(json.dumps(begun))
    """)
    assert done.code == 0, done.told
    begun = json.loads(done.told.splitlines()[-1])
    assert [name for name in NOT_BEFORE_TRAINING if name in begun] == []
    assert {"mlflow", "onnx", "onnxruntime", "tritonclient.grpc"} <= set(begun)


def test_the_first_run_of_all_does_not_go_through_mlflows_migrations(clean_environment, tmp_path, run_python):
    done = run_python(f"{PREAMBLE}\n    traced(lambda: torch.nn.Linear(4, 2))")
    assert done.code == 0, done.told
    assert (tmp_path / ".keynet" / "mlflow.db").exists()
    assert "mlflow.store.db.utils" not in done.told  # it tells its logger of every table it makes


def test_a_model_is_stored_without_lightning(home, run_python):
    done = run_python(f"""{PREAMBLE}
    import mlflow
    result = traced(lambda: torch.nn.Linear(4, 2))
    assert isinstance(mlflow.pytorch.load_model("models:/m/1"), torch.nn.Linear)
    print("pytorch_lightning" in sys.modules)
    """)
    assert done.code == 0, done.told
    assert done.told.splitlines()[-1] == "False"


@LIGHTNING
@pytest.mark.parametrize(
    "imported",
    [
        "import pytorch_lightning",
        "import lightning",
        "from lightning.pytorch import Trainer",
    ],
)
def test_lightning_is_recorded_from_its_import_to_the_end_of_the_training(home, run_python, imported):
    done = run_python(f"""{PREAMBLE}
    finders = list(sys.meta_path)

    def train():
        before = is_recording()
        {imported}
        print(json.dumps([before, is_recording()]))
        return torch.nn.Linear(4, 2)

    traced(train)
    print(json.dumps([is_recording(), [each for each in sys.meta_path if "keynet" in type(each).__module__]]))
    """)
    assert done.code == 0, done.told
    assert [json.loads(line) for line in done.told.splitlines() if line.startswith("[")] == [
        [False, True],
        [False, []],
    ]


@LIGHTNING
def test_lightning_that_was_imported_before_is_recorded_from_the_first_line(home, run_python):
    done = run_python(f"""{PREAMBLE}
    import pytorch_lightning

    def train():
        print(is_recording())
        return torch.nn.Linear(4, 2)

    traced(train)
    print(is_recording())
    """)
    assert done.code == 0, done.told
    assert [line for line in done.told.splitlines() if line in {"True", "False"}] == ["True", "False"]


@LIGHTNING
@pytest.mark.parametrize("where", ["before", "inside"])
def test_autologging_of_the_users_own_keeps_its_options(home, run_python, where):
    own = "mlflow.pytorch.autolog(log_every_n_epoch=7, log_models=False)"
    done = run_python(f"""{PREAMBLE}
    import mlflow
    from mlflow.utils.autologging_utils import get_autologging_config
    {own if where == "before" else ""}

    def train():
        {own if where == "inside" else ""}
        import pytorch_lightning
        print(get_autologging_config("pytorch", "log_every_n_epoch"))
        return torch.nn.Linear(4, 2)

    traced(train)
    print(is_recording())
    """)
    assert done.code == 0, done.told
    told = [line for line in done.told.splitlines() if line in {"7", "1", "True", "False"}]
    assert told == ["7", "True" if where == "before" else told[-1]]


@LIGHTNING
def test_autologging_of_everything_before_the_call_does_not_stand_in_the_way(home, run_python):
    done = run_python(f"""{PREAMBLE}
    import mlflow
    mlflow.autolog(log_models=False)

    def train():
        import pytorch_lightning
        print(is_recording())
        return torch.nn.Linear(4, 2)

    traced(train)
    """)
    assert done.code == 0, done.told
    assert "True" in done.told.splitlines()


@LIGHTNING
def test_what_was_left_out_of_mlflow_is_there_when_it_is_asked_for(home, run_python):
    done = run_python(f"""{PREAMBLE}
    traced(lambda: torch.nn.Linear(4, 2))
    assert "pytorch_lightning" not in sys.modules
    from mlflow.pytorch import MlflowModelCheckpointCallback
    import mlflow.pytorch, pytorch_lightning
    assert issubclass(MlflowModelCheckpointCallback, pytorch_lightning.Callback)
    assert not hasattr(mlflow.pytorch, "nothing_of_that_name")
    """)
    assert done.code == 0, done.told


def test_without_autologging_nothing_is_watched(home, run_python):
    done = run_python("""
    import sys, torch
    from keynet_train import trace_pytorch

    def train():
        print([each for each in sys.meta_path if "keynet" in type(each).__module__])
        return torch.nn.Linear(4, 2)

    trace_pytorch("m", torch.rand(1, 4), enable_autolog=False)(train).trace()
    """)
    assert done.code == 0, done.told
    assert done.told.strip() == "[]"


@LIGHTNING
def test_what_lightning_logs_is_in_the_run_when_the_training_itself_imports_it(home, run_python):
    done = run_python(f"""{PREAMBLE}
    import mlflow

    def train():
        import pytorch_lightning as pl

        class Lit(pl.LightningModule):
            def __init__(self):
                super().__init__()
                self.layer = torch.nn.Linear(4, 2)

            def forward(self, x):
                return self.layer(x)

            def training_step(self, batch, _index):
                loss = self(batch[0]).square().mean()
                self.log("squared", loss, on_epoch=True)
                return loss

            def configure_optimizers(self):
                return torch.optim.SGD(self.parameters(), lr=0.1)

        data = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(torch.rand(32, 4)), batch_size=8)
        trainer = pl.Trainer(max_epochs=2, logger=False, enable_checkpointing=False, enable_progress_bar=False)
        model = Lit()
        trainer.fit(model, data)
        return model

    run = mlflow.get_run(traced(train).run_id)
    print(json.dumps([run.info.status, run.data.params["epochs"], sorted(run.data.metrics)]))
    """)
    assert done.code == 0, done.told
    status, epochs, metrics = json.loads(next(line for line in done.told.splitlines() if line.startswith("[")))
    assert (status, epochs) == ("FINISHED", "2")
    assert {"squared", "squared_epoch"} & set(metrics)
