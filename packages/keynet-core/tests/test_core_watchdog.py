"""What is done over a socket is done in time, or is cut short; what was in time is left alone."""

from __future__ import annotations

import socket
import threading

import pytest

from keynet_core._watchdog import Watchdog

PATIENT_S = 60.0


@pytest.fixture
def pair():
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield ours, theirs


def watchdogs():
    return [thread for thread in threading.enumerate() if thread.name == "keynet-watchdog"]


def test_a_step_that_takes_too_long_is_cut_short_and_told(pair):
    ours, _ = pair
    told = pytest.raises(TimeoutError, match=r"no whole answer within 0\.1 s")
    with Watchdog() as watchdog, told, watchdog.bounding(ours, 0.1):
        assert ours.recv(1) == b""  # as if the other side had ended


def test_what_a_step_that_was_cut_short_raised_is_the_cause(pair):
    ours, _ = pair

    def step():
        ours.recv(1)
        raise ConnectionError("half an answer")

    with Watchdog() as watchdog, pytest.raises(TimeoutError) as caught, watchdog.bounding(ours, 0.1):
        step()
    assert isinstance(caught.value.__cause__, ConnectionError)


def test_a_step_that_fails_in_time_fails_as_it_did(pair):
    ours, _ = pair
    with Watchdog() as watchdog, pytest.raises(ZeroDivisionError), watchdog.bounding(ours, PATIENT_S):
        1 / 0  # noqa: B018 - to raise is the test


def test_many_steps_have_one_thread_which_ends_with_them(pair, eventually):
    ours, theirs = pair
    with Watchdog() as watchdog:
        for _ in range(1000):
            with watchdog.bounding(ours, PATIENT_S):
                theirs.send(b"x")
                assert ours.recv(1) == b"x"
        assert len(watchdogs()) == 1
    eventually(lambda: not watchdogs())


def test_a_step_with_less_time_than_the_one_before_is_bounded_too(pair):
    ours, _ = pair
    with Watchdog() as watchdog:
        with watchdog.bounding(ours, PATIENT_S):
            pass
        with pytest.raises(TimeoutError, match=r"0\.1 s"), watchdog.bounding(ours, 0.1):
            ours.recv(1)


def test_between_two_steps_nothing_is_cut(pair):
    ours, theirs = pair
    with Watchdog() as watchdog:
        with watchdog.bounding(ours, 0.2):
            pass
        assert not threading.Event().wait(0.5)
        theirs.send(b"x")
        assert ours.recv(1) == b"x"


def test_after_a_step_was_cut_short_the_next_is_not(pair):
    ours, _ = pair
    with Watchdog() as watchdog:
        with pytest.raises(TimeoutError), watchdog.bounding(ours, 0.1):
            ours.recv(1)
        left, right = socket.socketpair()
        with left, right, watchdog.bounding(left, PATIENT_S):
            right.send(b"x")
            assert left.recv(1) == b"x"


def test_a_watchdog_that_watched_nothing_has_no_thread(eventually):
    eventually(lambda: not watchdogs())
    with Watchdog():
        assert watchdogs() == []
