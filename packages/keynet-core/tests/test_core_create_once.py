"""What is made once, however many start at the same time and wherever they are killed."""

from __future__ import annotations

import os
import signal
import threading

import pytest

from keynet_core import create_once


def test_of_many_one_makes_it(tmp_path):
    made = []

    def make(path):
        made.append(path)
        path.write_text("whole")

    threads = [
        threading.Thread(target=create_once, args=(tmp_path / "file", tmp_path / "lock", make), kwargs={"timeout_s": 5})
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 1
    assert (tmp_path / "file").read_text() == "whole"


def test_what_is_there_is_left_alone(tmp_path):
    (tmp_path / "file").write_text("first")
    create_once(tmp_path / "file", tmp_path / "lock", pytest.fail, timeout_s=5)
    assert (tmp_path / "file").read_text() == "first"


def test_a_maker_that_fails_leaves_nothing(tmp_path):
    def make(path):
        path.write_text("half")
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        create_once(tmp_path / "file", tmp_path / "lock", make, timeout_s=5)
    assert [each.name for each in tmp_path.iterdir()] == ["lock"]


def test_a_maker_that_is_killed_leaves_the_next_one_free(tmp_path):
    def make(path):
        path.write_text("half")
        os.kill(os.getpid(), signal.SIGKILL)

    child = os.fork()
    if child == 0:
        create_once(tmp_path / "file", tmp_path / "lock", make, timeout_s=5)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    assert not (tmp_path / "file").exists()
    create_once(tmp_path / "file", tmp_path / "lock", lambda path: path.write_text("whole"), timeout_s=5)
    assert (tmp_path / "file").read_text() == "whole"
