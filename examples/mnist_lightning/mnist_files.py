"""
MNIST's files as a data set, in place of torchvision's.

PyPI has torchvision built for CUDA only. Beside torch's CPU build it cannot be imported, and everything that looks
for it (torchmetrics, and through it Lightning) fails with it, so this example does without.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch.utils.data import Dataset

if TYPE_CHECKING:
    from collections.abc import Callable


class ToTensor:
    """Turn an image of bytes, `[height, width]`, into a tensor from 0 to 1, `[1, height, width]`."""

    def __call__(self, image: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(image.astype(np.float32) / 255).unsqueeze(0)


class MNIST(Dataset):
    """
    The images and labels in `root/MNIST/raw`, with torchvision's parameters.

    `download` is taken and not acted on: `make_mnist.py` writes the files, or copy the real ones there.
    """

    def __init__(
        self, root: str, *, train: bool, transform: Callable[[np.ndarray], torch.Tensor], download: bool = False
    ) -> None:
        raw = Path(root) / "MNIST" / "raw"
        prefix = "train" if train else "t10k"
        self._images = read_idx(raw / f"{prefix}-images-idx3-ubyte")
        self._labels = read_idx(raw / f"{prefix}-labels-idx1-ubyte")
        self._transform = transform

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return self._transform(self._images[index]), int(self._labels[index])


def read_idx(path: Path) -> np.ndarray:
    """Return the array of an idx file of bytes."""
    if not path.is_file():
        raise SystemExit(f"{path} is missing; run: python examples/mnist_lightning/make_mnist.py")
    data = path.read_bytes()
    axes = data[3]
    shape = np.frombuffer(data, ">u4", count=axes, offset=4)
    return np.frombuffer(data, np.uint8, offset=4 + 4 * axes).reshape(shape)
