"""
What a caller hands over, as the arrays a model takes.

An array has a type its author chose, so it must be the model's. Numbers in lists, and a data frame's columns, have
none: they become the model's type where every value survives. A float may lose digits, as it did in the model.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NoReturn

from keynet_core import DataType, KeynetError, format_shape
from keynet_inference._errors import InputRefused

if TYPE_CHECKING:
    import numpy.typing as npt

    from keynet_inference._model import Model, Tensor

    Array = npt.NDArray[Any]


def bind(given: object, model: Model) -> dict[str, Array]:
    """
    Return one array for each of a model's inputs.

    Args:
        given: A dict of arrays, lists or numbers by the name of the input, or a pandas DataFrame.
        model: What the model takes.

    Raises:
        InputRefused: A name, an element type or a shape does not fit; both sides are named.

    """
    import numpy as np

    if not isinstance(given, Mapping):
        return _bind_frame(given, model)
    arrays: dict[str, Array] = {}
    for name, tensor in model.inputs.items():
        if name not in given:
            _refuse_names(given, model)
        value = given[name]
        arrays[name] = value if type(value) is np.ndarray and tensor.is_fit_by(value) else _fit(value, tensor, model)
        if tensor.datatype is DataType.STRING:
            _refuse_other_than_text(arrays[name], tensor, model)
    if len(arrays) != len(given):
        _refuse_names(given, model)
    return arrays


def _fit(value: object, tensor: Tensor, model: Model) -> Array:
    import numpy as np

    is_typed = hasattr(value, "dtype")
    # Left to itself, numpy would make text of the numbers in a list of both, and cut zero bytes off.
    is_text = tensor.datatype is DataType.STRING and not is_typed
    try:
        array = np.asarray(value, object if is_text else None)
    except ValueError as error:
        raise InputRefused(f"model {model.asked} takes {tensor}; the list given is ragged: {error}") from error
    if array.ndim == 0 and all(size in {1, -1} for size in tensor.sizes):
        array = array.reshape((1,) * len(tensor.sizes))
    if array.dtype != tensor.dtype:
        converted = _retyped(array, tensor) if is_typed else _converted(array, tensor)
        if converted is None:
            _refuse(array, tensor, model)
        array = converted
    if not tensor.is_shape(array.shape):
        _refuse(array, tensor, model)
    return array


def _retyped(array: Array, tensor: Tensor) -> Array | None:
    """Return the same values in the model's type where only their storage differs: byte order, fixed-width text."""
    if array.dtype.newbyteorder("=") == tensor.dtype or (
        tensor.datatype is DataType.STRING and array.dtype.kind in "US"
    ):
        return array.astype(tensor.dtype)
    return None


def _converted(array: Array, tensor: Tensor) -> Array | None:
    """Return untyped values in the model's type, or None where one would become another value."""
    import numpy as np

    kind = array.dtype.kind
    if array.size == 0:
        return array.astype(tensor.dtype)
    if tensor.datatype is DataType.BOOL or kind not in "iuf":
        return None
    with np.errstate(over="ignore", invalid="ignore"):
        converted = array.astype(tensor.dtype)
        if kind == "f" and tensor.datatype.is_float:
            survives = np.array_equal(np.isfinite(array), np.isfinite(converted))
        else:
            survives = _is_exact(array, converted)
    return converted if survives else None


def _is_exact(array: Array, converted: Array) -> bool:
    # Compared as Python's numbers: numpy would compare an int64 with a float64 after rounding the former.
    return bool(array.ravel().tolist() == converted.ravel().tolist())


def _refuse_other_than_text(array: Array, tensor: Tensor, model: Model) -> None:
    for element in array.ravel().tolist():
        if not isinstance(element, str | bytes):
            raise InputRefused(f"model {model.asked} takes {tensor}, text or bytes; got the element {element!r}")


def _bind_frame(given: object, model: Model) -> dict[str, Array]:
    pandas = sys.modules.get("pandas")
    if pandas is None or not isinstance(given, pandas.DataFrame):
        raise InputRefused(
            f"predict takes a dict of arrays by name, or a DataFrame, not {type(given).__qualname__}",
            hint=f"df={{{', '.join(f'{name!r}: array' for name in model.inputs)}}}",
        )
    frame: Any = given
    only = next(iter(model.inputs.values())) if len(model.inputs) == 1 else None
    if only is not None and len(only.sizes) == 2 and only.name not in frame.columns:
        return bind({only.name: frame.to_numpy().tolist()}, model)
    return bind({str(name): _column(frame[name].tolist(), model.inputs.get(str(name))) for name in frame}, model)


def _column(values: list[Any], tensor: Tensor | None) -> list[Any]:
    return [[value] for value in values] if tensor is not None and len(tensor.sizes) == 2 else values


def _refuse_names(given: Mapping[Any, object], model: Model) -> NoReturn:
    missing = [str(tensor) for name, tensor in model.inputs.items() if name not in given]
    unexpected = [repr(name) for name in given if name not in model.inputs]
    parts = [f"is missing {', '.join(missing)}"] * bool(missing)
    parts += [f"does not know {', '.join(unexpected)}"] * bool(unexpected)
    takes = "; ".join(map(str, model.inputs.values()))
    raise InputRefused(f"model {model.asked} {' and '.join(parts)}", hint=f"hand over exactly: {takes}")


def _refuse(array: Array, tensor: Tensor, model: Model) -> NoReturn:
    got = f"{_named(array)} {format_shape(array.shape)}"
    hint = None
    if array.dtype != tensor.dtype:
        hint = f"{tensor.name}: .astype({_numpy_name(tensor)})" if array.dtype.kind in "biuf" else None
    elif len(array.shape) == len(tensor.sizes) - 1:
        hint = f"{tensor.name}: the first axis may be the batch; numpy.expand_dims(array, 0) adds it"
    raise InputRefused(f"model {model.asked} takes {tensor}, got {got}", hint=hint)


def _numpy_name(tensor: Tensor) -> str:
    module = "ml_dtypes" if tensor.datatype is DataType.BF16 else "numpy"
    return f"{module}.{tensor.datatype.numpy_name.replace('object', 'object_')}"


def _named(array: Array) -> str:
    try:
        return DataType.from_numpy(array.dtype).name
    except (KeynetError, TypeError):
        return str(array.dtype)
