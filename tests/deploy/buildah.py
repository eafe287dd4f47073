"""Images built without a daemon and without a registry, and programs run in them."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path

import pytest

from deploy.files import DEPLOY, ROOT

BASE = "localhost/debian-python:3.11"
SUITE = "bookworm"
PACKAGES = "ca-certificates,python3,python3-venv"
KEPT = {"cert", "index-url", "extra-index-url", "trusted-host", "proxy"}


def skip_without_buildah():
    """Skip when an image cannot be built here."""
    for name in ("buildah", "debootstrap"):
        if shutil.which(name) is None:
            pytest.skip("needs buildah and debootstrap: apt-get install buildah debootstrap")
    if os.getuid() != 0:
        pytest.skip("needs root: debootstrap makes a system that belongs to root")


class Buildah:
    """A store of images of its own, in a directory that is removed afterwards."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.mounts = self._pip_settings()
        self.driver = "overlay"
        # The other driver copies every layer whole, and works everywhere.
        if subprocess.run(self.command("info"), capture_output=True, check=False).returncode:
            self.driver = "vfs"

    def command(self, *arguments: str) -> list[str]:
        store = ["--root", str(self.directory / self.driver), "--runroot", str(self.directory / "run")]
        return ["buildah", "--storage-driver", self.driver, *store, *arguments]

    def call(self, *arguments: str, timeout_s: float = 600) -> str:
        done = subprocess.run(
            self.command(*arguments), capture_output=True, text=True, timeout=timeout_s, check=False, cwd=ROOT
        )
        assert done.returncode == 0, f"{arguments}\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
        return done.stdout

    def make_base(self) -> None:
        """Make a small Debian with Python: what stands for the base that a registry would give."""
        system = self.directory / "system"
        command = ["debootstrap", "--variant=minbase", f"--include={PACKAGES}", SUITE, str(system)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
        assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
        shutil.rmtree(system / "var/cache/apt/archives")
        container = self.call("from", "scratch").strip()
        self.call("copy", container, str(system), "/")
        self.call("config", "--env", "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", container)
        self.call("commit", "--rm", container, BASE)
        shutil.rmtree(system)

    def build(self, dockerfile: str, tag: str) -> str:
        """Build one of our images on the base."""
        settings = [
            "--build-arg",
            f"BASE={BASE}",
            *(f"--volume={source}:{target}:ro" for source, target in self.mounts),
        ]
        options = ["--isolation", "chroot", "--format", "docker", "--pull-never", *settings]
        self.call("build", *options, "--file", str(DEPLOY / dockerfile), "--tag", tag, str(ROOT))
        return tag

    def config(self, image: str) -> dict:
        """Return what an image says of itself."""
        return json.loads(self.call("inspect", "--type", "image", image))["Docker"]["config"]

    @contextmanager
    def container(self, image: str):
        """Make a container of an image; it shares this machine's network."""
        name = self.call("from", "--pull-never", image).strip()
        try:
            yield name
        finally:
            self.call("rm", name)

    def run(self, container: str, *command: str, environ=None) -> subprocess.CompletedProcess[str]:
        """Run a program in a container, as the image's user."""
        full = self.run_command(container, *command, environ=environ)
        return subprocess.run(full, capture_output=True, text=True, timeout=300, check=False)

    def run_command(self, container: str, *command: str, environ=None) -> list[str]:
        variables = [f"--env={name}={value}" for name, value in (environ or {}).items()]
        return self.command("run", "--isolation", "chroot", *variables, container, "--", *command)

    def _pip_settings(self) -> list[tuple[str, str]]:
        """Return what a build has to see to reach the package index that this machine reaches: never in the files."""
        asked = [sys.executable, "-m", "pip", "config", "list"]
        lines = subprocess.run(asked, capture_output=True, text=True, check=True).stdout.splitlines()
        told = {}
        for line in lines:
            key, _, value = line.partition("=")
            option, text = key.rpartition(".")[2], value.strip("'")
            if option in KEPT and "file://" not in text:
                told[option] = text
        settings = self.directory / "pip.conf"
        settings.write_text("[global]\n" + "".join(f"{option} = {text}\n" for option, text in told.items()))
        mounts = [(str(settings), "/etc/pip.conf")]
        return mounts + ([(told["cert"], told["cert"])] if "cert" in told else [])


@contextmanager
def open_buildah():
    directory = Path(tempfile.mkdtemp(prefix="keynet-images-"))
    try:
        yield Buildah(directory)
    finally:
        shutil.rmtree(directory)
