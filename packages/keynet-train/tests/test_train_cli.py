"""`keynet-train outbox`: stories of a person who has something that waits."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading

import pytest

from keynet_core import LocalStore, ModelPublished, Outbox, locked, read_manifest

HEAVY = {"torch", "mlflow", "onnx", "onnxruntime", "numpy", "tritonclient", "boto3", "pika"}


@pytest.fixture
def outbox(tmp_path, clean_environment, monkeypatch):
    monkeypatch.setenv("KEYNET_HOME", str(tmp_path / "home"))
    return Outbox(tmp_path / "home" / "outbox")


@pytest.fixture
def add(outbox, tmp_path):
    """Return a function that has a model wait for `store` and for somebody to tell."""
    from keynet_core import DataType, ModelPackage, Signature, TensorSpec

    spec = TensorSpec(name="x", dtype=DataType.FP32, shape=("batch", 4))

    def add(model="iris", store="store"):
        with outbox.stage() as staged:
            (staged / "model.onnx").write_bytes(model.encode() * 1000)
            package = ModelPackage.build(staged, name=model, signature=Signature(inputs=(spec,), outputs=(spec,)))
            url = store if "://" in store else (tmp_path / store).as_uri()
            published = ModelPublished(
                model=model, digest=package.digest, store=url, run_id=f"run-{model}", model_version="3"
            )
            return outbox.add(published.to_event(), package.directory)

    return add


def keynet_train(*words, **environ):
    """Run the command; return its exit code, what it printed as JSON or text, and what it said beside."""
    command = [sys.executable, "-m", "keynet_train", *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=os.environ | environ)
    return done.returncode, json.loads(done.stdout) if "--json" in words else done.stdout, done.stderr


def test_nothing_waits_and_nothing_is_made(outbox):
    code, told, _ = keynet_train("outbox", "list")
    assert (code, told) == (0, f"nothing waits in {outbox.root}\n")
    code, told, _ = keynet_train("outbox", "flush")
    assert (code, told) == (0, f"nothing waits in {outbox.root}\n")
    assert not outbox.root.exists()


def test_what_waits_is_listed_shown_and_handed_over_once(outbox, add, receiver, tmp_path):
    entry = add()
    code, told, _ = keynet_train("outbox", "list")
    assert code == 0
    assert [word in told for word in ("iris", "waiting", "not tried yet", entry.id[-8:])] == [True] * 4
    assert f"next: keynet-train outbox flush --home {outbox.root.parent}" in told
    code, told, _ = keynet_train("outbox", "show", entry.id[-8:])
    assert code == 0
    assert [word in told for word in (entry.id, "run-iris", str(entry.directory), "version  3")] == [True] * 4
    code, told, said = keynet_train("outbox", "flush", KEYNET_URL=receiver.url)
    assert (code, told) == (0, "iris is announced\n")
    assert f"iris is in {(tmp_path / 'store').as_uri()}" in said
    assert receiver.models == ["iris"]
    assert read_manifest(LocalStore(tmp_path / "store"), "iris", entry.event.data["digest"])
    assert keynet_train("outbox", "flush", KEYNET_URL=receiver.url)[:2] == (0, f"nothing waits in {outbox.root}\n")
    assert receiver.models == ["iris"]
    assert "announced" in keynet_train("outbox", "show", entry.id)[1]


def test_a_program_reads_the_same(outbox, add):
    entry = add()
    code, told, _ = keynet_train("outbox", "list", "--json")
    assert code == 0
    (item,) = told["entries"]
    assert item["entry"] == entry.id
    assert (item["state"], item["model"], item["version"], item["reason"]) == ("waiting", "iris", "3", None)
    assert item["size_bytes"] > 4000
    assert 0 <= item["age_s"] < 300
    assert keynet_train("outbox", "show", entry.id, "--json")[1].keys() == item.keys()


def test_what_has_nobody_to_be_told_to_still_waits(outbox, add):
    add()
    code, told, _ = keynet_train("outbox", "flush", "--json")
    assert code == 6
    assert [each["reason"]["code"] for each in told["waiting"]] == ["event.undelivered"]
    assert keynet_train("outbox", "flush", "--json")[0] == 6


def test_a_server_that_is_down_leaves_it_waiting_with_the_reason(outbox, add, receiver):
    add()
    receiver.status = 503
    code, told, _ = keynet_train("outbox", "flush", KEYNET_URL=receiver.url)
    assert code == 6
    assert "503" in told
    assert "next  keynet-train outbox flush" in told
    assert "503" in keynet_train("outbox", "list")[1]


def test_a_refused_entry_is_told_kept_and_tried_again_when_asked_to(outbox, add, receiver):
    entry = add()
    receiver.status = 422
    code, told, _ = keynet_train("outbox", "flush", KEYNET_URL=receiver.url)
    assert code == 1
    assert "iris is refused" in told
    assert "next  keynet-train outbox flush --refused" in told
    code, told, _ = keynet_train("outbox", "list", "--json")
    assert [(each["entry"], each["state"]) for each in told["entries"]] == [(entry.id, "refused")]
    receiver.status = 202
    assert keynet_train("outbox", "flush", KEYNET_URL=receiver.url)[0] == 0
    assert len(receiver.events) == 1
    assert keynet_train("outbox", "flush", "--refused", KEYNET_URL=receiver.url)[:2] == (0, "iris is announced\n")


def test_a_store_that_cannot_be_opened_does_not_hold_up_the_others(outbox, add, receiver):
    add("lost", store="gopher://models")
    add("found")
    code, told, _ = keynet_train("outbox", "flush", "--json", KEYNET_URL=receiver.url)
    assert code == 6
    assert [each["model"] for each in told["announced"]] == ["found"]
    assert [each["reason"]["code"] for each in told["waiting"]] == ["store.unsupported"]


def test_an_entry_nobody_can_read_is_told_and_moved_out_of_the_way(outbox, add, receiver):
    broken = add("broken")
    (broken.directory / "event.json").write_text("{")
    add("whole")
    code, told, _ = keynet_train("outbox", "list", "--json")
    assert {each["state"] for each in told["entries"]} == {"unreadable", "waiting"}
    code, told, _ = keynet_train("outbox", "flush", "--json", KEYNET_URL=receiver.url)
    assert code == 1
    assert [each["model"] for each in told["announced"]] == ["whole"]
    assert [each["entry"] for each in told["unreadable"]] == [broken.id]


@pytest.mark.parametrize("name", ["nothing-like-it", "0", ""])
def test_a_name_that_means_none_or_several_is_refused_with_the_next_command(outbox, add, name):
    add("a")
    add("b")
    code, told, _ = keynet_train("outbox", "show", name, "--json")
    assert code == 4
    assert told["error"]["code"] == "outbox.entry_unknown"
    assert "outbox list" in told["error"]["hint"]


def test_another_process_that_flushes_is_told_and_nothing_is_sent_twice(outbox, add, receiver):
    add()
    with locked(outbox.root / "flush.lock", timeout_s=1):
        code, told, _ = keynet_train("outbox", "flush", "--json", KEYNET_URL=receiver.url)
    assert (code, told["error"]["code"]) == (5, "lock.timeout")
    assert receiver.events == []


def test_two_flushes_at_once_announce_each_model_once(outbox, add, receiver):
    for at in range(5):
        add(f"m{at}")
    codes = []
    threads = [
        threading.Thread(target=lambda: codes.append(keynet_train("outbox", "flush", KEYNET_URL=receiver.url)[0]))
        for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert set(codes) <= {0, 5}
    assert sorted(receiver.models) == [f"m{at}" for at in range(5)]


KILLED = """
import os, signal, sys
from keynet_core import HttpPublisher
from keynet_train._cli import keynet_train
real, when = HttpPublisher.publish, sys.argv[1]
def killed(self, event):
    if when == "after":
        real(self, event)
    os.kill(os.getpid(), signal.SIGKILL)
HttpPublisher.publish = killed
keynet_train(["outbox", "flush"])
"""


@pytest.mark.parametrize("when", ["before", "after"])
def test_killed_while_announcing_and_run_again(outbox, add, receiver, when):
    add()
    environ = os.environ | {"KEYNET_URL": receiver.url}
    done = subprocess.run([sys.executable, "-c", KILLED, when], env=environ, timeout=60)
    assert done.returncode == -signal.SIGKILL
    assert keynet_train("outbox", "flush", KEYNET_URL=receiver.url)[:2] == (0, "iris is announced\n")
    assert len({each["id"] for each in receiver.events}) == 1
    assert len(receiver.events) == (2 if when == "after" else 1)


def test_a_setting_that_cannot_be_used_is_a_usage_error(outbox, add):
    add()
    code, told, _ = keynet_train("outbox", "flush", "--json", KEYNET_URL="not an address")
    assert code == 2
    assert told["error"]["code"] == "settings.invalid"


def test_help_costs_nothing_heavy(clean_environment):
    program = f"""
import sys
sys.argv = ["keynet-train", "outbox", "list"]
try:
    from keynet_train._cli import main
    main()
finally:
    print(sorted({HEAVY!r} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert done.stdout.splitlines()[-1] == "[]"
