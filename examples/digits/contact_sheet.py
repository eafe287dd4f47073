"""A contact sheet: many small images with what a model saw in each, mistakes framed in red."""

from __future__ import annotations

from typing import TYPE_CHECKING

from PIL import Image, ImageDraw, ImageFont

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import numpy as np

CELL, GAP, CAPTION = 64, 10, 18
INK, PAPER, RIGHT, WRONG = (30, 30, 34), (250, 250, 248), (34, 120, 70), (200, 40, 40)


def write(
    path: Path, images: np.ndarray, answers: Sequence[tuple[int, float]], labels: Sequence[int], title: str
) -> None:
    """
    Write a PNG.

    Args:
        path: Where to.
        images: `[n, height, width]`, from 0 to 1.
        answers: For each image, the digit seen and its probability.
        labels: For each image, the digit it is.
        title: One line above the images.
    """
    columns = 10
    rows = -(-len(images) // columns)
    size = (GAP + columns * (CELL + GAP), 44 + rows * (CELL + CAPTION + GAP))
    sheet = Image.new("RGB", size, PAPER)
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=13)
    pen.text((GAP, 14), title, fill=INK, font=ImageFont.load_default(size=16))
    for index, (image, (digit, probability), label) in enumerate(zip(images, answers, labels, strict=True)):
        x, y = GAP + index % columns * (CELL + GAP), 44 + index // columns * (CELL + CAPTION + GAP)
        tile = Image.fromarray((255 - image * 255).astype("uint8")).resize((CELL, CELL), Image.Resampling.NEAREST)
        sheet.paste(tile.convert("RGB"), (x, y))
        colour = RIGHT if digit == label else WRONG
        pen.rectangle((x - 1, y - 1, x + CELL, y + CELL), outline=colour, width=1 if digit == label else 3)
        told = f"{digit}  {probability:.0%}" if digit == label else f"{digit}, is {label}"
        pen.text((x, y + CELL + 2), told, fill=colour, font=font)
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(path)
