"""The classification extension: an output answered as its greatest values, `value:index:label`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from keynet_core import DataType
from keynet_serving._errors import RequestRefused
from keynet_serving._requests import OutputTensor

if TYPE_CHECKING:
    import numpy.typing as npt

    from keynet_serving._contract import TensorContract

    Array = npt.NDArray[Any]


def classify(tensor: TensorContract, array: Array, count: int) -> OutputTensor:
    """
    Return the `count` greatest values of each row as texts, greatest first.

    Raises:
        RequestRefused: The output holds no numbers.
    """
    import numpy as np

    if tensor.dtype in {DataType.STRING, DataType.BF16}:
        raise RequestRefused(f"class result not available for output '{tensor.name}' of type {tensor.dtype.kserve}")
    rows = array.reshape(array.shape[0], -1) if tensor.is_batched else array.reshape(1, -1)
    count = min(count, rows.shape[1])
    order = np.argsort(-rows.astype(np.float64), axis=1, kind="stable")[:, :count]
    texts = np.empty((rows.shape[0], count), dtype=np.object_)
    for row, indices in enumerate(order):
        for place, index in enumerate(indices):
            texts[row, place] = _text(rows[row, index], int(index), tensor)
    shaped = texts if tensor.is_batched else texts.reshape(count)
    return OutputTensor(name=tensor.name, dtype=DataType.STRING, array=shaped)


def read_labels(text: str) -> tuple[str, ...]:
    """Return a label file's lines, one label per class."""
    return tuple(line.rstrip("\r") for line in text.removesuffix("\n").split("\n"))


def _text(value: Any, index: int, tensor: TensorContract) -> bytes:
    number = f"{float(value):f}" if tensor.dtype.is_float else str(int(value))
    label = f":{tensor.labels[index]}" if index < len(tensor.labels) else ""
    return f"{number}:{index}{label}".encode()
