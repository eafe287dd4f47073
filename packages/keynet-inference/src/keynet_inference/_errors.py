"""
The branch of the error tree that belongs to functions, and to asking models.

KeynetError
├── FunctionRefused          (also TypeError)
├── ArgsRefused              (also TypeError)
├── ResultRefused            (also ValueError)
├── OutsideCall              (also RuntimeError)
├── FunctionExited
├── FunctionFailed
├── FunctionFileInvalid
├── InferenceError
│   ├── TritonUnavailable
│   │   ├── TritonUnreachable
│   │   └── TritonTimeout    (also TimeoutError)
│   ├── PluginClosed
│   ├── ModelUnnamed
│   ├── ModelNotServed
│   ├── InputRefused         (also ValueError)
│   └── InferenceFailed
└── StoreError
    └── SourceRefused        (also ValueError)

UserWarning
└── SharedMemoryUnused
"""

from __future__ import annotations

from keynet_core import KeynetError, StoreError


class FunctionRefused(KeynetError, TypeError):
    """Raised at decoration, when what is decorated cannot be called as a function of keynet."""

    code = "function.refused"


class ArgsRefused(KeynetError, TypeError):
    """Raised when a function is called with something other than a dict."""

    code = "function.args_refused"


class ResultRefused(KeynetError, ValueError):
    """Raised when a function returns something other than a dict that JSON can carry."""

    code = "function.result_refused"


class OutsideCall(KeynetError, RuntimeError):
    """Raised when user input is asked for where no function is being called."""

    code = "user_input.outside_call"


class FunctionExited(KeynetError):
    """Raised when a function or its file calls `sys.exit`, which would end the process that serves it."""

    code = "function.exited"


class FunctionFailed(KeynetError):
    """Raised by `keynet-inference run` when the function's own code raised something."""

    code = "function.failed"


class FunctionFileInvalid(KeynetError):
    """Raised when a file does not hold exactly one function of keynet that can be read without running it."""

    code = "function.file_invalid"


class InferenceError(KeynetError):
    """Raised when a model server cannot be asked, or does not answer as it should."""

    code = "inference.error"


class TritonUnavailable(InferenceError):
    """Raised when the model server says it cannot answer now, or a connection is lost when it may have answered."""

    code = "inference.unavailable"


class TritonUnreachable(TritonUnavailable):
    """Raised when no connection to the model server comes about, or it is lost before any answer."""

    code = "inference.unreachable"


class TritonTimeout(TritonUnavailable, TimeoutError):
    """Raised when the model server does not connect or answer in time; the request may still be running there."""

    code = "inference.timeout"


class PluginClosed(InferenceError):
    """Raised when a TritonPlugin is used after it was closed."""

    code = "inference.closed"


class ModelUnnamed(InferenceError):
    """Raised when neither the call, nor the plugin, nor MODEL_NAME says which model to ask."""

    code = "inference.model_unnamed"


class ModelNotServed(InferenceError):
    """Raised when the model server has no such model or version ready."""

    code = "inference.model_not_served"


class InputRefused(InferenceError, ValueError):
    """Raised when the inputs do not fit the model: a name, an element type, a shape."""

    code = "inference.input_refused"


class InferenceFailed(InferenceError):
    """Raised when the model server took the request and failed, or its answer cannot be read."""

    code = "inference.failed"


class SourceRefused(StoreError, ValueError):
    """Raised when storage is asked for neither a key nor a URL it may read, or a path cannot be read."""

    code = "storage.source_refused"


class SharedMemoryUnused(UserWarning):
    """Warns, once per plugin, that large inputs are sent over the connection although they were to be shared."""
