"""
A function that answers with a served model: keynet_function, UserInput, TritonPlugin, Storage.

A public name is loaded when it is first asked for: a function's container pays for what it uses.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from keynet_inference._errors import (
        ArgsRefused,
        FunctionExited,
        FunctionFailed,
        FunctionFileInvalid,
        FunctionRefused,
        InferenceError,
        InferenceFailed,
        InputRefused,
        ModelNotServed,
        ModelUnnamed,
        OutsideCall,
        PluginClosed,
        ResultRefused,
        SharedMemoryUnused,
        SourceRefused,
        TritonTimeout,
        TritonUnavailable,
        TritonUnreachable,
    )
    from keynet_inference._function import FunctionInfo, KeynetFunction, keynet_function
    from keynet_inference._settings import Retry, StorageSettings, TritonSettings
    from keynet_inference._storage import Storage
    from keynet_inference._triton import TritonPlugin
    from keynet_inference._user_input import UserInput

__all__ = [
    "ArgsRefused",
    "FunctionExited",
    "FunctionFailed",
    "FunctionFileInvalid",
    "FunctionInfo",
    "FunctionRefused",
    "InferenceError",
    "InferenceFailed",
    "InputRefused",
    "KeynetFunction",
    "ModelNotServed",
    "ModelUnnamed",
    "OutsideCall",
    "PluginClosed",
    "ResultRefused",
    "Retry",
    "SharedMemoryUnused",
    "SourceRefused",
    "Storage",
    "StorageSettings",
    "TritonPlugin",
    "TritonSettings",
    "TritonTimeout",
    "TritonUnavailable",
    "TritonUnreachable",
    "UserInput",
    "keynet_function",
]

_HOMES = {
    "_errors": (
        "ArgsRefused",
        "FunctionExited",
        "FunctionFailed",
        "FunctionFileInvalid",
        "FunctionRefused",
        "InferenceError",
        "InferenceFailed",
        "InputRefused",
        "ModelNotServed",
        "ModelUnnamed",
        "OutsideCall",
        "PluginClosed",
        "ResultRefused",
        "SharedMemoryUnused",
        "SourceRefused",
        "TritonTimeout",
        "TritonUnavailable",
        "TritonUnreachable",
    ),
    "_function": (
        "FunctionInfo",
        "KeynetFunction",
        "keynet_function",
    ),
    "_settings": (
        "Retry",
        "StorageSettings",
        "TritonSettings",
    ),
    "_storage": ("Storage",),
    "_triton": ("TritonPlugin",),
    "_user_input": ("UserInput",),
}
"""Module to the public names it holds; the imports above are the same, for those who read types."""

if not TYPE_CHECKING:

    def __getattr__(name: str) -> object:
        from importlib import import_module

        for home, names in _HOMES.items():
            if name in names:
                value = globals()[name] = getattr(import_module(f"{__name__}.{home}"), name)
                return value
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

    def __dir__() -> list[str]:
        return __all__
