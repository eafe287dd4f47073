"""A function that reads an image of a digit from storage, asks the served model, and stores a picture of its answer."""

from functools import cache
from io import BytesIO

import numpy as np
from PIL import Image, ImageDraw

from keynet_inference import Storage, TritonPlugin, UserInput, keynet_function


@keynet_function("digits-reader", description="Which digit is on the image?")
def main(args: dict) -> dict:
    storage = Storage()
    image = Image.open(storage.get(UserInput.get("image_url"))).convert("L")
    outputs = triton().predict(df={"input_0": preprocess(image)}, model_name="digits")
    digit, probability = postprocess(outputs["output_0"])
    answer = {"digit": digit, "probability": round(probability, 4)}
    if UserInput.get("draw", False):
        answer["picture_url"] = storage.put(draw(image, f"{digit} {probability:.0%}"))
    return answer


@cache
def triton() -> TritonPlugin:
    """Return this process's client, made at the first call."""
    return TritonPlugin()


def preprocess(image: Image.Image) -> np.ndarray:
    """Return the image as the model takes it: [1, 1, 8, 8], from 0 to 1."""
    resized = image.resize((8, 8), Image.Resampling.BOX)
    return np.asarray(resized, dtype=np.float32)[None, None] / 255


def postprocess(logits: np.ndarray) -> tuple[int, float]:
    """Return the likeliest digit and its probability."""
    exponents = np.exp(logits[0] - logits[0].max())
    probabilities = exponents / exponents.sum()
    return int(probabilities.argmax()), float(probabilities.max())


def draw(image: Image.Image, text: str) -> BytesIO:
    """Return a PNG of the image with a text on it."""
    picture = image.resize((128, 128), Image.Resampling.NEAREST).convert("RGB")
    ImageDraw.Draw(picture).text((4, 4), text, fill=(255, 160, 0))
    buffer = BytesIO()
    picture.save(buffer, format="PNG")
    return buffer
