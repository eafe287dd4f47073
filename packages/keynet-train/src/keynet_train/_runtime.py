"""An ONNX file asked through ONNX Runtime, on the CPU."""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING, Any

from keynet_core import DataType
from keynet_train._errors import GraphInvalid

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    import numpy.typing as npt

    Array = npt.NDArray[Any]

_SILENT = 4
_BF16, _TEXT = "tensor(bfloat16)", "tensor(string)"


class OnnxSession:
    """
    A loaded ONNX file.

    Raises:
        GraphInvalid: ONNX Runtime cannot load it.
    """

    def __init__(self, path: Path) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.log_severity_level = _SILENT  # what matters is raised
        try:
            self._session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:
            # The runtime's exceptions have no class in common.
            raise GraphInvalid(f"ONNX Runtime cannot load {path.name}: {_told(error)}") from error
        self._inputs = {each.name: each.type for each in self._session.get_inputs()}
        self._outputs = {each.name: each.type for each in self._session.get_outputs()}

    @staticmethod
    def version() -> str:
        """Return the runtime's name and version."""
        import onnxruntime

        return f"onnxruntime {onnxruntime.__version__}"

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """
        Return every output by its name.

        Raises:
            GraphInvalid: The runtime refuses the inputs, or fails while it computes.
        """
        types = (*self._inputs.values(), *self._outputs.values())
        run = self._run_values if _BF16 in types and _TEXT not in self._inputs.values() else self._run_arrays
        try:
            return run(inputs)
        except Exception as error:
            raise GraphInvalid(f"ONNX Runtime cannot run the model: {_told(error)}") from error

    def _run_arrays(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        # Text is taken as an array alone, bfloat16 as a value alone; a run that answers arrays takes both.
        given = {name: _to_value(array) if array.dtype == "bfloat16" else array for name, array in inputs.items()}
        answered = self._session.run(None, given)
        return dict(zip(self._outputs, answered, strict=True))

    def _run_values(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        given = {name: _to_value(array) for name, array in inputs.items()}
        answered = self._session.run_with_ort_values(None, given)
        return {name: _to_array(value) for name, value in zip(self._outputs, answered, strict=True)}


def run_onnx(path: Path, inputs: Mapping[str, Array]) -> dict[str, Array]:
    """
    Load an ONNX file, run it once and return every output by its name.

    Raises:
        GraphInvalid: ONNX Runtime cannot load it, or cannot run it with these inputs.
    """
    return OnnxSession(path).run(inputs)


def _to_value(array: Array) -> Any:
    import numpy as np
    import onnxruntime

    if array.dtype != "bfloat16":
        return onnxruntime.OrtValue.ortvalue_from_numpy(array)
    # numpy has no bfloat16 the runtime knows; the same bits as whole numbers, with the type said beside them.
    bits = np.ascontiguousarray(array).view(np.uint16)
    return onnxruntime.OrtValue.ortvalue_from_numpy_with_onnx_type(bits, DataType.BF16.onnx)


def _to_array(value: Any) -> Array:
    import numpy as np

    if value.data_type() != _BF16:
        array: Array = value.numpy()
        return array
    shape = value.shape()
    count = int(np.prod(shape, dtype=np.int64))
    bits = np.empty(count, dtype=np.uint16)
    if count:
        ctypes.memmove(bits.ctypes.data, value.data_ptr(), bits.nbytes)
    return bits.view(DataType.BF16.to_numpy()).reshape(shape)


def _told(error: Exception) -> str:
    first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return first if len(first) <= 300 else f"{first[:297]}..."
