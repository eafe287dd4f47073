"""The outbox of processes that are killed, at every point where a kill leaves something behind."""

from __future__ import annotations

import signal

import pytest

from keynet_core import publish_entry

STAGING = """
import sys
from pathlib import Path
from keynet_core import Outbox
with Outbox(Path(sys.argv[1])).stage() as staged:
    (staged / "model.onnx").write_bytes(b"x")
    print(staged, flush=True)
    sys.stdin.read()
"""

KILLED_WHILE = """
import os, signal, sys
from pathlib import Path
from keynet_core import Outbox, ModelPackage, ModelPublished, LocalStore, publish_entry
from keynet_core import DataType, Signature, TensorSpec, to_model_name
from keynet_core import _durable, _outbox

root, store, when = Path(sys.argv[1]), LocalStore(Path(sys.argv[2])), sys.argv[3]
log = open(sys.argv[4], "a")
outbox = Outbox(root)

def die():
    os.kill(os.getpid(), signal.SIGKILL)

def dying(function, *, before, on=lambda *arguments: True):
    def call(*arguments, **more):
        if on(*arguments) and before:
            die()
        result = function(*arguments, **more)
        if on(*arguments):
            die()
        return result
    return call

def to(state):
    return lambda source, target: Path(target).parent.name == state

def removes(name):
    return lambda path: path.name == name

class Events:
    def publish(self, event):
        if when == "before the event":
            die()
        log.write(event.id + "\\n")
        log.flush()
        if when == "after the event":
            die()

spec = TensorSpec(name="x", dtype=DataType.FP32, shape=())
with outbox.stage() as staged:
    (staged / "model.onnx").write_bytes(b"weights")
    if when == "while staging":
        die()
    package = ModelPackage.build(staged, name=to_model_name("m"), signature=Signature(inputs=(spec,), outputs=()))
    event = ModelPublished(model=package.manifest.name, digest=package.digest, store=store.url, run_id="r").to_event()
    if when == "after event.json":
        _outbox.sync_tree = dying(_outbox.sync_tree, before=False)
    if when in ("before ready", "after ready"):
        Path.rename = dying(Path.rename, before=when == "before ready", on=to("ready"))
    outbox.add(event, staged)
    if when == "before staging is clean":
        die()
if when in ("before the manifest", "after the manifest"):
    manifest = lambda self, key, data: key.endswith("manifest.json")
    LocalStore.put = dying(LocalStore.put, before=when == "before the manifest", on=manifest)
if when in ("before done", "after done"):
    Path.rename = dying(Path.rename, before=when == "before done", on=to("done"))
if when in ("before the package is removed", "after the package is removed"):
    _outbox.remove_tree = dying(_outbox.remove_tree, before=when.startswith("before"), on=removes("package"))
outbox.flush(lambda entry: publish_entry(entry, store, Events(), lambda url: None))
"""

NOTHING = ("while staging", "after event.json", "before ready")
UNSENT = ("after ready", "before staging is clean", "before the manifest", "after the manifest", "before the event")
SENT = ("after the event", "before done")
FINISHED = ("after done", "before the package is removed", "after the package is removed")


class Events:
    def __init__(self, log):
        self.log = log

    def publish(self, event):
        with self.log.open("a") as file:
            file.write(event.id + "\n")


@pytest.fixture
def killed(python, outbox, store, tmp_path):
    """Return a function that kills a publisher at a point, flushes again, and returns how often the event was sent."""

    def run(when):
        log = tmp_path / "log"
        done = python(KILLED_WHILE, outbox.root, store.root, when, log)
        assert done.returncode == -signal.SIGKILL, done.stderr
        for _ in range(2):
            with outbox.stage():
                pass
            report = outbox.flush(lambda entry: publish_entry(entry, store, Events(log), lambda url: None))
            assert (report.waiting, report.refused, report.unreadable) == ((), (), ())
        return log.read_text().splitlines() if log.exists() else []

    return run


def left(outbox):
    """Return what is in the outbox besides its locks."""
    files = {path.relative_to(outbox.root).as_posix() for path in outbox.root.rglob("*") if path.is_file()}
    return {name.split("/")[0] + "/" + name.rpartition("/")[2] for name in files if "/" in name}


@pytest.mark.parametrize("when", NOTHING)
def test_killed_before_it_was_in_the_outbox_leaves_nothing(killed, outbox, when):
    assert killed(when) == []
    assert left(outbox) == set()


@pytest.mark.parametrize("when", UNSENT)
def test_killed_before_it_was_sent_is_sent_once_by_the_next(killed, outbox, store, when):
    assert len(killed(when)) == 1
    assert left(outbox) == {"done/event.json"}
    assert len(list(store.list("packages/m/"))) == 2


@pytest.mark.parametrize("when", SENT)
def test_killed_after_it_was_sent_is_sent_again_under_the_same_id(killed, outbox, when):
    sent = killed(when)
    assert len(sent) == 2
    assert len(set(sent)) == 1
    assert left(outbox) == {"done/event.json"}


@pytest.mark.parametrize("when", FINISHED)
def test_killed_while_cleaning_up_is_not_sent_again_and_leaves_no_package(killed, outbox, when):
    assert len(killed(when)) == 1
    assert left(outbox) == {"done/event.json"}


def test_what_a_living_sibling_builds_is_never_removed(outbox, start):
    sibling = start(STAGING, outbox.root)
    staged = outbox.root / sibling.stdout.readline().strip()
    for _ in range(3):
        with outbox.stage():
            assert (staged / "model.onnx").exists()
    assert (staged / "model.onnx").exists()


def test_what_a_dead_sibling_built_goes_with_the_next_stage(outbox, start):
    living, dead = start(STAGING, outbox.root), start(STAGING, outbox.root)
    kept, gone = (outbox.root / each.stdout.readline().strip() for each in (living, dead))
    dead.kill()
    dead.wait(timeout=30)
    with outbox.stage():
        assert not gone.parent.exists()
        assert not gone.parent.with_name(f"{gone.parent.name}.lock").exists()
        assert (kept / "model.onnx").exists()


@pytest.mark.parametrize("leave", ["lock", "directory"])
def test_half_of_what_a_dead_sibling_left_goes_as_well(outbox, leave):
    staging = outbox.root / "staging"
    staging.mkdir(parents=True)
    if leave == "lock":
        (staging / "x.lock").write_bytes(b"")
    else:
        (staging / "x" / "package").mkdir(parents=True)
    with outbox.stage():
        pass
    assert list(staging.iterdir()) == []
