"""Order: what a decorator was told, checked."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from keynet_core import ModelName
    from keynet_train._sample import Sample
    from keynet_train._triton import ServingOptions


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """How one training function's model is to go its way."""

    name: ModelName
    sample: Sample
    dynamic_axes: Mapping[str, Mapping[int, str]] | None
    serving: ServingOptions
    enable_autolog: bool
    run_name: str | None
    device: str | None
