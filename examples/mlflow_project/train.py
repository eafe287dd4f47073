"""The entry point of an MLflow project: train on scikit-learn's digits, and publish the model as `digits`."""

from __future__ import annotations

import sys

import mlflow
import torch
from sklearn.datasets import load_digits

from keynet_train import trace_pytorch


@trace_pytorch("digits", torch.rand(1, 64))
def train(epochs: int) -> torch.nn.Module:
    """Train for some epochs, with a loss per epoch in MLflow."""
    torch.manual_seed(0)
    pixels, labels = (torch.tensor(each) for each in load_digits(return_X_y=True))
    pixels = pixels.float() / 16
    model = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.ReLU(), torch.nn.Linear(64, 10))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for epoch in range(epochs):
        for batch in torch.randperm(len(pixels)).split(64):
            optimizer.zero_grad()
            loss = torch.nn.functional.cross_entropy(model(pixels[batch]), labels[batch])
            loss.backward()
            optimizer.step()
        mlflow.log_metric("loss", loss.item(), step=epoch)
    return model


if __name__ == "__main__":
    result = train.trace(int(sys.argv[1]))
    print(f"digits {result.package.digest} is {result.publication.state}")
