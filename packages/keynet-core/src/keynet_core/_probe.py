"""Probe: a recorded request and the answer it must get, so that a deployment can be tried before it counts."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

from keynet_core._dtypes import DataType
from keynet_core._errors import PackageInvalid
from keynet_core._names import to_tensor_name
from keynet_core._wire import from_wire, to_wire

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy.typing as npt

    Arrays = Mapping[str, npt.NDArray[Any]]

MAX_PROBE_BYTES = 64 * 1024 * 1024


@dataclass(frozen=True, kw_only=True)
class Probe:
    """Inputs, the outputs recorded for them, and how far a later answer may be off: `atol + rtol * |recorded|`."""

    inputs: Arrays
    outputs: Arrays
    rtol: float = 1e-3
    atol: float = 1e-3
    """Relative to the output's greatest magnitude, where that is above 1."""

    def refuses(self, answer: Arrays) -> str | None:
        """Return in one sentence how an answer differs from the recorded one, or None when it does not."""
        for name, recorded in self.outputs.items():
            if name not in answer:
                return f"the answer has no output {name!r}, only {sorted(answer)}"
            if reason := self._difference(name, recorded, answer[name]):
                return reason
        return None

    def _difference(self, name: str, recorded: npt.NDArray[Any], got: npt.NDArray[Any]) -> str | None:
        import numpy as np

        # A scalar travels as [1]: Triton's protocol has no tensors without axes.
        if (recorded.shape or (1,)) != (got.shape or (1,)):
            return f"output {name!r} has shape {list(got.shape)}, recorded {list(recorded.shape)}"
        want_type, have_type = DataType.from_numpy(recorded.dtype), DataType.from_numpy(got.dtype)
        # Clients read BF16 as FP32 where numpy has no bfloat16.
        if have_type is not want_type and {want_type, have_type} != {DataType.BF16, DataType.FP32}:
            return f"output {name!r} is {have_type.name}, recorded {want_type.name}"
        if not want_type.is_float:
            same = [_plain(a) for a in recorded.ravel()] == [_plain(b) for b in got.ravel()]
            return None if same else f"output {name!r} is not what was recorded"
        want, have = recorded.astype(np.float64).ravel(), got.astype(np.float64).ravel()
        scale = max(1.0, float(np.max(np.abs(want[np.isfinite(want)]), initial=0.0)))
        close = np.isclose(have, want, rtol=self.rtol, atol=self.atol * scale, equal_nan=True)
        if close.all():
            return None
        at = int(np.argmin(close))
        return f"output {name!r} is {have[at]:.6g} at element {at}, recorded {want[at]:.6g}"

    def to_json(self) -> bytes:
        """Return the probe as JSON; elements are base64 of the binary tensor extension."""
        told = {
            "inputs": [_tell(name, array) for name, array in self.inputs.items()],
            "outputs": [_tell(name, array) for name, array in self.outputs.items()],
            "rtol": self.rtol,
            "atol": self.atol,
        }
        return json.dumps(told).encode()

    @classmethod
    def from_json(cls, text: bytes) -> Self:
        """
        Read what `to_json` wrote.

        Raises:
            PackageInvalid: It is something else.

        """
        try:
            told = json.loads(text)
            return cls(
                inputs=dict(map(_hear, told["inputs"])),
                outputs=dict(map(_hear, told["outputs"])),
                rtol=float(told["rtol"]),
                atol=float(told["atol"]),
            )
        except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
            raise PackageInvalid(f"the recorded probe cannot be read: {type(error).__name__}: {error}") from error


def _tell(name: str, array: npt.NDArray[Any]) -> dict[str, Any]:
    import base64

    dtype = DataType.from_numpy(array.dtype)
    data = base64.b64encode(to_wire(array)).decode()
    return {"name": name, "datatype": dtype.kserve, "shape": list(array.shape), "data": data}


def _hear(told: dict[str, Any]) -> tuple[str, npt.NDArray[Any]]:
    import base64

    dtype = DataType.from_kserve(told["datatype"])
    return to_tensor_name(told["name"]), from_wire(base64.b64decode(told["data"], validate=True), dtype, told["shape"])


def _plain(element: object) -> object:
    return element.encode() if isinstance(element, str) else element
