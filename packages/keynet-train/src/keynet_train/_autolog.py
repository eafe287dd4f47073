"""
MLflow's autologging for PyTorch, without the seconds it takes to import Lightning for those who do not use it.

`mlflow.pytorch` imports Lightning wherever it is installed, for the sake of one name, and switching autologging on
imports it as well. So the first is left out here until somebody asks for that name, and the second is done when the
training itself imports something that can be recorded.
"""

from __future__ import annotations

import sys
from contextlib import contextmanager
from importlib.abc import MetaPathFinder
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from importlib.machinery import ModuleSpec
    from types import ModuleType

_RECORDED = frozenset({"lightning", "pytorch_lightning", "torch.utils.tensorboard"})
"""What MLflow can record."""

_FLAVOR = "mlflow.pytorch"
_CALLBACK_HOME, _CALLBACK = "mlflow.pytorch._lightning_autolog", "MlflowModelCheckpointCallback"


def import_mlflow_pytorch() -> None:
    """Import `mlflow.pytorch`, and Lightning with it only when it is imported already."""
    if _FLAVOR in sys.modules or _is_something_to_record():
        import mlflow.pytorch
    else:
        with _first_on_meta_path(_Hidden()):
            import mlflow.pytorch
        vars(mlflow.pytorch).setdefault("__getattr__", _callback)


def _callback(name: str) -> Any:
    """Return what was left out of `mlflow.pytorch`, now that it is asked for."""
    if name == _CALLBACK:
        try:
            from mlflow.pytorch._lightning_autolog import MlflowModelCheckpointCallback
        except ImportError:  # Lightning is not installed: MLflow leaves the name out as well
            pass
        else:
            return MlflowModelCheckpointCallback
    raise AttributeError(f"module {_FLAVOR!r} has no attribute {name!r}")


def _is_something_to_record() -> bool:
    return any(each in sys.modules for each in _RECORDED)


@contextmanager
def recording() -> Iterator[None]:
    """
    Have MLflow record what PyTorch Lightning logs in the block; a user's own `mlflow.pytorch.autolog(...)` stays.

    The model is not left to autologging: it only knows Lightning's trainers, and would store it once per fit.
    """
    switch = _Switch()
    try:
        if _is_something_to_record():
            switch.on()
            yield
        else:
            with _first_on_meta_path(_Watching(switch.on)):
                yield
    finally:
        switch.off()


class _Switch:
    """Autologging, on at most once, and off again when it was switched on here."""

    def __init__(self) -> None:
        self._is_tried = self._is_ours = False

    def on(self) -> None:
        import mlflow.pytorch
        from mlflow.utils.autologging_utils import autologging_is_disabled

        if not self._is_tried and autologging_is_disabled("pytorch"):
            mlflow.pytorch.autolog(log_models=False, checkpoint=False, silent=True)
            self._is_ours = True
        self._is_tried = True

    def off(self) -> None:
        if self._is_ours:
            import mlflow.pytorch

            mlflow.pytorch.autolog(disable=True, silent=True)


@contextmanager
def _first_on_meta_path(finder: MetaPathFinder) -> Iterator[None]:
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)


class _Hidden(MetaPathFinder):
    """Hides the part of MLflow that imports Lightning; MLflow goes on without it, as where Lightning is missing."""

    def find_spec(self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None) -> None:  # noqa: ARG002 - importlib's signature
        if fullname == _CALLBACK_HOME:
            raise ModuleNotFoundError(f"{fullname} is not imported yet", name=fullname)


class _Watching(MetaPathFinder):
    """Calls `then` when something that can be recorded was imported, with all that its import began."""

    def __init__(self, then: Callable[[], None]) -> None:
        self._then = then
        self._depth = 0

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        # mlflow.pytorch imports Lightning while it is imported itself: until its end it cannot be asked for anything.
        if fullname not in _RECORDED and fullname != _FLAVOR:
            return None
        others = (each for each in sys.meta_path if each is not self)
        spec = next((found for each in others if (found := each.find_spec(fullname, path, target))), None)
        # MLflow's own finder, when `mlflow.autolog()` was called, asks here again, and wraps the loader it is given.
        if spec is not None and hasattr(spec.loader, "exec_module"):
            self._extend(spec.loader)
        return spec

    def _extend(self, loader: Any) -> None:
        execute = loader.exec_module

        def exec_module(module: ModuleType) -> None:
            del loader.exec_module
            self._depth += 1
            try:
                execute(module)
            finally:
                self._depth -= 1
            if self._depth == 0 and self in sys.meta_path and _is_something_to_record():
                self._then()

        loader.exec_module = exec_module
