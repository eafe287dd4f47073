"""
Arrays to the bytes of KServe v2's binary tensor extension, and back.

Numbers are little-endian and row-major. Each element of a STRING tensor is its length as four bytes, then its bytes
(https://github.com/kserve/kserve/blob/master/docs/predict-api/v2/binary_tensor_data_extension.md).
"""

from __future__ import annotations

import math
import struct
from typing import TYPE_CHECKING, Any

from keynet_core._dtypes import DataType
from keynet_core._errors import TensorMismatch

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    import numpy.typing as npt

_LENGTH = struct.Struct("<I")


def to_wire(array: npt.NDArray[Any]) -> bytes:
    """
    Return an array's elements as the binary extension writes them; text is encoded as UTF-8.

    Raises:
        TensorMismatch: The type cannot be sent, or a text has no UTF-8.

    """
    import numpy as np

    if DataType.from_numpy(array.dtype) is not DataType.STRING:
        return np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<")).tobytes()
    parts: list[bytes] = []
    for element in array.ravel(order="C").tolist():
        data = element if isinstance(element, bytes) else _encoded(str(element))
        parts += (_LENGTH.pack(len(data)), data)
    return b"".join(parts)


def from_wire(data: bytes | memoryview, dtype: DataType, shape: Sequence[int]) -> npt.NDArray[Any]:
    """
    Return the array that `data` holds; numbers are a read-only view of it, STRING elements are `bytes`.

    Raises:
        TensorMismatch: The bytes are too few or too many for this type and shape, or it is no shape.

    """
    import numpy as np

    if any(not isinstance(dim, int | np.integer) or dim < 0 for dim in shape):
        raise TensorMismatch(f"{list(shape)!r:.200} is no shape of a tensor that was sent")
    count = math.prod(shape)
    if dtype is DataType.STRING:
        flat = _texts(memoryview(data), count)
    elif len(data) == count * dtype.size_bytes:
        flat = np.frombuffer(data, dtype.to_numpy())
    else:
        raise TensorMismatch(
            f"{dtype.name} {list(shape)!r:.200} takes {count * dtype.size_bytes} bytes, got {len(data)}"
        )
    try:
        return flat.reshape(tuple(shape))
    except (ValueError, OverflowError) as error:
        raise TensorMismatch(f"numpy has no array of shape {list(shape)!r:.200}: {error}") from error


def _encoded(text: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise TensorMismatch(f"the text {text!r:.80} cannot be written as UTF-8") from error


def _texts(data: memoryview, count: int) -> npt.NDArray[np.object_]:
    import numpy as np

    texts: list[bytes] = []
    at = 0
    while at < len(data):
        if at + _LENGTH.size > len(data):
            raise TensorMismatch("a STRING tensor ends inside the length of an element")
        (length,) = _LENGTH.unpack_from(data, at)
        at += _LENGTH.size
        if at + length > len(data):
            raise TensorMismatch("a STRING tensor ends inside an element")
        texts.append(bytes(data[at : at + length]))
        at += length
    if len(texts) != count:
        raise TensorMismatch(f"a STRING tensor of {count} elements holds {len(texts)}")
    array = np.empty(count, dtype=np.object_)
    array[:] = texts
    return array
