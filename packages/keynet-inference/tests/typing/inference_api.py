"""
Uses of the public names, read by mypy and never run.

The right ones must pass. Each wrong one carries the error it must get: were it accepted, mypy would call the comment
unused, which is an error too.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
import numpy.typing as npt

from keynet_inference import (
    FunctionInfo,
    KeynetFunction,
    Retry,
    SharedMemoryUnused,
    Storage,
    TritonPlugin,
    TritonTimeout,
    TritonUnavailable,
    UserInput,
    keynet_function,
)


class Found(TypedDict):
    url: str


@keynet_function("detect", "Finds cats.", base_image="python:3.11")
def detect(args: dict[str, Any]) -> dict[str, Any]:
    return {"threshold": UserInput.get("threshold", 0.5)}


@keynet_function("typed")
def typed(args: Mapping[str, object]) -> Found:
    return {"url": "x"}


called: dict[str, Any] = detect({"threshold": 0.7})
named: dict[str, Any] = detect(args={})
found: Found = typed({})
info: FunctionInfo = detect.keynet
told: str = detect.keynet.name
function: KeynetFunction[dict[str, Any]] = detect


def ask(array: npt.NDArray[np.float32], url: str | None) -> npt.NDArray[Any]:
    with TritonPlugin(url, "det", 3, timeout_s=1.5, connect_timeout_s=0.5, retry=Retry(attempts=1)) as plugin:
        outputs: dict[str, npt.NDArray[Any]] = plugin.predict(df={"a": array, "b": [[1, 2.5]], "c": 3})
        plugin.predict({"a": array}, model_name="det", model_version="7")
        return outputs["output_0"]


def ask_near(array: npt.NDArray[np.float32]) -> str | None:
    with TritonPlugin(shared_memory=True) as plugin, warnings.catch_warnings():
        warnings.simplefilter("error", SharedMemoryUnused)
        plugin.predict({"a": array}, "det")
        return plugin.shared_memory_refusal


async def ask_async(plugin: TritonPlugin, array: npt.NDArray[np.float32]) -> npt.NDArray[Any]:
    return (await plugin.predict_async({"a": array}))["output_0"]


def keep(storage: Storage, path: Path) -> str:
    buffer: BytesIO = storage.get("cats/1.png")
    urls: list[str] = [storage.put(each) for each in (b"cat", "cat", path)]
    with path.open("rb") as file, path.open(encoding="utf-8") as text:
        urls += [storage.put(file), storage.put(text), storage.put(buffer, key="cats/2.png")]
    Storage("/srv/files", readable=[path, "/srv/images", "https://images.example.com"], max_bytes=10)
    Storage("s3://files/function", readable=(), timeout_s=5)
    return storage.presign(urls[0], expires_s=60)


def is_late(error: TritonUnavailable) -> bool:
    return isinstance(error, TritonTimeout) and isinstance(error, TimeoutError)


@keynet_function("numbers")  # type: ignore[type-var]
def numbers(args: dict[str, Any]) -> int:
    return 3


@keynet_function("two")  # type: ignore[arg-type]
def two(args: dict[str, Any], more: int) -> dict[str, Any]:
    return {}


@keynet_function  # type: ignore[arg-type]
def unnamed(args: dict[str, Any]) -> dict[str, Any]:
    return {}


detect()  # type: ignore[call-arg]
detect(3)  # type: ignore[arg-type]
Storage().put(3)  # type: ignore[arg-type]
TritonPlugin(timeout="3")  # type: ignore[call-arg]
Retry(3)  # type: ignore[call-arg]
