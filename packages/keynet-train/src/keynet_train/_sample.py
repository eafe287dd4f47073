"""
The sample input, checked and named, and the names of axes checked against it.

torch is not imported here: a value can only be a tensor when its owner has imported torch already.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self, TypeGuard

from keynet_core import DataType, NameRefused, TensorMismatch, format_shape, to_tensor_name
from keynet_train._errors import AxisRefused, SampleRefused

if TYPE_CHECKING:
    from torch import Tensor

AxisNames = Mapping[str, Mapping[int, str]]
"""Tensor name to axis to symbol, as `dynamic_axes` is after it has been checked."""

SINGLE_NAME = "input_0"

_OUTPUT_NAME = re.compile(r"output_(0|[1-9][0-9]*)")
_DICT_FORM = 'give a dict with a name per tensor: sample_input={"image": torch.randn(1, 3, 224, 224)}'


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """
    Named tensors of the shape and type the model will be asked with: copies, on the CPU.

    `is_dict` says whether the user gave a dict: a dict is bound to `forward` by name, a tensor to its first parameter.
    """

    tensors: Mapping[str, Tensor]
    dtypes: Mapping[str, DataType]
    is_dict: bool

    @classmethod
    def of(cls, sample_input: object) -> Self:
        """
        Check and name a sample input.

        Raises:
            SampleRefused: It is neither a tensor nor a dict of tensors, or one of them cannot be served.
        """
        if _is_tensor(sample_input):
            return cls._named({SINGLE_NAME: sample_input}, is_dict=False)
        if isinstance(sample_input, Mapping):
            return cls._named(_entries(sample_input), is_dict=True)
        raise _refusal(sample_input)

    @classmethod
    def _named(cls, tensors: Mapping[str, Tensor], *, is_dict: bool) -> Self:
        return cls(
            dtypes={name: _to_dtype(name, tensor) for name, tensor in tensors.items()},
            tensors={name: _snapshot(tensor) for name, tensor in tensors.items()},
            is_dict=is_dict,
        )

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the model's inputs, in the order of its graph."""
        return tuple(self.tensors)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Each tensor's shape by its name."""
        return {name: tuple(tensor.shape) for name, tensor in self.tensors.items()}


def check_dynamic_axes(dynamic_axes: object, sample: Sample) -> AxisNames | None:
    """
    Check what a user gave as `dynamic_axes` and return it as tensor to axis to symbol; None stays None.

    A list of axes instead of a dict gets symbols of its own, such as `input_0_dim_2`.

    Raises:
        AxisRefused: A tensor, an axis or a symbol that cannot be, or one symbol for two different sizes.
    """
    if dynamic_axes is None:
        return None
    if not isinstance(dynamic_axes, Mapping):
        raise AxisRefused(
            f"dynamic_axes is a {type(dynamic_axes).__name__}, not a dict",
            hint='dynamic_axes={"input_0": {0: "batch"}}',
        )
    checked = {name: _check_tensor(sample, name, axes) for name, axes in dynamic_axes.items()}
    _check_sizes(sample, checked)
    return checked


def _check_tensor(sample: Sample, name: object, axes: object) -> dict[int, str]:
    shape = sample.shapes.get(name) if isinstance(name, str) else None
    if shape is None and not (isinstance(name, str) and _OUTPUT_NAME.fullmatch(name)):
        raise AxisRefused(
            f"dynamic_axes names {name!r}; this model has {_listed(sample.names)}, and outputs output_0, output_1, ..."
        )
    return {_check_axis(name, axis, shape): _check_symbol(name, told) for axis, told in _pairs(name, axes)}


def _check_sizes(sample: Sample, checked: AxisNames) -> None:
    seen: dict[str, tuple[str, int, int]] = {}
    for name, shape in sample.shapes.items():
        for axis, symbol in checked.get(name, {}).items():
            first, first_axis, size = seen.setdefault(symbol, (name, axis, shape[axis]))
            if size != shape[axis]:
                raise AxisRefused(
                    f"dynamic_axes calls two sizes {symbol!r}: {size} (axis {first_axis} of {first!r}) "
                    f"and {shape[axis]} (axis {axis} of {name!r})",
                    hint="give them two names, or give the sample the same size twice",
                )


def to_own_symbol(name: str, axis: object) -> str:
    """Return the symbol of an axis that shares its size with no other, such as `output_0_dim_1`."""
    return re.sub(r"\W", "_", f"{name}_dim_{axis}")


def _is_tensor(value: object) -> TypeGuard[Tensor]:
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.Tensor)


def _refusal(value: object) -> SampleRefused:
    if isinstance(value, tuple | list):
        entries = ", ".join(f'"input_{index}": ...' for index in range(len(value))) or '"input_0": ...'
        return SampleRefused(
            f"sample_input is a {type(value).__name__} of {len(value)}: a sample is a tensor, or a dict of tensors",
            hint=f"name each tensor after a parameter of forward: sample_input={{{entries}}}",
        )
    if _is_array(value):
        return SampleRefused(
            "sample_input is a numpy array: a sample is a torch.Tensor, or a dict of them",
            hint="sample_input=torch.from_numpy(array)",
        )
    return SampleRefused(
        f"sample_input is of type {type(value).__name__}: a sample is a torch.Tensor, or a dict of them",
        hint=_DICT_FORM,
    )


def _is_array(value: object) -> bool:
    numpy = sys.modules.get("numpy")
    return numpy is not None and isinstance(value, numpy.ndarray | numpy.generic)


def _entries(sample: Mapping[Any, object]) -> dict[str, Tensor]:
    if not sample:
        raise SampleRefused("sample_input is an empty dict: a model has at least one input", hint=_DICT_FORM)
    entries: dict[str, Tensor] = {}
    for key, value in sample.items():
        try:
            name = to_tensor_name(key)
        except NameRefused as error:
            raise SampleRefused(f"sample_input has the key {key!r}: {error.message}") from error
        if _OUTPUT_NAME.fullmatch(name):
            raise SampleRefused(
                f"sample_input has the key {key!r}: the outputs of a model are called so",
                hint="rename the parameter of forward and the key, for example to 'previous'",
            )
        if not _is_tensor(value):
            raise SampleRefused(
                f"sample_input[{key!r}] is of type {type(value).__name__}, not torch.Tensor",
                hint=f"torch.from_numpy(...) for {key!r}" if _is_array(value) else f"torch.tensor(...) for {key!r}",
            )
        entries[name] = value
    return entries


def _to_dtype(name: str, tensor: Tensor) -> DataType:
    told = str(tensor.dtype).removeprefix("torch.")
    try:
        dtype = DataType.from_numpy(told)
    except (TensorMismatch, TypeError) as error:
        raise SampleRefused(
            f"{name!r} has elements of type {told}, which no serving engine takes",
            hint=f"convert it, for example {name}.float(), or a complex one with torch.view_as_real",
        ) from error
    if told == "object" or str(tensor.layout) != "torch.strided" or tensor.is_meta:
        kind = "no values (device meta)" if tensor.is_meta else f"layout {tensor.layout}"
        raise SampleRefused(f"{name!r} has {kind}: a sample has plain, dense values", hint=f"{name}.to_dense()")
    if tensor.numel() == 0:
        raise SampleRefused(f"{name!r} of shape {format_shape(tensor.shape)} has no elements to run the model with")
    return dtype


def _snapshot(tensor: Tensor) -> Tensor:
    # A copy: what the user does to the tensor while training must not change what was declared.
    return tensor.detach().to("cpu", copy=True).contiguous()


def _pairs(name: object, axes: object) -> list[tuple[object, object]]:
    if isinstance(axes, Mapping):
        return list(axes.items())
    if isinstance(axes, Sequence) and not isinstance(axes, str):
        return [(axis, to_own_symbol(str(name), axis)) for axis in axes]
    raise AxisRefused(
        f"dynamic_axes[{name!r}] is a {type(axes).__name__}, not a dict of axis to name",
        hint=f'dynamic_axes={{"{name}": {{0: "batch"}}}}',
    )


def _check_axis(name: object, axis: object, shape: tuple[int, ...] | None) -> int:
    if not isinstance(axis, int) or isinstance(axis, bool) or axis < 0:
        raise AxisRefused(f"dynamic_axes[{name!r}] names axis {axis!r}: an axis is a number from 0 on")
    if shape is not None and axis >= len(shape):
        raise AxisRefused(f"dynamic_axes[{name!r}] names axis {axis}, but {name!r} has shape {format_shape(shape)}")
    return axis


def _check_symbol(name: object, symbol: object) -> str:
    if isinstance(symbol, str) and symbol.isidentifier():
        return symbol
    raise AxisRefused(
        f"dynamic_axes[{name!r}] calls an axis {symbol!r}: its name is a word such as 'batch' or 'sequence_length'"
    )


def _listed(names: Sequence[str]) -> str:
    return f"input {names[0]!r}" if len(names) == 1 else f"inputs {', '.join(map(repr, names))}"
