"""
A module whose inputs are bound by name to `forward` and whose outputs are a flat tuple of tensors.

Exporters see only a `BoundModule`: the order of a sample's tensors is the order of the graph's inputs, whatever the
order of `forward`'s parameters is. torch is imported here, so this module is imported by functions only.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from keynet_core import DataType, TensorMismatch
from keynet_train._errors import ModelRefused

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from keynet_train._sample import Sample

_BY_KEYWORD = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)


@dataclass(frozen=True, slots=True, kw_only=True)
class Binding:
    """Which tensor goes to which parameter: by position, by keyword, or all of them as one dict."""

    names: tuple[str, ...]
    positional: tuple[str, ...] = ()
    as_dict: bool = False

    def arguments(self, tensors: Sequence[Tensor]) -> tuple[list[Any], dict[str, Tensor]]:
        """Return what `forward` is called with."""
        told = dict(zip(self.names, tensors, strict=True))
        if self.as_dict:
            return [told], {}
        return [told.pop(name) for name in self.positional], told


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Answer:
    """What a module answered: its tensors in order, and their keys where it answered with names."""

    tensors: tuple[Tensor, ...]
    keys: tuple[str, ...] | None

    @property
    def shapes(self) -> tuple[tuple[int, ...], ...]:
        """The shape of each tensor."""
        return tuple(tuple(tensor.shape) for tensor in self.tensors)


class BoundModule(nn.Module):
    """A module with its inputs bound; it takes tensors in the sample's order and gives a flat tuple."""

    def __init__(self, module: nn.Module, binding: Binding) -> None:
        super().__init__()
        self.module = module
        self._binding = binding

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Call the module and return its tensors."""
        return self.answer(tensors).tensors

    def answer(self, tensors: Sequence[Tensor]) -> Answer:
        """
        Call the module and return its tensors with their keys.

        Raises:
            ModelRefused: It answers with something that is no tensor, or with nothing.
        """
        positional, keywords = self._binding.arguments(tensors)
        return flatten(self.module(*positional, **keywords))


def unwrap(model: nn.Module) -> nn.Module:
    """Return the module inside what `torch.compile` and the data-parallel wrappers put around it."""
    parallel = (nn.DataParallel, nn.parallel.DistributedDataParallel)
    while True:
        inner = model.module if isinstance(model, parallel) else getattr(model, "_orig_mod", None)
        if not isinstance(inner, nn.Module):
            return model
        model = inner


def bindings_of(module: nn.Module, sample: Sample) -> tuple[Binding, ...]:
    """
    Return the ways this sample can be given to this module, the likeliest first.

    Raises:
        ModelRefused: The sample's names and `forward`'s parameters cannot be brought together.
    """
    parameters = _parameters(module)
    if not sample.is_dict:
        return (_bind_first(module, sample.names, parameters),)
    named = [each for each in parameters if each.kind in _BY_KEYWORD]
    only = [each for each in parameters if each.kind is inspect.Parameter.POSITIONAL_ONLY]
    known = {each.name for each in (*named, *only)}
    missing = [each.name for each in (*only, *named) if _is_required(each) and each.name not in sample.names]
    open_ended = any(each.kind is inspect.Parameter.VAR_KEYWORD for each in parameters)
    unexpected = [] if open_ended else [name for name in sample.names if name not in known]
    if not missing and not unexpected:
        positional = tuple(each.name for each in only if each.name in sample.names)
        return (Binding(names=sample.names, positional=positional),)
    if len(missing) == 1 and not known & set(sample.names):
        whole = Binding(names=sample.names, as_dict=True)
        alone = Binding(names=sample.names, positional=sample.names)
        return (whole, alone) if len(sample.names) == 1 else (whole,)
    raise _unbindable(module, sample.names, missing, unexpected)


def flatten(returned: object) -> Answer:
    """
    Return every tensor of a module's answer in order: tuples, lists, dicts and dataclasses may nest; None is nothing.

    Raises:
        ModelRefused: There is something else in it, or no tensor at all.
    """
    leaves = list(_leaves(returned, ()))
    if not leaves:
        raise ModelRefused(f"the model answers with no tensor, but with {type(returned).__name__}")
    keys = tuple(".".join(path) for path, _ in leaves) if _has_names(returned) else None
    for index, (_, tensor) in enumerate(leaves):
        _check_output(index, tensor)
    return Answer(tensors=tuple(tensor for _, tensor in leaves), keys=keys)


def _parameters(module: nn.Module) -> list[inspect.Parameter]:
    if isinstance(module, torch.jit.ScriptModule):
        compiled: Any = module.forward
        return [_from_schema(each) for each in compiled.schema.arguments[1:]]
    return list(inspect.signature(module.forward).parameters.values())


def _from_schema(argument: Any) -> inspect.Parameter:
    default = argument.default_value if argument.has_default_value() else inspect.Parameter.empty
    return inspect.Parameter(argument.name, inspect.Parameter.POSITIONAL_OR_KEYWORD, default=default)


def _is_required(parameter: inspect.Parameter) -> bool:
    variable = parameter.kind in {inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD}
    return not variable and parameter.default is inspect.Parameter.empty


def _bind_first(module: nn.Module, names: tuple[str, ...], parameters: list[inspect.Parameter]) -> Binding:
    takes = [each for each in parameters if each.kind is not inspect.Parameter.VAR_KEYWORD]
    if not takes or takes[0].kind is inspect.Parameter.KEYWORD_ONLY:
        raise ModelRefused(f"{type(module).__name__}.forward takes no tensor by position")
    if missing := [each.name for each in takes[1:] if _is_required(each)]:
        entries = ", ".join(f'"{each}": ...' for each in (takes[0].name, *missing))
        raise ModelRefused(
            f"{type(module).__name__}.forward also needs {', '.join(missing)}, and the sample is one tensor",
            hint=f"sample_input={{{entries}}}",
        )
    return Binding(names=names, positional=names)


def _unbindable(module: nn.Module, names: tuple[str, ...], missing: list[str], unexpected: list[str]) -> ModelRefused:
    parts = [f"it needs {', '.join(missing)}"] if missing else []
    parts += [f"it does not know {', '.join(unexpected)}"] if unexpected else []
    wanted = ", ".join(each.name for each in _parameters(module))
    return ModelRefused(
        f"{type(module).__name__}.forward({wanted}) cannot take the sample's {', '.join(names)}: {'; '.join(parts)}",
        hint="give sample_input the names of forward's parameters as keys",
    )


def _leaves(value: object, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Tensor]]:
    if isinstance(value, Tensor):
        yield path, value
        return
    if value is None:
        return
    entries = _entries(value)
    if entries is None:
        where = "".join(f"[{part!r}]" for part in path)
        raise ModelRefused(
            f"the model answers with a {type(value).__name__} at output{where}, which is no tensor",
            hint="return tensors only; torch.tensor(value) makes one of a number",
        )
    for key, entry in entries:
        yield from _leaves(entry, (*path, key))


def _entries(value: object) -> list[tuple[str, object]] | None:
    if isinstance(value, Mapping):
        return [(str(key), entry) for key, entry in value.items()]
    if isinstance(value, tuple | list):
        keys = getattr(value, "_fields", None) or range(len(value))
        return [(str(key), entry) for key, entry in zip(keys, value, strict=True)]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return [(each.name, getattr(value, each.name)) for each in dataclasses.fields(value)]
    return None


def _has_names(value: object) -> bool:
    return isinstance(value, Mapping) or hasattr(value, "_fields") or dataclasses.is_dataclass(value)


def _check_output(index: int, tensor: Tensor) -> None:
    told = str(tensor.dtype).removeprefix("torch.")
    try:
        DataType.from_numpy(told)
    except (TensorMismatch, TypeError) as error:
        raise ModelRefused(
            f"output_{index} has elements of type {told}, which no serving engine gives",
            hint="convert it in forward, a complex one with torch.view_as_real",
        ) from error
    if tensor.layout is not torch.strided:
        raise ModelRefused(f"output_{index} has layout {tensor.layout}", hint="return tensor.to_dense()")
