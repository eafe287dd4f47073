"""The real tritonserver, from NVIDIA's wheel, with a backend in Python that runs ONNX Runtime."""

from __future__ import annotations

import contextlib
import os
import shutil
import urllib.error
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from engines._engine import Engine

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

ROOT = Path(__file__).resolve().parents[2]
ENVIRONMENT = ROOT / ".venv-triton"
BACKEND = Path(__file__).with_name("triton_backend") / "model.py"

# What the stub is linked with; where it is depends on how Python was built.
PYTHON_LIBRARIES = (Path("/lib/x86_64-linux-gnu"), Path("/usr/lib/x86_64-linux-gnu"), Path("/usr/lib64"))


class Installed:
    """Where the parts of the wheel are."""

    def __init__(self) -> None:
        packages = next(iter(sorted(ENVIRONMENT.glob("lib/python3.*/site-packages"))), ENVIRONMENT)
        self.python = packages.parent.name.removeprefix("python")
        self.server = packages / "pytriton" / "tritonserver"
        self.libraries = packages / "nvidia_pytriton.libs"
        self.program = self.server / "bin" / "tritonserver"
        self.stub = self.server / "python_backend_stubs" / self.python / "triton_python_backend_stub"
        self.onnxruntime = packages / "onnxruntime"

    def python_library(self) -> Path | None:
        """Return the directory of libpython, None when there is none."""
        name = f"libpython{self.python}.so.1.0"
        interpreter = (ENVIRONMENT / "bin" / "python").resolve()
        places = (interpreter.parent.parent / "lib", *PYTHON_LIBRARIES)
        return next((place for place in places if os.access(place / name, os.R_OK)), None)


class TritonServer(Engine):
    """One tritonserver over one repository."""

    NAME: ClassVar[str] = "Triton"
    PORT_COUNT: ClassVar[int] = 3

    @classmethod
    def is_installed(cls) -> str | None:
        installed = Installed()
        for path in (installed.program, installed.stub, installed.onnxruntime):
            if not os.access(path, os.R_OK):
                return f"no {path.name} in {ENVIRONMENT.name}"
        return None if installed.python_library() else f"no libpython{installed.python}.so.1.0"

    def __init__(
        self, repository: Path | str, arguments: Sequence[str] = (), environ: Mapping[str, str] | None = None
    ) -> None:
        super().__init__()
        self._repository = str(repository)
        self._arguments = arguments
        self._given = dict(environ or {})
        self._installed = Installed()

    @property
    def url(self) -> str:
        """Where KServe v2 over HTTP is."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def grpc_url(self) -> str:
        """Where KServe v2 over gRPC is."""
        return f"grpc://127.0.0.1:{self.port + 1}"

    @property
    def metrics_url(self) -> str:
        """Where the metrics are, for Prometheus."""
        return f"http://127.0.0.1:{self.port + 2}/metrics"

    def log(self) -> str:
        """Return what the server wrote since it first started."""
        return (self.directory / "triton.out").read_text(encoding="utf-8", errors="replace")

    @property
    def _shared_memory(self) -> str:
        return f"keynet-triton-{self.port}-"

    def _prepare(self) -> None:
        self._leave_nothing_of(f"/dev/shm/{self._shared_memory}*")  # noqa: S108 - where it is
        wheel = self._installed.server / "backends" / "python"
        # Copies: Triton refuses a link that leaves the directory.
        for name, files in {
            "python": [wheel / "libtriton_python.so", wheel / "triton_python_backend_utils.py", self._installed.stub],
            "onnxruntime": [BACKEND],
        }.items():
            (self.directory / "backends" / name).mkdir(parents=True)
            for file in files:
                shutil.copy(file, self.directory / "backends" / name)
        (self.directory / "s3").mkdir()

    def _launch(self) -> None:
        addresses = [
            part
            for name, port in (("http", self.port), ("grpc", self.port + 1), ("metrics", self.port + 2))
            for part in (f"--{name}-address=127.0.0.1", f"--{name}-port={port}")
        ]
        is_told = any(argument.startswith("--model-control-mode") for argument in self._arguments)
        command = [
            str(self._installed.program),
            f"--model-repository={self._repository}",
            f"--backend-directory={self.directory / 'backends'}",
            f"--cache-directory={self._installed.server / 'caches'}",
            f"--backend-config=python,shm-region-prefix-name={self._shared_memory}",
            "--exit-timeout-secs=2",
            *addresses,
            *([] if is_told else ["--model-control-mode=explicit"]),
            *self._arguments,
        ]
        before = _left_in_tmp()
        self._run("triton", command)
        try:
            # The server listens when the models it was told to load are loaded, or have failed to.
            self._await(self._is_live)
        finally:
            for path in _left_in_tmp() - before:
                self._leave_nothing_of(str(path))

    def _is_live(self) -> bool:
        try:
            urllib.request.urlopen(f"{self.url}/v2/health/live", timeout=5).close()  # noqa: S310 - our own server
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            return False
        return True

    def _environ(self) -> dict[str, str]:
        environ = super()._environ()
        library = self._installed.python_library()
        return environ | {
            # The embedded interpreter finds its packages beside the first python3 on the path.
            "PATH": f"{ENVIRONMENT / 'bin'}:{environ['PATH']}",
            "LD_LIBRARY_PATH": f"{self._installed.libraries}:{library}",
            "TRITON_AWS_MOUNT_DIRECTORY": str(self.directory / "s3"),
            "AWS_EC2_METADATA_DISABLED": "true",
            "PYTHONDONTWRITEBYTECODE": "1",
            **self._given,
        }


def _left_in_tmp() -> set[Path]:
    """Return our empty directories that Triton makes at its start and leaves; no setting says where."""
    found = Path("/tmp").glob("python_env_*")  # noqa: S108 - Triton's choice
    return {path for path in found if path.stat().st_uid == os.geteuid() and not any(path.iterdir())}


class Triton:
    """Starts tritonservers; each is one process for the server and one for each instance of a model."""

    def __init__(self, serving: Callable[[TritonServer], contextlib.AbstractContextManager[TritonServer]]) -> None:
        self._serving = serving

    @contextlib.contextmanager
    def serve(
        self, repository: Path | str, *arguments: str, environ: Mapping[str, str] | None = None
    ) -> Iterator[TritonServer]:
        """
        Serve a repository for as long as the block runs, with models loaded by request unless told otherwise.

        Args:
            repository: A directory, or `s3://http://host:port/bucket/prefix`.
            arguments: Further ones of tritonserver: `--load-model=NAME`, `--disable-auto-complete-config`.
            environ: Further environment: the keys for S3.
        """
        with self._serving(TritonServer(repository, arguments, environ)) as server:
            yield server
