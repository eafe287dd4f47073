"""Write scikit-learn's handwritten digits as files in MNIST's format, below ./MNIST/raw: 28x28 pixels, no download."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split


def main() -> None:
    digits = load_digits()
    images = np.stack([enlarge(image) for image in digits.images])
    split = train_test_split(images, digits.target.astype(np.uint8), test_size=0.25, random_state=0)
    folder = Path("MNIST/raw")
    folder.mkdir(parents=True, exist_ok=True)
    for name, array in zip(("train-images", "t10k-images", "train-labels", "t10k-labels"), split, strict=True):
        path = folder / f"{name}-idx{array.ndim}-ubyte"
        path.write_bytes(to_idx(array))
    print(f"{len(split[0])} images to train and {len(split[1])} to test are in {folder.resolve()}")


def enlarge(image: np.ndarray) -> np.ndarray:
    """Return an 8x8 image of values to 16 as 28x28 bytes, with MNIST's margin of four pixels."""
    picture = Image.fromarray((image * 255 / 16).astype(np.uint8)).resize((20, 20), Image.Resampling.BICUBIC)
    return np.pad(np.asarray(picture), 4)


def to_idx(array: np.ndarray) -> bytes:
    """Return bytes as an idx file has them: type and number of axes, their sizes, the values."""
    return struct.pack(f">2xBB{array.ndim}I", 0x08, array.ndim, *array.shape) + array.tobytes()


if __name__ == "__main__":
    main()
