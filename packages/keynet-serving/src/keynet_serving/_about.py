"""What the server says about itself."""

from __future__ import annotations

import importlib.metadata

SERVER_NAME = "keynet-serving"
EXTENSIONS = [
    "classification",
    "model_repository",
    "model_configuration",
    "binary_tensor_data",
    "parameters",
    "statistics",
]


def version() -> str:
    """Return the version of this distribution."""
    return importlib.metadata.version("keynet-serving")
