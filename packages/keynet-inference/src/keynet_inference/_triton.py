"""TritonPlugin: a model's name and arrays to a model's answer, whichever server gives it."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, Self

from keynet_core import SettingsInvalid, read_settings
from keynet_inference._errors import PluginClosed
from keynet_inference._settings import Retry, TritonSettings

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy.typing as npt

    from keynet_inference._asking import Asker

    Outputs = dict[str, npt.NDArray[Any]]

_DEFAULT_RETRY = Retry()


class TritonPlugin:
    """
    Asks models for inference: `TritonPlugin().predict(df={"input_0": array})["output_0"]`.

    Any number of threads may use one plugin. It costs nothing to construct; connections are opened by the first
    request, again after a fork, and given back by `close`, or at the end of a `with` block.

    With `file://` a model is loaded once per process, at the first request for it: a later deployment or rollback is
    seen by the processes that start after it. A repository's link may lead, for a moment, to a deployment whose probe
    was not answered yet, so a running process does not follow it.

    Args:
        url: The model server: `http://`, `https://`, `grpc://`, `grpcs://`, or `file:///path/to/repository` to serve
            in this process. Default: `TRITON_URL`, else what `keynet up` runs on this home, else port 8000 here.
        model_name: The model to ask where a call does not name one. Default: `MODEL_NAME`.
        model_version: The version to ask. Default: the server chooses, usually the latest.
        timeout_s: How long one `predict` may take in all, tries and waits included.
        connect_timeout_s: How long opening one connection over HTTP may take.
        retry: How often a server that cannot be reached is tried again; what it answers is final.
        shared_memory: Whether inputs of 256 KiB and more go to a server of this machine through shared memory, where
            it offers that. Where it does not, they are sent as ever: `SharedMemoryUnused` warns of it, once, and
            `shared_memory_refusal` says why.

    Raises:
        SettingsInvalid: An argument, or a variable of the environment, cannot be used.

    """

    def __init__(
        self,
        url: str | None = None,
        model_name: str | None = None,
        model_version: str | int | None = None,
        *,
        timeout_s: float = 60.0,
        connect_timeout_s: float = 5.0,
        retry: Retry = _DEFAULT_RETRY,
        shared_memory: bool = False,
    ) -> None:
        if timeout_s <= 0 or connect_timeout_s <= 0:
            raise SettingsInvalid("a time-out is longer than 0 seconds")
        settings = read_settings(TritonSettings, os.environ, triton_url=url, model_name=model_name)
        self.url = settings.server
        self.model_name = settings.model_name
        self.model_version = _to_version(model_version)
        self._timeout_s = timeout_s
        self._connect_timeout_s = connect_timeout_s
        self._retry = retry
        self._shared_memory = shared_memory
        self._asker: Asker | None = None
        self._pid = os.getpid()
        self._is_closed = False

    def predict(
        self,
        df: Mapping[str, Any] | Any,
        model_name: str | None = None,
        model_version: str | int | None = None,
    ) -> Outputs:
        """
        Return a model's outputs by name, as arrays that may be written to; STRING elements are `bytes`.

        Args:
            df: The inputs: a dict of arrays, lists or numbers by name, or a pandas DataFrame. An array must have the
                model's element type; numbers in lists and frames become it where no value changes.
            model_name: The model to ask, where it is not the plugin's.
            model_version: The version to ask, where it is not the plugin's.

        Raises:
            InputRefused: The inputs do not fit the model.
            ModelUnnamed: Nothing says which model to ask.
            ModelNotServed: The server does not serve it.
            TritonUnavailable: The server says it cannot now; TritonUnreachable where no answer came, TritonTimeout
                where none came in time.
            InferenceFailed: The server failed.

        """
        version = self.model_version if model_version is None else _to_version(model_version)
        return self._opened().predict(df, model_name or self.model_name, version)

    async def predict_async(
        self,
        df: Mapping[str, Any] | Any,
        model_name: str | None = None,
        model_version: str | int | None = None,
    ) -> Outputs:
        """Do what `predict` does on a thread of the running loop; a cancelled call still runs to its end there."""
        import asyncio  # a third of what importing this package would cost

        return await asyncio.to_thread(self.predict, df, model_name, model_version)

    @property
    def shared_memory_refusal(self) -> str | None:
        """
        Why large inputs are sent over the connection although `shared_memory` was asked for.

        None while they are shared, and before the first of them.
        """
        asker = self._asker
        return asker.shared_memory_refusal if asker is not None and self._pid == os.getpid() else None

    def close(self) -> None:
        """Give back every connection; the plugin cannot be used again."""
        self._is_closed = True
        asker, self._asker = self._asker, None
        if asker is not None and self._pid == os.getpid():
            asker.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"TritonPlugin({self.url!r}, model_name={self.model_name!r})"

    def _opened(self) -> Asker:
        """Return this process's way to the server: after a fork the parent's connections are the parent's."""
        asker = self._asker
        if asker is not None and self._pid == os.getpid():
            return asker
        if self._is_closed:
            raise PluginClosed(f"{self!r} was closed", hint="construct another one")
        from keynet_inference._asking import Asker  # importing a function must not pay for asking

        asker = Asker(
            self.url,
            timeout_s=self._timeout_s,
            connect_timeout_s=self._connect_timeout_s,
            retry=self._retry,
            shares_memory=self._shared_memory,
        )
        self._asker, self._pid = asker, os.getpid()
        return asker


def _to_version(version: str | int | None) -> str:
    return "" if version is None else str(version)
