"""
The sample's tensors at other sizes and with other values, always the same ones for the same sample.

torch is imported here, so this module is imported by functions only.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from torch import Tensor

    from keynet_train._axes import Symbol

Tensors = dict[str, "Tensor"]

_SEED = 20261120
_NUDGE = {torch.float64: 1e-10, torch.float32: 2e-6}


def resized(tensors: Mapping[str, Tensor], sizes: Iterable[tuple[Symbol, int]]) -> Tensors:
    """Return the tensors with each symbol at its new size: cut off, or repeated from the beginning."""
    changed = dict(tensors)
    for symbol, size in sizes:
        for name, axis in symbol.places:
            rows = torch.arange(size) % changed[name].shape[axis]
            changed[name] = changed[name].index_select(axis, rows)
    return changed


def other_values(tensors: Mapping[str, Tensor], *, may_shuffle: bool) -> Tensors:
    """
    Return tensors of the same shapes with other values that still make sense.

    Fractions are drawn at the sample's own mean and spread; whole numbers and truth values are the sample's own in
    another order, so that an index stays in range. Without `may_shuffle` whole numbers only change rows: columns may
    have ranges of their own, and an index out of range ends a CUDA process for good.
    """
    generator = torch.Generator().manual_seed(_SEED)
    return {name: _redrawn(tensor, generator, may_shuffle=may_shuffle) for name, tensor in tensors.items()}


def opposite_signs(tensors: Mapping[str, Tensor]) -> Tensors:
    """Return the tensors with fractions negated, truth values inverted and whole numbers in reverse row order."""
    return {name: _opposite(tensor) for name, tensor in tensors.items()}


def scaled(tensors: Mapping[str, Tensor], factor: float) -> Tensors:
    """Return the tensors with fractions multiplied; half precision and everything else stays: it has no such range."""
    return {name: each * factor if each.dtype in _NUDGE else each.clone() for name, each in tensors.items()}


def nudged(tensors: Mapping[str, Tensor]) -> Tensors:
    """Return the tensors with the same fractions off by several times what their type rounds away."""
    generator = torch.Generator().manual_seed(_SEED)
    return {name: _nudged(tensor, generator) for name, tensor in tensors.items()}


def is_same(left: Mapping[str, Tensor], right: Mapping[str, Tensor]) -> bool:
    """Whether two sets of tensors have equal shapes and values."""
    return all(torch.equal(tensor, right[name]) for name, tensor in left.items())


def _redrawn(tensor: Tensor, generator: torch.Generator, *, may_shuffle: bool) -> Tensor:
    if tensor.is_floating_point():
        wide = tensor.double()
        finite = wide[torch.isfinite(wide)]
        spread = float(finite.std(correction=0)) if finite.numel() else 0.0
        mean = float(finite.mean()) if finite.numel() else 0.0
        noise = torch.randn(tensor.shape, generator=generator, dtype=torch.float64)
        return (noise * (spread or abs(mean) or 1.0) + mean).to(tensor.dtype)
    axis = _order_axis(tensor, may_shuffle=may_shuffle or tensor.dtype is torch.bool)
    if axis is None:
        return tensor.clone()
    rows = torch.randperm(tensor.shape[axis], generator=generator)
    in_order = torch.equal(rows, torch.arange(len(rows)))
    return tensor.index_select(axis, rows.roll(1) if in_order else rows)


def _nudged(tensor: Tensor, generator: torch.Generator) -> Tensor:
    if tensor.dtype not in _NUDGE:
        return tensor.clone()
    return tensor * (1 + torch.randn(tensor.shape, generator=generator, dtype=tensor.dtype) * _NUDGE[tensor.dtype])


def _opposite(tensor: Tensor) -> Tensor:
    if tensor.is_floating_point():
        return -tensor
    if tensor.dtype is torch.bool:
        return ~tensor
    axis = _order_axis(tensor, may_shuffle=False)
    if axis is None:
        return tensor.clone()
    return tensor.index_select(axis, torch.arange(tensor.shape[axis] - 1, -1, -1))


def _order_axis(tensor: Tensor, *, may_shuffle: bool) -> int | None:
    if tensor.dim() and tensor.shape[0] > 1:
        return 0
    if may_shuffle:
        return next((axis for axis in range(tensor.dim() - 1, 0, -1) if tensor.shape[axis] > 1), None)
    return None
