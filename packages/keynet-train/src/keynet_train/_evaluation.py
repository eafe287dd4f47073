"""
A module held still while it is asked: evaluation mode, no gradients, and everything put back afterwards.

torch is imported here, so this module is imported by functions only.
"""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import torch

from keynet_core import DataType
from keynet_train._bound import Answer
from keynet_train._errors import ModelRefused
from keynet_train._watching import DataWatch

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import numpy.typing as npt
    from torch import Tensor, nn

    from keynet_train._bound import BoundModule

    Array = npt.NDArray[Any]


@contextmanager
def held_still(module: nn.Module) -> Iterator[None]:
    """Put a module and torch into the state in which answers can be compared, and back into their own."""
    modes = [(each, each.training) for each in module.modules()]
    buffers = [
        (owner, name, buffer, buffer.clone())
        for owner in module.modules()
        for name, buffer in owner.named_buffers(recurse=False)
    ]
    with ExitStack() as stack:
        stack.callback(_restore, modes, buffers)
        stack.enter_context(torch.no_grad())
        stack.enter_context(_own_randomness(device_of(module)))
        stack.enter_context(_exact_arithmetic(device_of(module)))
        module.eval()
        yield


def device_of(module: nn.Module) -> torch.device:
    """Return where a module's weights are; one without weights is on the CPU."""
    for tensor in (*module.parameters(), *module.buffers()):
        return tensor.device
    return torch.device("cpu")


class Original:
    """The module as torch runs it: what the exported file has to agree with."""

    def __init__(self, bound: BoundModule) -> None:
        # An exporter puts the mode it finds back on every layer: a wrapper in training mode would wake them all up.
        self.bound = bound.eval()
        self.device = device_of(bound)

    def place(self, tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Return copies where the module's weights are; a module may write into its inputs."""
        return tuple(tensor.to(self.device, copy=True) for tensor in tensors)

    def ask(self, tensors: Sequence[Tensor]) -> Answer:
        """
        Return the module's answer, on the CPU.

        Raises:
            ModelRefused: It raises, or answers with something that is no tensor.
        """
        try:
            answer = self.bound.answer(self.place(tensors))
        except ModelRefused:
            raise
        except Exception as error:
            raise ModelRefused(f"{type(error).__name__}: {summary(error)}") from error
        # A copy: a module may keep what it answered and change it at the next call.
        return Answer(tensors=tuple(each.detach().to("cpu", copy=True) for each in answer.tensors), keys=answer.keys)

    def watch(self, tensors: Sequence[Tensor]) -> tuple[Answer, DataWatch]:
        """Return the answer once more, and whether Python looked at the values of tensors on the way to it."""
        with DataWatch(tensors) as watch:
            answer = self.ask(tensors)
        return answer, watch


def to_array(tensor: Tensor) -> Array:
    """Return a tensor on the CPU as an array; bfloat16 keeps its bits."""
    if tensor.dtype is not torch.bfloat16:
        array: Array = tensor.numpy()
        return array
    bits: Array = tensor.contiguous().view(torch.int16).numpy()
    return bits.view(DataType.BF16.to_numpy())


def summary(error: BaseException, *, limit: int = 300) -> str:
    """Return the first line that an error says, and the second where the first announces it."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    told = " ".join(lines[: 2 if lines[0].endswith(":") else 1])
    return told if len(told) <= limit else f"{told[: limit - 3]}..."


def _restore(modes: list[tuple[nn.Module, bool]], buffers: list[tuple[nn.Module, str, Tensor, Tensor]]) -> None:
    for module, training in modes:
        module.training = training
    with torch.no_grad():
        for owner, name, buffer, kept in buffers:
            if not torch.equal(buffer, kept):
                buffer.copy_(kept)
            setattr(owner, name, buffer)


@contextmanager
def _own_randomness(device: torch.device) -> Iterator[None]:
    accelerator = device.type if device.type != "cpu" else "cuda"
    devices = [] if device.type == "cpu" else [device.index or 0]
    with torch.random.fork_rng(devices=devices, device_type=accelerator):
        yield


@contextmanager
def _exact_arithmetic(device: torch.device) -> Iterator[None]:
    # The fast path of attention zeroes padded positions, and TF32 keeps 10 bits: neither is what ONNX computes.
    fast_path, precision = torch.backends.mha.get_fastpath_enabled(), torch.get_float32_matmul_precision()
    with ExitStack() as stack:
        stack.callback(torch.backends.mha.set_fastpath_enabled, fast_path)
        torch.backends.mha.set_fastpath_enabled(False)
        if device.type == "cuda":
            stack.callback(torch.set_float32_matmul_precision, precision)
            torch.set_float32_matmul_precision("highest")
            stack.enter_context(torch.backends.cudnn.flags(enabled=True, allow_tf32=False))
        yield
