"""The old or the new, never half: errors, kills, modes, and what the disk is asked to keep."""

from __future__ import annotations

import fcntl
import hashlib
import os
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from keynet_core import (
    copy_durably,
    make_directory,
    make_private_directory,
    remove_tree,
    replacing,
    sha256_of,
    sync_tree,
    write_durably,
)
from keynet_core._durable import sweep_parts


def names(directory):
    return [path.name for path in directory.iterdir()]


def mode_of(path):
    return stat.S_IMODE(path.stat().st_mode)


@pytest.fixture
def synced(monkeypatch):
    """What the disk was asked to keep, in order."""
    paths = []
    real = os.fsync

    def fsync(handle):
        paths.append(str(Path(f"/proc/self/fd/{handle}").readlink()))
        real(handle)

    monkeypatch.setattr(os, "fsync", fsync)
    return paths


def test_new_bytes_replace_the_old(tmp_path):
    for data in (b"old", b"new"):
        write_durably(tmp_path / "a", data)
        assert (tmp_path / "a").read_bytes() == data
    assert names(tmp_path) == ["a"]


def test_an_error_while_writing_leaves_the_old_and_no_rubbish(tmp_path):
    write_durably(tmp_path / "a", b"old")

    def fail():
        with replacing(tmp_path / "a") as staged:
            staged.write_bytes(b"half")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert (tmp_path / "a").read_bytes() == b"old"
    assert names(tmp_path) == ["a"]


KILLED = """
import os, signal, sys
from pathlib import Path
from keynet_core import replacing
with replacing(Path(sys.argv[1])) as staged:
    staged.write_bytes(b"half")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_kill_while_writing_leaves_the_old(tmp_path, python):
    write_durably(tmp_path / "a", b"old")
    assert python(KILLED, tmp_path / "a").returncode == -9
    assert (tmp_path / "a").read_bytes() == b"old"
    write_durably(tmp_path / "a", b"new")
    assert (tmp_path / "a").read_bytes() == b"new"


def test_the_bytes_are_kept_before_the_name_and_the_name_before_the_end(tmp_path, synced):
    write_durably(tmp_path / "a", b"new")
    assert [str(Path(synced[0]).parent), synced[1]] == [str(tmp_path), str(tmp_path)]
    assert synced[0].endswith(".part")


def test_the_names_of_new_directories_are_kept_as_well(tmp_path, synced):
    write_durably(tmp_path / "a" / "b" / "c", b"")
    assert synced[:2] == [str(tmp_path), str(tmp_path / "a")]
    synced.clear()
    assert make_directory(tmp_path / "a" / "b") == tmp_path / "a" / "b"
    assert synced == []


def test_every_file_and_directory_of_a_tree_is_kept(tmp_path, synced):
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "b" / "file").write_bytes(b"")
    sync_tree(tmp_path / "a")
    assert synced == [str(tmp_path / "a" / "b" / "file"), str(tmp_path / "a" / "b"), str(tmp_path / "a")]


@pytest.mark.parametrize("mode", [0o600, 0o644])
def test_the_mode_is_the_one_asked_for_whatever_stood_there(tmp_path, mode):
    (tmp_path / "a").write_bytes(b"")
    (tmp_path / "a").chmod(0o777)
    write_durably(tmp_path / "a", b"new", mode=mode)
    assert mode_of(tmp_path / "a") == mode


def test_a_secret_that_is_being_written_is_nobody_elses(tmp_path):
    with replacing(tmp_path / "a", mode=0o600) as staged:
        assert mode_of(staged) == 0o600


@pytest.mark.parametrize(("umask", "mode"), [(0o077, 0o600), (0o027, 0o640), (0, 0o666)])
def test_without_a_mode_the_umask_decides(tmp_path, umask, mode):
    before = os.umask(umask)
    try:
        write_durably(tmp_path / "a", b"new")
    finally:
        os.umask(before)
    assert mode_of(tmp_path / "a") == mode


def test_what_is_swept_in_the_moment_of_its_making_is_made_again(tmp_path, monkeypatch):
    """A sweeper may take a new file between its creation and its lock."""
    swept = []

    def flock(handle, how):
        if not swept:
            swept.extend(tmp_path.iterdir())
            swept[0].unlink()

    monkeypatch.setattr(fcntl, "flock", flock)
    write_durably(tmp_path / "a", b"new")
    assert len(swept) == 1
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("a", b"new")]


def test_sweeping_a_directory_that_is_not_there_is_done_already(tmp_path):
    sweep_parts(tmp_path / "nowhere")


def test_a_copy_has_the_digest_that_is_returned(tmp_path):
    data = os.urandom(3_000_000)
    (tmp_path / "a").write_bytes(data)
    assert copy_durably(tmp_path / "a", tmp_path / "b") == sha256_of(tmp_path / "b") == hashlib.sha256(data).hexdigest()
    assert (tmp_path / "b").read_bytes() == data


def test_a_copy_of_nothing_leaves_the_old(tmp_path):
    (tmp_path / "b").write_bytes(b"old")
    with pytest.raises(FileNotFoundError):
        copy_durably(tmp_path / "a", tmp_path / "b")
    assert names(tmp_path) == ["b"]


def test_a_private_directory_is_made_closed_to_others(tmp_path):
    assert mode_of(make_private_directory(tmp_path / "other" / "run")) == 0o700


def test_a_directory_that_is_somebodys_already_keeps_its_mode(tmp_path):
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared").chmod(0o755)
    assert mode_of(make_private_directory(tmp_path / "shared")) == 0o755


def test_a_tree_that_is_not_there_is_removed_already(tmp_path):
    remove_tree(tmp_path / "a")
    assert list(tmp_path.iterdir()) == []


def test_two_that_remove_the_same_tree_leave_nothing_of_it(tmp_path):
    for at in range(300):
        (tmp_path / "a" / f"{at % 10}" / f"{at}").mkdir(parents=True)
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(remove_tree, [tmp_path / "a"] * 4)) == [None] * 4
    assert not (tmp_path / "a").exists()
