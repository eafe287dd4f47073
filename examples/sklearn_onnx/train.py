"""Train a classifier with scikit-learn, export it with skl2onnx, and publish it as `iris`."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
from skl2onnx import to_onnx
from skl2onnx.common.data_types import FloatTensorType
from sklearn.datasets import load_iris
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from keynet_train import ServingOptions, log_onnx_model


def main() -> None:
    iris = load_iris()
    data, test_data, labels, test_labels = train_test_split(
        iris.data.astype(np.float32), iris.target, test_size=0.3, random_state=0, stratify=iris.target
    )
    model = make_pipeline(StandardScaler(), LogisticRegression()).fit(data, labels)

    # A batch of any size; probabilities as one tensor instead of a list of maps, which no server takes.
    exported = to_onnx(
        model,
        initial_types=[("input_0", FloatTensorType([None, 4]))],
        options={"zipmap": False},
        target_opset={"": 20, "ai.onnx.ml": 3},
    )
    # skl2onnx leaves the batch without a name; one name says that it is the same one everywhere, which batching needs.
    for tensor in (*exported.graph.input, *exported.graph.output):
        tensor.type.tensor_type.shape.dim[0].dim_param = "batch"
    onnx.save(exported, "iris.onnx")

    # keynet has no original to compare with, so compare here.
    session = onnxruntime.InferenceSession("iris.onnx")
    predicted, probabilities = session.run(None, {"input_0": test_data})
    np.testing.assert_array_equal(predicted, model.predict(test_data))
    np.testing.assert_allclose(probabilities, model.predict_proba(test_data), atol=1e-5)

    accuracy = float((predicted == test_labels).mean())
    url = log_onnx_model(
        experiment_name="iris",
        onnx_model_path="iris.onnx",
        metadata={"framework": "scikit-learn", "test_accuracy": round(accuracy, 4)},
        serving=ServingOptions(max_batch_size=64),
    )
    print(f"iris, accuracy {accuracy:.4f}: {url}")


if __name__ == "__main__":
    main()
