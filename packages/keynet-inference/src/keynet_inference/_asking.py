"""Asker: one request from its inputs to its answer, with what is known of each model, and what is tried again."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, TypeVar

from keynet_inference._client import open_client
from keynet_inference._deadlines import Deadline
from keynet_inference._errors import (
    InferenceFailed,
    InputRefused,
    ModelNotServed,
    ModelUnnamed,
    TritonUnreachable,
)
from keynet_inference._inputs import bind
from keynet_inference._model import Asked

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy.typing as npt

    from keynet_inference._model import Model
    from keynet_inference._settings import Retry
    from keynet_inference._sharing import SharingClient

    Outputs = dict[str, npt.NDArray[Any]]

T = TypeVar("T")


class Asker:
    """Asks one model server from one process."""

    def __init__(
        self, url: str, *, timeout_s: float, connect_timeout_s: float, retry: Retry, shares_memory: bool
    ) -> None:
        self._url = url
        self._timeout_s = timeout_s
        self._retry = retry
        self._client = open_client(url, connect_timeout_s)
        self._sharing: SharingClient | None = None
        if shares_memory:
            from keynet_inference._sharing import SharingClient

            self._client = self._sharing = SharingClient(self._client, url)
        self._known: dict[Asked, Model] = {}

    def predict(self, given: object, model: str | None, version: str) -> Outputs:
        """Return what a model gives, or raise one of the errors that `TritonPlugin.predict` names."""
        deadline = Deadline(self._timeout_s)
        if not model:
            raise ModelUnnamed(
                f"no model is named to {self._url}; ready there: {self._ready(deadline)}",
                hint='predict(..., model_name="..."), or set MODEL_NAME',
            )
        asked = Asked(model, version)
        known = self._known.get(asked)
        if known is None:
            return self._ask(self._learn(asked, deadline), given, deadline)
        # Another version may have been deployed since: what it takes is asked again before anyone is blamed.
        try:
            return self._ask(known, given, deadline)
        except InputRefused:
            fresh = self._learn(asked, deadline)
            if fresh == known:
                raise
        except ModelNotServed:
            fresh = self._learn(asked, deadline)
        return self._ask(fresh, given, deadline)

    @property
    def shared_memory_refusal(self) -> str | None:
        """Why large inputs are sent over the connection although they were to be shared."""
        return self._sharing.refusal if self._sharing else None

    def close(self) -> None:
        """Give back every connection."""
        self._client.close()

    def _ask(self, model: Model, given: object, deadline: Deadline) -> Outputs:
        inputs = bind(given, model)
        return self._persist(lambda: self._client.infer(model, inputs, deadline), deadline)

    def _learn(self, asked: Asked, deadline: Deadline) -> Model:
        try:
            model = self._persist(lambda: self._client.describe(asked, deadline), deadline)
        except ModelNotServed as error:
            self._known.pop(asked, None)
            raise ModelNotServed(
                f"model {asked} is not served: {error.message}",
                hint=f"keynet models show {asked.model}; ready there: {self._ready(deadline)}",
            ) from error
        self._known[asked] = model
        return model

    def _ready(self, deadline: Deadline) -> str:
        """Return the models that are ready, for a sentence: an index that cannot be had must not hide the sentence."""
        try:
            return ", ".join(self._persist(lambda: self._client.ready_models(deadline), deadline)) or "none"
        except (ModelNotServed, InputRefused, InferenceFailed) as error:
            return f"not told ({error.message})"

    def _persist(self, request: Callable[[], T], deadline: Deadline) -> T:
        """Make a request, again where the server was not reached, until the retries or the time end."""
        try:
            return request()
        except TritonUnreachable as error:
            lost = error
        for delay_s in self._retry.delays():
            if delay_s >= deadline.left_s():
                break
            time.sleep(delay_s)
            try:
                return request()
            except TritonUnreachable as error:
                lost = error
        raise lost
