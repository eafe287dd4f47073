"""How a call ends: announced, stored with nobody to tell, waiting, refused; and what the next run does about it."""

from __future__ import annotations

import logging
import socket
import threading

import mlflow
import pytest
import torch
from torch import nn

from keynet_core import LocalStore, Outbox, SettingsInvalid, locked, read_manifest
from keynet_train import (
    DegradationWarning,
    Publication,
    PublicationRefused,
    PublicationWaiting,
    TraceResult,
    _opening,
    log_onnx_model,
    trace_pytorch,
)


def traced(name="m", *, function=lambda: nn.Linear(4, 2), sample=None):
    sample = torch.rand(1, 4) if sample is None else sample
    return trace_pytorch(name, sample, enable_autolog=False)(function)


@pytest.fixture
def closed_port():
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        return closed.getsockname()[1]


@pytest.fixture
def down(monkeypatch, home, closed_port):
    """A keynet server is configured, and down."""
    monkeypatch.setenv("KEYNET_URL", f"http://127.0.0.1:{closed_port}")
    monkeypatch.setenv("KEYNET_PUBLISH_TIMEOUT_S", "0")


@pytest.mark.parametrize("status", [200, 202])
def test_a_package_whose_event_is_taken_is_announced(home, receiver, monkeypatch, status):
    receiver.status = status
    monkeypatch.setenv("KEYNET_URL", receiver.url)
    result = traced().trace()
    assert (result.publication.state, result.publication.reason) == ("announced", None)
    assert receiver.events[-1]["data"]["model_version"] == result.model_version


def test_nobody_to_tell_is_a_value_and_a_warning(home):
    with pytest.warns(DegradationWarning, match="keynet up"):
        assert isinstance(traced()(), nn.Linear)
    assert traced().trace().publication.state == "stored"


def test_a_server_that_is_down_ends_the_call_with_an_error_that_has_everything(down, home):
    with pytest.raises(PublicationWaiting) as raised:
        traced().trace()
    error = raised.value
    assert isinstance(error.result, TraceResult)
    assert isinstance(error.result.model, nn.Linear)
    assert error.result.publication.state == "stored"
    (entry,) = Outbox(home / "outbox").entries()
    assert str(entry.directory) in str(error)
    assert error.hint == f"keynet-train outbox flush --home {home}"
    assert mlflow.get_run(error.result.run_id).info.status == "FINISHED"
    assert mlflow.active_run() is None


def test_a_call_ends_with_the_same_error_as_trace(down):
    with pytest.raises(PublicationWaiting) as raised:
        traced()()
    assert isinstance(raised.value.result.model, nn.Linear)


def test_the_user_may_go_on(down, monkeypatch):
    monkeypatch.setenv("KEYNET_ON_UNPUBLISHED", "continue")
    with pytest.warns(DegradationWarning, match="keynet-train outbox flush"):
        assert isinstance(traced()(), nn.Linear)
    assert traced().trace().publication.state == "stored"


def test_what_is_no_choice_is_refused_before_training(home, monkeypatch):
    monkeypatch.setenv("KEYNET_ON_UNPUBLISHED", "perhaps")
    with pytest.raises(SettingsInvalid, match="KEYNET_ON_UNPUBLISHED"):
        traced(function=lambda: pytest.fail("training began")).trace()


@pytest.mark.parametrize("text", ["-1", "soon", "nan", "1e9"])
def test_a_patience_that_is_no_time_is_refused_before_training(home, monkeypatch, text):
    monkeypatch.setenv("KEYNET_PUBLISH_TIMEOUT_S", text)
    with pytest.raises(SettingsInvalid, match="KEYNET_PUBLISH_TIMEOUT_S"):
        traced(function=lambda: pytest.fail("training began")).trace()


def test_a_refusal_is_an_error_and_is_not_tried_again(home, receiver, monkeypatch):
    receiver.status = 422
    monkeypatch.setenv("KEYNET_URL", receiver.url)
    monkeypatch.setenv("KEYNET_PUBLISH_TIMEOUT_S", "600")
    with pytest.raises(PublicationRefused, match="422") as raised:
        traced().trace()
    assert raised.value.result.publication.state == "refused"
    assert "outbox show" in raised.value.hint
    assert len(receiver.events) == 1
    assert [each.event.subject for each in Outbox(home / "outbox").entries("refused")] == ["m"]


def test_a_server_that_answers_again_within_the_patience_is_told(home, receiver, monkeypatch):
    receiver.first = [503, 503]
    monkeypatch.setenv("KEYNET_URL", receiver.url)
    monkeypatch.setenv("KEYNET_PUBLISH_TIMEOUT_S", "120")
    assert traced().trace().publication.state == "announced"
    assert len(receiver.events) == 3
    assert len({each["id"] for each in receiver.events}) == 1


def test_waiting_is_told_while_it_goes_on(home, receiver, monkeypatch, caplog):
    receiver.status = 503
    monkeypatch.setenv("KEYNET_URL", receiver.url)
    monkeypatch.setenv("KEYNET_PUBLISH_TIMEOUT_S", "6")
    with caplog.at_level(logging.WARNING, "keynet_train"), pytest.raises(PublicationWaiting):
        traced().trace()
    assert any("m waits" in line and "503" in line for line in caplog.messages)


def test_what_waits_is_handed_over_before_the_next_training_begins(home, receiver, monkeypatch):
    assert traced("first").trace().publication.state == "stored"
    monkeypatch.setenv("KEYNET_URL", receiver.url)
    told_before_training = []

    def train():
        told_before_training.extend(receiver.models)
        return nn.Linear(4, 2)

    traced("second", function=train).trace()
    assert told_before_training == ["first"]
    assert receiver.models == ["first", "second"]


def test_a_server_that_is_still_down_does_not_keep_the_next_training_from_beginning(down, caplog):
    for name in ("first", "second"):
        with pytest.raises(PublicationWaiting):
            traced(name).trace()
    assert any("first, which waited since an earlier run, is not announced" in line for line in caplog.messages)


def test_what_takes_longer_to_hand_over_goes_on_while_the_training_runs(home, receiver, monkeypatch):
    traced("first").trace()
    monkeypatch.setenv("KEYNET_URL", receiver.url)
    monkeypatch.setattr(_opening, "ANSWER_TIMEOUT_S", 0.2)
    monkeypatch.setenv("KEYNET_PUBLISH_TIMEOUT_S", "60")
    receiver.hold.clear()

    def train():
        receiver.hold.set()
        return nn.Linear(4, 2)

    assert traced("second", function=train).trace().publication.state == "announced"
    assert list(dict.fromkeys(receiver.models)) == ["first", "second"]


def test_another_process_that_flushes_does_not_keep_a_training_from_beginning(home, receiver, monkeypatch):
    traced("first").trace()
    monkeypatch.setenv("KEYNET_URL", receiver.url)
    began = threading.Event()
    free = threading.Event()

    def hold():
        with locked(home / "outbox" / "flush.lock", timeout_s=10):
            free.set()
            began.wait(60)

    holding = threading.Thread(target=hold)
    holding.start()
    free.wait(30)
    monkeypatch.setenv("KEYNET_PUBLISH_TIMEOUT_S", "60")

    def train():
        began.set()
        return nn.Linear(4, 2)

    assert traced("second", function=train).trace().publication.state == "announced"
    holding.join(30)
    assert receiver.models == ["first", "second"]


def test_what_only_waits_for_somebody_to_tell_is_not_stored_again_with_every_run(home):
    """Each run with nothing set would otherwise read and hash every package before it."""
    results = [traced(f"m{at}").trace() for at in range(2)]
    entries = {each.event.subject: each for each in Outbox(home / "outbox").entries()}
    untouched = (entries["m0"].directory / "last-error.json").stat().st_mtime_ns
    traced("m2").trace()
    assert (entries["m0"].directory / "last-error.json").stat().st_mtime_ns == untouched
    assert [each.publication.state for each in results] == ["stored", "stored"]


def test_a_missing_object_of_an_earlier_run_is_stored_again_when_it_is_announced(home, receiver, monkeypatch):
    first = traced("first").trace()
    store = LocalStore(home / "store")
    for key in list(store.list("packages/first/")):
        store.delete(key)
    monkeypatch.setenv("KEYNET_URL", receiver.url)
    traced("second").trace()
    assert read_manifest(store, first.package.name, first.package.digest)


def test_an_onnx_file_ends_the_same_way(down, tmp_path, monkeypatch):
    path = tmp_path / "by-hand.onnx"
    torch.onnx.export(nn.Linear(4, 2), (torch.rand(2, 4),), path, dynamo=False)
    with pytest.raises(PublicationWaiting) as raised:
        log_onnx_model("files", path)
    assert isinstance(raised.value.result, Publication)
    monkeypatch.setenv("KEYNET_ON_UNPUBLISHED", "continue")
    with pytest.warns(DegradationWarning, match="outbox flush"):
        assert log_onnx_model("files", path) == raised.value.result.url
    assert {each.info.status for each in mlflow.search_runs(experiment_names=["files"], output_format="list")} == {
        "FINISHED"
    }


def test_an_error_nobody_catches_is_one_message_and_exit_code_1(down, home, run_python):
    done = run_python("""
        import torch
        from keynet_train import trace_pytorch
        trace_pytorch("m", torch.rand(1, 4), enable_autolog=False)(lambda: torch.nn.Linear(4, 2))()
    """)
    assert done.code == 1
    told = done.told[done.told.index("PublicationWaiting:") :]
    assert str(home / "outbox" / "ready") in told
    assert told.rstrip().endswith(f"next  keynet-train outbox flush --home {home}")
