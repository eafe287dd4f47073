"""The examples of the documents, as they stand."""

from __future__ import annotations

import hashlib
import io
import json
import re
import shlex
import subprocess
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image

from keynet_inference import ModelUnnamed, SourceRefused, Storage
from keynet_inference._inspection import inspect_file

if TYPE_CHECKING:
    from types import ModuleType

DOCUMENTED_SHA256 = "bb0c4ea21cbbca78952bd45d9d2921fc4de973805e7f3bb3fc79e75d247200f5"
EXAMPLE = Path(__file__).parents[3] / "examples/image_detection/function.py"


@pytest.fixture
def example() -> ModuleType:
    spec = spec_from_file_location("image_detection_example", EXAMPLE)
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def image() -> io.BytesIO:
    buffer = io.BytesIO()
    Image.fromarray(np.arange(48 * 64 * 3, dtype=np.uint8).reshape(48, 64, 3)).save(buffer, format="PNG")
    return buffer


@pytest.fixture
def asked(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_URL", url)
    monkeypatch.setenv("MODEL_NAME", "detector")


@pytest.mark.usefixtures("asked", "store")
def test_an_image_goes_in_and_the_url_of_one_comes_out(example: Any, image: io.BytesIO) -> None:
    storage = Storage()

    result = example.main({"image_url": storage.put(image)})

    assert list(result) == ["url"]
    assert result["url"].endswith(".png")
    assert Image.open(storage.get(result["url"])).size == (64, 48)


@pytest.mark.usefixtures("asked", "s3")
def test_the_url_that_another_service_signed_is_as_good_as_a_key(example: Any, image: io.BytesIO) -> None:
    Storage().put(image, key="uploads/cat.png")

    result = example.main({"image_url": Storage().presign("uploads/cat.png", expires_s=60)})

    assert result["url"].startswith("s3://")
    assert Image.open(Storage().get(Storage().presign(result["url"]))).size == (64, 48)


@pytest.mark.usefixtures("asked")
def test_a_key_is_as_good_as_a_url(example: Any, image: io.BytesIO) -> None:
    Storage().put(image, key="cat.png")

    assert set(example.main({"image_url": "cat.png", "threshold": 0.9})) == {"url"}


def test_a_parameter_that_is_missing_is_told_where_it_is_used(example: Any) -> None:
    with pytest.raises(SourceRefused, match="not None"):
        example.main({})


def test_without_a_model_name_the_example_says_which_there_are(
    example: Any, image: io.BytesIO, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRITON_URL", url)

    with pytest.raises(ModelUnnamed, match="detector"):
        example.main({"image_url": Storage().put(image)})


@pytest.mark.usefixtures("asked")
def test_the_command_runs_it(image: io.BytesIO) -> None:
    source = Storage().put(image)

    command = [Path(sys.executable).with_name("keynet-inference"), "run", EXAMPLE, "-p", f"image_url={source}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)

    assert Storage().get(json.loads(done.stdout)["url"]).read(4) == b"\x89PNG"


def test_it_stands_as_it_was_documented() -> None:
    """Formatters like to rewrite it; what users copy must not depend on that."""
    assert hashlib.sha256(EXAMPLE.read_bytes()).hexdigest() == DOCUMENTED_SHA256


def test_it_is_read_without_being_run() -> None:
    source = inspect_file(EXAMPLE)

    assert (source.info.name, source.entry) == ("image-detection", "main")


def test_the_readme_s_function_answers_what_it_says(tmp_path: Path, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    readme = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
    code = re.search(r"```python\n(.*?)```", readme, re.DOTALL)[1]
    command, answer = re.search(r"```console\n\$ (.*?)\n(.*?)\n```", readme, re.DOTALL).groups()
    (tmp_path / "function.py").write_text(code, encoding="utf-8")
    variables, words = shlex.split(command)[:2], shlex.split(command)[2:]
    assert variables == ["TRITON_URL=http://127.0.0.1:8000", "MODEL_NAME=mlp"]
    monkeypatch.setenv("TRITON_URL", url)
    monkeypatch.setenv("MODEL_NAME", "mlp")

    words[0] = str(Path(sys.executable).with_name(words[0]))
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=True)

    assert done.stdout.strip() == answer
