"""The short form of `make chaos`; the long one is `make chaos` itself."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from chaos.ledger import Ledger, Trained
from chaos.plan import Plan
from chaos.watcher import Watcher
from engines.ceph import Ceph
from engines.fixtures import skip_without
from engines.postgres import Postgres
from engines.rabbitmq import Broker
from engines.triton import TritonServer

TESTS = Path(__file__).parents[1]
PLAN = Plan(publications=6, kills=1, trainers=2)


@pytest.mark.timeout(1500)
def test_nothing_is_lost_while_everything_is_killed(tmp_path):
    for kind in (Ceph, Broker, Postgres, TritonServer):
        skip_without(kind)
    told = tmp_path / "verdict.json"
    arguments = ["--publications", "24", "--kills", "6", "--timeout-s", "1200", "--json", str(told)]
    done = subprocess.run(
        [sys.executable, "-m", "chaos", *arguments],
        env=os.environ | {"PYTHONPATH": str(TESTS)},
        capture_output=True,
        text=True,
        timeout=1400,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    verdict = json.loads(told.read_text())
    assert verdict["trained"] == verdict["stored"] == 24
    assert sum(verdict["kills"].values()) == 6
    assert verdict["answers"] > 0
    assert verdict["wrong"] == []


def answer(product, total):
    outputs = [{"name": "product", "data": [product]}, {"name": "sum", "data": [total]}]
    return json.dumps({"outputs": outputs}).encode()


def watch(*told):
    watcher = Watcher(PLAN, ("127.0.0.1", 1))
    for status, body in told:
        watcher._judge("chaos_0", status, body, is_same=True)
    return watcher.seen


def test_a_whole_answer_is_counted():
    seen = watch((200, answer(3.0, 4.0)))
    assert (seen.answers, seen.violations) == (1, [])


@pytest.mark.parametrize(
    "body",
    [answer(3.0, 5.0), answer(9.0, 6.0), b"{}", b"half", b""],
    ids=["two halves", "another model's", "empty", "cut off", "nothing"],
)
def test_an_answer_that_no_whole_model_gives_is_a_violation(body):
    assert len(watch((200, body)).violations) == 1


def test_a_model_that_had_answered_and_is_missing_is_a_gap():
    seen = watch((200, answer(3.0, 4.0)), (404, b"unknown model"))
    assert (sum(seen.gaps.values()), seen.refusals.total()) == (1, 0)


def test_a_model_may_be_missing_before_it_was_served_and_while_its_engine_is_away():
    assert watch((404, b"unknown model")).violations == []
    watcher = Watcher(PLAN, ("127.0.0.1", 1))
    watcher._judge("chaos_0", 200, answer(3.0, 4.0), is_same=True)
    watcher.engine_is_away()
    watcher._judge("chaos_0", 0, b"ConnectionRefusedError", is_same=True)
    assert watcher.seen.violations == []
    assert sum(watcher.seen.refusals.values()) == 1


def test_a_ledger_forgets_a_line_that_a_kill_cut_off(tmp_path):
    ledger = Ledger(tmp_path / "ledger")
    first, second = (Trained(item=item, model="m", digest=f"sha256:{item}") for item in (1, 2))
    ledger.append(1, "s3://bucket/packages/m/1")
    with ledger.path.open("ab") as file:
        file.write(b'{"item": 2, "mod')
    assert ledger.read() == [first]
    ledger.append(2, "s3://bucket/packages/m/2")
    assert ledger.read() == [first, second]


def test_each_name_belongs_to_one_trainer():
    plan = Plan(publications=100, kills=0, trainers=3)
    names = [{plan.model_of(item) for item in plan.items_of(trainer)} for trainer in range(3)]
    assert not names[0] & names[1] | names[1] & names[2] | names[0] & names[2]
    assert sorted(item for trainer in range(3) for item in plan.items_of(trainer)) == list(range(100))
