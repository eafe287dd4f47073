"""A small Debian with Python, made by mmdebstrap: what stands for the base that a registry would give."""

from __future__ import annotations

import os
import shutil
import subprocess

import pytest

from deploy.processes import ProgramFailed, call

SUITE = "bookworm"
PACKAGES = "ca-certificates,python3,python3-venv"
UNREAD = ("doc", "info", "locale", "man")


def make_system(archive, watch, before=(), mirror=None):
    """
    Write the files of a Debian into a tar archive, or skip; apt tries four times to fetch what it needs.

    `before` begins the command line: what mmdebstrap mounts of this machine must not be below our directory for others.
    """
    command = [
        *before,
        "mmdebstrap",
        "--variant=apt",
        f"--include={PACKAGES}",
        "--skip=output/dev",
        "--dpkgopt=force-unsafe-io",
        *(f"--dpkgopt=path-exclude=/usr/share/{each}/*" for each in UNREAD),
        *(f"--aptopt={line}" for line in _apt_settings()),
        SUITE,
        str(archive),
        *([mirror] if mirror else _mirror()),
    ]
    try:
        # Its own directory is then below ours, which is removed in any case.
        call(command, timeout_s=900, watch=watch, env=os.environ | {"TMPDIR": str(archive.parent)})
    except ProgramFailed as error:
        said = [line for line in str(error).splitlines() if line.startswith("E: ")]
        pytest.skip(f"mmdebstrap makes no Debian on this machine: {(said or [error.reason])[0]}")


def _apt_settings():
    """Return how apt reaches the network on this machine, and what it believes of dates."""
    lines = _ask("apt-config", "dump", "--no-empty", "--format", '%f "%v";%n')
    kept = ("Acquire::http", "Acquire::Check-")
    return ['Acquire::Retries "3"', *(line for line in lines if line.startswith(kept))]


def _mirror():
    """Return where this machine's apt gets the suite from; nothing when it gets another one, and mmdebstrap chooses."""
    told = "$(REPO_URI) $(CODENAME) $(COMPONENT) $(ORIGIN)"
    lines = _ask("apt-get", "indextargets", "--format", told, "Created-By: Packages")
    return [line.split()[0] for line in lines if line.split()[1:] == [SUITE, "main", "Debian"]][:1]


def _ask(*command):
    if shutil.which(command[0]) is None:
        return []
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout.splitlines()
