"""A function that answers with a served model: keynet_function, UserInput, TritonPlugin, Storage."""

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
