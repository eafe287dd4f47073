"""
Whether Python looks at the values of tensors while a module answers.

torch is imported here, so this module is imported by functions only.
"""

from __future__ import annotations

import sys
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

_READS = frozenset({
    "__array__", "__bool__", "__complex__", "__dlpack__", "__float__", "__index__", "__int__", "item", "numpy",
    "storage", "tolist", "untyped_storage",
})  # fmt: skip
_CONSTRUCTORS = frozenset({"as_tensor", "asarray", "new_tensor", "tensor"})
_ORDERING = frozenset({
    "argmax", "argmin", "argsort", "cummax", "cummin", "kthvalue", "max", "median", "min", "mode", "msort",
    "nanmedian", "nms", "sort", "topk",
})  # fmt: skip
_ORDERLESS = frozenset({"aten.max.default", "aten.min.default", "aten.max.other", "aten.min.other"})
_PASSING_TENSORS_ON = frozenset({"as_tensor", "asarray"})


class DataWatch:
    """
    Notes each operation that hands values of a tensor to Python, or whose shape depends on values.

    Outside of a trace a shape is a plain number, so unlike a tracer's warnings this does not mistake a check of a
    shape for a branch on data. Operations are seen where torch dispatches them. What reads memory without one, as
    `tolist` does, is seen where it is called, and counts when the values come from the given tensors: constants may
    be read.
    """

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        self.reads_values: set[str] = set()
        self.shapes_by_value: set[str] = set()
        self.orders_values: set[str] = set()
        """Operations that have to choose between equal values."""
        self.branches: set[str] = set()
        """Operations made of operations, such as torch.cond."""
        self._derived = _DerivedData(tensors)
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        """Begin to watch this thread."""
        self._stack.enter_context(_Calls(self))
        operations = _OperationsAmidCompiled if "torch._dynamo" in sys.modules else _Operations
        self._stack.enter_context(operations(self))
        return self

    def __exit__(self, *raised: object) -> None:
        """Watch no longer."""
        self._stack.close()

    def note_call(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Note a function of torch that reads memory without an operation, when it is derived data."""
        name = getattr(func, "__name__", "")
        if name in _READS and self._derived.is_in(args[:1]):
            self.reads_values.add(f"Tensor.{name}")
        if name in _CONSTRUCTORS and self._derived.is_in(_copied(name, args, kwargs)):
            self.reads_values.add(f"torch.{name}")

    def note_operation(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> None:
        """Note an operation's tags, and what it computed from derived data."""
        if not isinstance(func, torch._ops.OpOverload):  # noqa: SLF001  # it has no public name
            self.branches.add(str(func))
        elif func.overloadpacket.__name__ in _ORDERING and str(func) not in _ORDERLESS:
            self.orders_values.add(str(func))
        tags = getattr(func, "tags", ())  # torch.cond and its kind have none
        if torch.Tag.data_dependent_output in tags:
            self.reads_values.add(str(func))
        if torch.Tag.dynamic_output_shape in tags:
            self.shapes_by_value.add(str(func))
        self._derived.follow(func, args, kwargs, result)


class _DerivedData:
    """Which memory holds values computed from some tensors, as the addresses of storages."""

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        self._addresses = {_address(tensor) for tensor in tensors}

    def is_in(self, value: object) -> bool:
        """Whether one of the tensors in nested values is derived."""
        return any(_address(each) in self._addresses for each in _tensors_in(value))

    def follow(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: object) -> None:
        """Take over to the results, and to what is written in place, whether one of the arguments is derived."""
        changed = {_address(each) for each in _tensors_in((result, _written(func, args, kwargs)))}
        if self.is_in((args, kwargs)):
            self._addresses |= changed
        else:
            # Memory that was freed and is used again.
            self._addresses -= changed - {None}


class _Calls(TorchFunctionMode):
    def __init__(self, watch: DataWatch) -> None:
        super().__init__()
        self._watch = watch

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        self._watch.note_call(func, args, kwargs or {})
        return func(*args, **(kwargs or {}))


class _Operations(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch has no types here
    supports_higher_order_operators = True

    def __init__(self, watch: DataWatch) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch has no types here
        self._watch = watch

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        # True, torch's default, imports the compiler at the first operation: a second or more, mostly for nothing.
        return False

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        with torch._C.DisableTorchFunction():  # noqa: SLF001  # looking at storages here is no call of the module's
            self._watch.note_operation(func, args, kwargs or {}, result)
        return result


class _OperationsAmidCompiled(_Operations):  # type: ignore[no-untyped-call]  # torch has no types here
    """The same for a process that has the compiler: it must not compile what is done here."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return True

    __torch_dispatch__ = _Operations.__torch_dispatch__


def _tensors_in(value: object) -> Iterator[Tensor]:
    return (each for each in tree_leaves(value) if isinstance(each, Tensor))


def _address(tensor: Tensor) -> int | None:
    # A sparse tensor has no storage of its own; all of those count as one that is derived as soon as one of them is.
    has_storage = torch._C._has_storage(tensor)  # noqa: SLF001  # nothing public tells, short of an exception
    return tensor.untyped_storage()._cdata if has_storage else None  # noqa: SLF001  # the same for all its views


def _written(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[object]:
    schema = getattr(func, "_schema", None)
    if schema is None or not schema.is_mutable:
        return []
    written = [each.name for each in schema.arguments if each.alias_info and each.alias_info.is_write]
    given = dict(zip((each.name for each in schema.arguments), args, strict=False)) | kwargs
    return [given[name] for name in written if name in given]


def _copied(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, ...]:
    """Return the argument whose values a constructor copies one by one; a trace takes the copy for a constant."""
    own = args[1:] if name == "new_tensor" else args
    first = (*own, *kwargs.values())[:1]
    return () if name in _PASSING_TENSORS_ON and isinstance(first[0], Tensor) else first
