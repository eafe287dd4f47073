"""One process at a time: between processes, threads, forked children and the killed."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import pytest

from keynet_core import LockTimeout, locked

HOLDER = """
import sys
from pathlib import Path
from keynet_core import locked
with locked(Path(sys.argv[1]), timeout_s=5):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def lock(tmp_path):
    return tmp_path / "deep" / "a.lock"


@pytest.fixture
def holder(start, lock):
    process = start(HOLDER, lock)
    assert process.stdout.readline() == "held\n"
    return process


def test_a_lock_can_be_taken_again_after_its_block(lock):
    for _ in range(3):
        with locked(lock, timeout_s=0.0):
            assert lock.exists()


def test_a_lock_is_freed_by_an_error(lock):
    with pytest.raises(ZeroDivisionError), locked(lock, timeout_s=0.0):
        raise ZeroDivisionError
    with locked(lock, timeout_s=0.0):
        pass


def test_another_process_that_holds_it_is_waited_for_no_longer_than_said(holder, lock):
    start = time.monotonic()
    with pytest.raises(LockTimeout, match=f"another process holds {lock}"), locked(lock, timeout_s=0.1):
        pass
    assert 0.1 <= time.monotonic() - start < 5


def test_another_thread_that_holds_it_keeps_it(lock):
    caught = []

    def take():
        try:
            with locked(lock, timeout_s=0.0):
                pass
        except LockTimeout as error:
            caught.append(error.code)

    with locked(lock, timeout_s=0.0):
        thread = threading.Thread(target=take)
        thread.start()
        thread.join()
    assert caught == ["lock.timeout"]


def test_the_lock_comes_when_its_holder_ends(holder, lock):
    with pytest.raises(LockTimeout), locked(lock, timeout_s=0.0):
        pass
    holder.stdin.close()
    with locked(lock, timeout_s=20.0):
        pass


def test_a_killed_holder_frees_it(holder, lock):
    holder.kill()
    with locked(lock, timeout_s=20.0):
        pass


FORKING = """
import os, sys
from pathlib import Path
from keynet_core import LockTimeout, locked
path = Path(sys.argv[1])
parent_waits, child_lives = os.pipe()
with locked(path, timeout_s=0):
    child = os.fork()
    if child == 0:
        os.close(child_lives)
        os.read(parent_waits, 1)
        os._exit(0)
with locked(path, timeout_s=0):
    print("taken again while the child lives")
os.close(child_lives)
os.waitpid(child, 0)
"""


def test_a_child_forked_meanwhile_does_not_keep_it(python, lock):
    done = python(FORKING, lock)
    assert done.stdout == "taken again while the child lives\n", done.stderr


LEAVING = """
import os, sys
from pathlib import Path
from keynet_core import LockTimeout, locked
path = Path(sys.argv[1])
owner = os.getpid()
with locked(path, timeout_s=0):
    child = os.fork()
    if child == 0:
        sys.exit(0)
    os.waitpid(child, 0)
    try:
        with locked(path, timeout_s=0):
            print("freed by the child")
    except LockTimeout:
        print("still held")
"""


def test_a_forked_child_that_leaves_the_block_does_not_free_it(python, lock):
    done = python(LEAVING, lock)
    assert done.stdout == "still held\n", done.stderr


def test_the_lock_file_is_not_inherited_by_a_program(lock):
    with locked(lock, timeout_s=0.0):
        handles = [handle for handle in Path("/proc/self/fd").iterdir() if _leads_to(handle, lock)]
        assert handles
        assert not any(os.get_inheritable(int(handle.name)) for handle in handles)


def _leads_to(handle, path):
    try:
        return handle.readlink() == path
    except FileNotFoundError:
        return False
