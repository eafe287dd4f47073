"""The parameters of a request to load a model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from keynet_serving._errors import RequestRefused, Unsupported

if TYPE_CHECKING:
    from collections.abc import Mapping


def override_of(parameters: Mapping[str, Any]) -> str | None:
    """
    Return the configuration a request to load brings, as JSON, or None.

    Raises:
        Unsupported: The request brings files; models come from the repository only.
        RequestRefused: A parameter is unknown or is no text.
    """
    for key, value in parameters.items():
        if key.startswith("file:"):
            raise Unsupported(
                f"parameter '{key}': this server loads files from its repository only, not from a request"
            )
        if key != "config" or not isinstance(value, str):
            raise RequestRefused(f"unexpected parameter '{key}' in a request to load a model")
    return parameters.get("config")
