"""Programs that are run to their end, and of which nothing is left whatever ends the wait."""

from __future__ import annotations

import os
import signal
import subprocess
from contextlib import contextmanager, suppress


class ProgramFailed(Exception):
    """Raised when a program ended with an error or not in time; the reason is its first word on that."""

    def __init__(self, what, reason):
        super().__init__(f"{what}: {reason}")
        self.reason = reason.split("\n", 1)[0]


def to_the_end(command, *, timeout_s, watch=None, **options):
    """
    Run a program and return what came of it; it is ended, with all that it started, when it takes too long.

    `watch` is told its number, to end it when this process is killed.
    """
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        **options,
    )
    try:
        if watch is not None:
            watch(process.pid)
        out, err = process.communicate(timeout=timeout_s)
    except BaseException as error:
        _end(process, signal.SIGKILL)
        process.communicate()
        if isinstance(error, subprocess.TimeoutExpired):
            raise ProgramFailed(" ".join(command), f"it did not end within {timeout_s} s") from None
        raise
    return subprocess.CompletedProcess(command, process.returncode, out, err)


def call(command, *, timeout_s, **options):
    """Run a program that must not fail and return what it said."""
    done = to_the_end(command, timeout_s=timeout_s, **options)
    if done.returncode != 0:
        said = f"{done.stderr[-4000:]}\n{done.stdout[-4000:]}".strip()
        raise ProgramFailed(" ".join(command), said or f"it ended with {done.returncode}")
    return done.stdout


@contextmanager
def running(command, log, watch, environ):
    """Run a program in a group of its own, which is ended with all that it started."""
    with log.open("wb") as told:
        process = subprocess.Popen(command, stdout=told, stderr=told, env=environ, start_new_session=True)
    try:
        watch(process.pid)
        yield process
    finally:
        _end(process, signal.SIGTERM)
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            _end(process, signal.SIGKILL)
            process.wait()


def _end(process, number):
    with suppress(ProcessLookupError):  # it ended by itself
        os.killpg(process.pid, number)


@contextmanager
def own_mounts(watch):
    """
    Yield the beginning of a command line that runs a program in a mount namespace of its own.

    What is mounted in it ends with it, also when this process is killed.
    """
    command = ["unshare", "--mount", "--propagation", "private", "sh", "-c", "echo made; exec sleep infinity"]
    pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, text=True, start_new_session=True, **pipes) as holder:
        try:
            watch(holder.pid)
            if holder.stdout.readline() != "made\n":
                raise ProgramFailed(" ".join(command), holder.stderr.read().strip())
            yield ["nsenter", f"--mount=/proc/{holder.pid}/ns/mnt"]
        finally:
            holder.kill()
