"""The wire's names and bytes on the hot path: a table instead of a search, and no look at the type of numbers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from keynet_core import DataType, to_wire

if TYPE_CHECKING:
    from keynet_serving._requests import OutputTensor

BY_KSERVE_NAME = {dtype.kserve: dtype for dtype in DataType}


def to_bytes(output: OutputTensor) -> bytes:
    """Return an output's elements as the binary extension writes them."""
    return to_wire(output.array) if output.dtype is DataType.STRING else output.array.tobytes()
