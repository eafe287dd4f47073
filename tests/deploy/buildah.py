"""Images built without a daemon and without a registry, and programs run in them."""

from __future__ import annotations

import ast
import json
import os
import shutil
import subprocess
import sys
import tempfile
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from deploy.debian import make_system
from deploy.files import DEPLOY, ROOT
from deploy.processes import ProgramFailed, call, own_mounts, running, to_the_end
from engines._guardian import Guardian

if TYPE_CHECKING:
    from collections.abc import Callable

BASE = "localhost/debian-python:3.11"
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
PROGRAMS = ("buildah", "mmdebstrap")
# The second one copies every layer whole, and works where the first does not.
DRIVERS = ("overlay", "vfs")
KEPT = {
    *("cert", "client-cert", "proxy", "trusted-host"),
    *("index-url", "extra-index-url", "find-links", "no-index"),
    *("timeout", "default-timeout", "retries"),
}
NO_INDEX = ("Max retries exceeded", "Connection refused", "timed out", "Temporary failure in name resolution")


class Buildah:
    """A store of images of its own, in a directory that is removed afterwards."""

    def __init__(self, directory: Path, watch: Callable[[int], None], before: list[str]) -> None:
        self.directory = directory
        self.watch = watch
        self.before = before
        self.driver = DRIVERS[0]
        self.environ = os.environ | {"TMPDIR": str(directory)}

    def command(self, *arguments: str) -> list[str]:
        store = self.directory / self.driver
        places = ["--root", str(store / "root"), "--runroot", str(store / "run")]
        return [*self.before, "buildah", "--storage-driver", self.driver, *places, *arguments]

    def call(self, *arguments: str, timeout_s: float = 900) -> str:
        return call(self.command(*arguments), timeout_s=timeout_s, watch=self.watch, env=self.environ)

    def choose_driver(self) -> None:
        """Choose the first driver with which a container runs here."""
        refused = []
        for driver in DRIVERS:
            self.driver = driver
            try:
                self._run_something()
            except ProgramFailed as error:
                refused.append(f"{driver}: {error.reason}")
            else:
                return
        raise ProgramFailed("a container of nothing but `true`", "; ".join(refused))

    def _run_something(self) -> None:
        """Make a container that holds `true` and the libraries of it, and run it."""
        program = shutil.which("true")
        told = call(["ldd", program], timeout_s=60).split()
        system = self.directory / "true"
        for each in (program, *(word for word in told if word.startswith("/"))):
            copy = system / each.lstrip("/")
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(each, copy)
        container = self.call("from", "scratch", timeout_s=120).strip()
        self.call("copy", container, str(system), "/", timeout_s=120)
        call(self.run_command(container, program), timeout_s=120, watch=self.watch, env=self.environ)
        self.call("rm", container, timeout_s=120)

    def make_base(self) -> None:
        """Make the image that ours are built on."""
        archive = self.directory / "system.tar"
        make_system(archive, self.watch, self.before)
        container = self.call("from", "scratch").strip()
        self.call("add", container, str(archive), "/")
        self.call("config", "--env", f"PATH={PATH}", container)
        self.call("commit", "--rm", container, BASE)
        archive.unlink()

    def build(self, dockerfile: str, tag: str) -> str:
        """Build one of our images on the base; skip where a build does not reach the package index."""
        settings = [
            "--build-arg",
            f"BASE={BASE}",
            *(f"--volume={source}:{target}:ro" for source, target in self._pip_settings()),
        ]
        options = ["--isolation", "chroot", "--format", "docker", "--pull-never", *settings]
        try:
            self.call("build", *options, "--file", str(DEPLOY / dockerfile), "--tag", tag, str(ROOT))
        except ProgramFailed as error:
            if (said := next((words for words in NO_INDEX if words in str(error)), None)) is None:
                raise
            pytest.skip(f"a build on this machine does not reach the package index: {said}")
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
        ran = self.run_command(container, *command, environ=environ)
        return to_the_end(ran, timeout_s=300, watch=self.watch, env=self.environ)

    def running(self, container: str, *command: str, log: Path, environ=None):
        """Run a program in a container, as the image's user, for as long as the block lasts."""
        return running(self.run_command(container, *command, environ=environ), log, self.watch, self.environ)

    def run_command(self, container: str, *command: str, environ=None) -> list[str]:
        variables = [f"--env={name}={value}" for name, value in (environ or {}).items()]
        return self.command("run", "--isolation", "chroot", *variables, container, "--", *command)

    def _pip_settings(self) -> list[tuple[str, str]]:
        """Return what a build has to see to reach the package index that this machine reaches: never in the files."""
        lines = call([sys.executable, "-m", "pip", "config", "list"], timeout_s=120).splitlines()
        told = {}
        # The environment comes first in the list, and counts more than any file.
        for line in sorted(lines, key=lambda line: line.startswith(":env:")):
            key, _, value = line.partition("=")
            told[key.rpartition(".")[2]] = " ".join(ast.literal_eval(value).split())
        kept = {option: text for option, text in told.items() if option in KEPT}
        settings = self.directory / "pip.conf"
        settings.write_text("[global]\n" + "".join(f"{option} = {text}\n" for option, text in kept.items()))
        seen = {place for option, text in kept.items() for word in text.split() for place in _places(option, word)}
        return [(str(settings), "/etc/pip.conf"), *((place, place) for place in sorted(seen))]


def _places(option: str, word: str) -> list[str]:
    """Return the directory or file of this machine's that a word of pip's settings names."""
    path = Path(word.removeprefix("file://"))
    # The pages of an index link to files beside it.
    place = path.parent if option.endswith("index-url") and len(path.parents) > 2 else path
    return [str(place)] if place.is_absolute() and place.exists() else []


@contextmanager
def open_buildah():
    """
    Open a store of images; skip where none can be built.

    That buildah is not installed is a failure with CI=true. That this machine refuses to run a container is not: the
    reason says what it refused.
    """
    if os.geteuid() != 0:
        pytest.skip("images are built by root alone, and this is not root")
    missing = [name for name in PROGRAMS if shutil.which(name) is None]
    if missing:
        pytest.skip(f"needs {' and '.join(missing)}: make engines")
    with ExitStack() as ending:
        guardian = ending.enter_context(closing(Guardian()))
        directory = Path(tempfile.mkdtemp(prefix="keynet-images-"))
        guardian.remove(str(directory))
        ending.callback(shutil.rmtree, directory)
        # apt, which is not root when it fetches, has to pass.
        directory.chmod(0o755)
        try:
            buildah = Buildah(directory, guardian.watch, ending.enter_context(own_mounts(guardian.watch)))
            buildah.choose_driver()
        except ProgramFailed as error:
            pytest.skip(f"buildah is installed and cannot run a container on this machine: {error.reason}")
        yield buildah
