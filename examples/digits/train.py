"""Train a small CNN on the handwritten digits that scikit-learn ships, and publish it as `digits`."""

from __future__ import annotations

import mlflow
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import nn
from torch.nn import functional

from keynet_train import ServingOptions, trace_pytorch

EPOCHS = 12
BATCH = 64


class DigitsCNN(nn.Module):
    """Two convolutions and two linear layers for 8x8 images of one channel."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1),
            nn.BatchNorm2d(16),
            nn.ReLU(),
            nn.Conv2d(16, 32, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
        )
        self.head = nn.Sequential(
            nn.Flatten(), nn.Linear(32 * 4 * 4, 64), nn.ReLU(), nn.Dropout(0.2), nn.Linear(64, 10)
        )

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Return the ten logits of each image, `[batch, 10]`, for pixels from 0 to 1, `[batch, 1, 8, 8]`."""
        return self.head(self.features(image))


def load() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return training images, test images, training labels, test labels; pixels from 0 to 1."""
    digits = load_digits()
    images = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1) / 16
    labels = torch.tensor(digits.target)
    return train_test_split(images, labels, test_size=0.25, random_state=0, stratify=digits.target)


@trace_pytorch(
    "digits",
    torch.rand(1, 1, 8, 8),
    serving=ServingOptions(max_batch_size=32, labels=tuple("0123456789")),
)
def train(epochs: int = EPOCHS) -> nn.Module:
    """Train for some epochs, with a loss and an accuracy per epoch in MLflow."""
    torch.manual_seed(0)
    images, test_images, labels, test_labels = load()
    model = DigitsCNN()
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    mlflow.log_params({"epochs": epochs, "batch_size": BATCH, "optimizer": "Adam", "learning_rate": 2e-3})
    for epoch in range(epochs):
        model.train()
        total = 0.0
        for chosen in torch.randperm(len(images)).split(BATCH):
            optimizer.zero_grad()
            loss = functional.cross_entropy(model(images[chosen]), labels[chosen])
            loss.backward()
            optimizer.step()
            total += float(loss.detach()) * len(chosen)
        model.eval()
        with torch.no_grad():
            accuracy = (model(test_images).argmax(1) == test_labels).float().mean().item()
        mlflow.log_metrics({"train_loss": total / len(images), "test_accuracy": accuracy}, step=epoch)
        print(f"  epoch {epoch + 1:2d}  loss {total / len(images):.4f}  accuracy {accuracy:.4f}", flush=True)
    return model


if __name__ == "__main__":
    result = train.trace()
    print(f"digits {result.package.digest} is {result.publication.state}: {result.publication.url}")
