"""What the way of a model needs is imported before training: a package that is missing is told in the first second."""

from __future__ import annotations

from importlib import import_module

from keynet_core import MissingDependency

_INSTALL = {
    "torch": "pip install 'keynet-train[torch]'",
    "tritonclient.grpc": "pip install 'tritonclient[grpc]'",
}


def check_installed(*modules: str) -> None:
    """
    Import modules, so that the time and the trouble of it come before training.

    Raises:
        MissingDependency: One cannot be imported; the hint installs it.
    """
    for module in modules:
        try:
            import_module(module)
        except ImportError as error:
            hint = _INSTALL.get(module, f"pip install {module}")
            raise MissingDependency(f"{module} cannot be imported: {error}", hint=hint) from error
