"""What things may be called: a model's name becomes a folder, a URL segment and a key, so the rule is narrow."""

from __future__ import annotations

import re
from typing import NewType

from keynet_core._errors import NameRefused

ModelName = NewType("ModelName", str)

MODEL_NAME_RULE = "1 to 128 of the letters A-Z a-z, digits, '.', '_' and '-', beginning with a letter or a digit"
TENSOR_NAME_RULE = "1 to 256 printable characters, without '/', '\\' and '\"'"

_MODEL_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}", re.ASCII)


def to_model_name(text: object) -> ModelName:
    """
    Return `text` as the name of a model.

    Raises:
        NameRefused: It is not text, or has a character that a folder, a URL or MLflow's registry cannot carry.

    """
    if isinstance(text, str) and _MODEL_NAME.fullmatch(text):
        return ModelName(text)
    raise NameRefused(
        f"a model cannot be called {text!r:.200}: a name has {MODEL_NAME_RULE}",
        hint="choose another name, for example 'mnist-v1'; a title in any language fits into a run tag",
    )


def to_tensor_name(text: object) -> str:
    """
    Return `text` as the name of an input or output tensor.

    Raises:
        NameRefused: It is not text, is empty or too long, or has a character that a file name or a quoted string
            cannot carry.

    """
    if isinstance(text, str) and 0 < len(text) <= 256 and text.isprintable() and not set(text) & set('/\\"'):
        return text
    raise NameRefused(f"a tensor cannot be called {text!r:.200}: a name has {TENSOR_NAME_RULE}")
