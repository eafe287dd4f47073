"""Train a small network with JAX on the handwritten digits, export it with jax2onnx, and publish it as `jax-digits`."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import onnx
import onnxruntime
from jax2onnx import to_onnx
from sklearn.datasets import load_digits

from keynet_train import ServingOptions, log_onnx_model

STEPS, RATE = 300, 0.5


def logits(weights: list[jax.Array], pixels: jax.Array) -> jax.Array:
    """Return ten logits for each row of 64 pixels."""
    hidden_weights, hidden_bias, out_weights, out_bias = weights
    return jax.nn.relu(pixels @ hidden_weights + hidden_bias) @ out_weights + out_bias


def loss(weights: list[jax.Array], pixels: jax.Array, labels: jax.Array) -> jax.Array:
    chosen = jax.nn.log_softmax(logits(weights, pixels))[jnp.arange(len(labels)), labels]
    return -chosen.mean()


@jax.jit
def step(weights: list[jax.Array], pixels: jax.Array, labels: jax.Array) -> list[jax.Array]:
    gradients = jax.grad(loss)(weights, pixels, labels)
    return [each - RATE * gradient for each, gradient in zip(weights, gradients, strict=True)]


def train(pixels: np.ndarray, labels: np.ndarray) -> list[jax.Array]:
    first, second = jax.random.split(jax.random.key(0))
    weights = [
        jax.random.normal(first, (64, 32)) * 0.1,
        jnp.zeros(32),
        jax.random.normal(second, (32, 10)) * 0.1,
        jnp.zeros(10),
    ]
    for _ in range(STEPS):
        weights = step(weights, pixels, labels)
    return weights


def main() -> None:
    digits = load_digits()
    pixels, labels = digits.data.astype(np.float32) / 16, digits.target
    weights = train(pixels[:1300], labels[:1300])

    # "batch" instead of a number: an axis that varies.
    model = to_onnx(
        lambda x: logits(weights, x),
        [("batch", 64)],
        opset=20,
        input_names=["input_0"],
        output_names=["output_0"],
    )
    onnx.save(model, "jax-digits.onnx")

    # keynet has no original to compare with, so compare here, at two batch sizes.
    session = onnxruntime.InferenceSession("jax-digits.onnx")
    for rows in (pixels[1300:], pixels[1300:1301]):
        np.testing.assert_allclose(session.run(None, {"input_0": rows})[0], logits(weights, rows), atol=1e-4)

    accuracy = float((logits(weights, pixels[1300:]).argmax(1) == labels[1300:]).mean())
    url = log_onnx_model(
        experiment_name="jax-digits",
        onnx_model_path="jax-digits.onnx",
        metadata={"framework": "jax", "test_accuracy": round(accuracy, 4)},
        serving=ServingOptions(max_batch_size=64),
    )
    print(f"jax-digits, accuracy {accuracy:.4f}: {url}")


if __name__ == "__main__":
    main()
