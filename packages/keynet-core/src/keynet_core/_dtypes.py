"""Element types: one row per type, with the name every neighbour gives it."""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING, Any, Self

from keynet_core._errors import MissingDependency, TensorMismatch

if TYPE_CHECKING:
    import numpy as np


class DataType(Enum):
    """
    The type of a tensor's elements, named as Triton names it without `TYPE_`.

    Each member carries its KServe v2 name, ONNX's number (`TensorProto.DataType`), numpy's name and its size in
    bytes (0 where it varies). MLflow's tensor types are numpy's, except that text is `str` there.
    """

    BOOL = ("BOOL", 9, "bool", 1)
    UINT8 = ("UINT8", 2, "uint8", 1)
    UINT16 = ("UINT16", 4, "uint16", 2)
    UINT32 = ("UINT32", 12, "uint32", 4)
    UINT64 = ("UINT64", 13, "uint64", 8)
    INT8 = ("INT8", 3, "int8", 1)
    INT16 = ("INT16", 5, "int16", 2)
    INT32 = ("INT32", 6, "int32", 4)
    INT64 = ("INT64", 7, "int64", 8)
    FP16 = ("FP16", 10, "float16", 2)
    FP32 = ("FP32", 1, "float32", 4)
    FP64 = ("FP64", 11, "float64", 8)
    BF16 = ("BF16", 16, "bfloat16", 2)
    STRING = ("BYTES", 8, "object", 0)

    def __init__(self, kserve: str, onnx: int, numpy_name: str, size_bytes: int) -> None:
        self.kserve = kserve
        self.onnx = onnx
        self.numpy_name = numpy_name
        self.size_bytes = size_bytes

    @property
    def triton(self) -> str:
        """The name in `config.pbtxt`, such as `TYPE_FP32`."""
        return f"TYPE_{self.name}"

    @property
    def mlflow(self) -> str:
        """The name in an MLflow tensor signature, such as `float32`; numpy has no text type, MLflow says `str`."""
        return "str" if self is DataType.STRING else self.numpy_name

    @property
    def is_float(self) -> bool:
        """Whether the type holds fractions."""
        return self in {DataType.FP16, DataType.FP32, DataType.FP64, DataType.BF16}

    def to_numpy(self) -> np.dtype[Any]:
        """
        Return numpy's dtype; STRING is an array of objects, BF16 needs `ml_dtypes`.

        Raises:
            MissingDependency: BF16 without `ml_dtypes`.

        """
        import numpy as np

        if self is not DataType.BF16:
            return np.dtype(self.numpy_name)
        try:
            import ml_dtypes
        except ImportError as error:
            raise MissingDependency(
                "numpy alone has no bfloat16; the package ml_dtypes adds it", hint="pip install ml_dtypes"
            ) from error
        bfloat16: np.dtype[Any] = np.dtype(ml_dtypes.bfloat16)
        return bfloat16

    @classmethod
    def from_kserve(cls, name: str) -> Self:
        """Return the type KServe v2 calls `name`, such as `FP32` or `BYTES`."""
        return cls._find("kserve", name)

    @classmethod
    def from_triton(cls, name: str) -> Self:
        """Return the type Triton's configuration calls `name`, such as `TYPE_FP32`."""
        return cls._find("triton", name)

    @classmethod
    def from_onnx(cls, number: int) -> Self:
        """Return the type ONNX numbers so in `TensorProto.DataType`."""
        return cls._find("onnx", number)

    @classmethod
    def from_numpy(cls, dtype: np.dtype[Any] | type[Any] | str) -> Self:
        """Return the type of a numpy dtype, whatever its byte order; every kind of text and bytes is STRING."""
        import numpy as np

        if isinstance(dtype, str) and dtype == "bfloat16":
            return cls._find("numpy_name", "bfloat16")
        try:
            found = np.dtype(dtype)
        except TypeError:
            return cls._find("numpy_name", dtype)
        return cls._find("numpy_name", "object" if found.kind in "OSUT" else found.name)

    @classmethod
    def _find(cls, attribute: str, value: object) -> Self:
        for member in cls:
            if getattr(member, attribute) == value:
                return member
        known = ", ".join(str(getattr(member, attribute)) for member in cls)
        raise TensorMismatch(f"{value!r} is no element type keynet can serve; it can serve {known}")
