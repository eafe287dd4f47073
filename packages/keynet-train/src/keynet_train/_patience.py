"""
MLflow's server, waited for: seconds until it takes a connection, longer until it answers.

A server that is not there is to be told at once. One that is busy, or makes its tables before its first answer, only
takes longer; both are bounded.
"""

from __future__ import annotations

import logging
import os
import socket
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING
from urllib.parse import urlsplit, urlunsplit

from keynet_core import Secret
from keynet_train._errors import TrackingUnreachable

if TYPE_CHECKING:
    from collections.abc import Iterator
    from urllib.parse import SplitResult

CONNECT_TIMEOUT_S = 4.0
ANSWER_TIMEOUT_S = 15
"""For each of two attempts at a request; MLflow reads whole seconds."""
NOTICE_AFTER_S = 2.0

_ATTEMPTS = 2
_PORTS = {"http": 80, "https": 443}
_TIMEOUT = "MLFLOW_HTTP_REQUEST_TIMEOUT"
_RETRIES = "MLFLOW_HTTP_REQUEST_MAX_RETRIES"

_TURN = threading.Lock()
"""Held while MLflow's time-outs are ours: they are the process's environment."""

_LOG = logging.getLogger("keynet_train")


@contextmanager
def answering(uri: str) -> Iterator[None]:
    """
    Have MLflow wait seconds for its server, not minutes, say so while it waits, and what the matter was.

    MLflow's own client makes the requests, so that certificates, proxies and credentials are as it reads them.

    Raises:
        TrackingUnreachable: The server takes no connection, or does not answer.
    """
    from mlflow.exceptions import MlflowException, RestException

    parts = urlsplit(uri)
    if parts.scheme not in _PORTS:
        yield
        return
    bare = urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))
    try:
        with _telling(bare), _TURN:
            _connect(parts)
            with _set_where_unset({_TIMEOUT: str(ANSWER_TIMEOUT_S), _RETRIES: str(_ATTEMPTS - 1)}):
                yield
    except RestException:
        raise
    except (MlflowException, OSError) as error:
        secret = parts.netloc.rpartition("@")[0]
        told = str(error).replace(secret, Secret.MASK) if secret else str(error)
        raise TrackingUnreachable(
            f"the MLflow server at {bare} does not answer: {told[:300]}",
            hint="start it, or unset MLFLOW_TRACKING_URI to work on .keynet/ in this directory",
        ) from error


def _connect(parts: SplitResult) -> None:
    """
    Connect, once and for nothing: MLflow has one time-out for the connection and for the answer.

    A proxy connects for us, and whoever set MLflow's time-out has said how long is long.
    """
    if _TIMEOUT in os.environ or parts.hostname is None or _is_proxied(parts):
        return
    try:
        address = (parts.hostname, parts.port or _PORTS[parts.scheme])
    except ValueError:  # no such port: MLflow says it better
        return
    try:
        socket.create_connection(address, timeout=CONNECT_TIMEOUT_S).close()
    except TimeoutError as error:
        raise TimeoutError(f"it took no connection for {CONNECT_TIMEOUT_S:g} s") from error


def _is_proxied(parts: SplitResult) -> bool:
    from urllib.request import getproxies, proxy_bypass

    return bool(getproxies().keys() & {parts.scheme, "all"}) and not proxy_bypass(str(parts.hostname))


@contextmanager
def _telling(bare: str) -> Iterator[None]:
    """Say once, after a moment, what is waited for."""
    told = f"the MLflow server at {bare} takes longer than {NOTICE_AFTER_S:g} s"
    if not {_TIMEOUT, _RETRIES} & os.environ.keys():
        told += f"; a request is given up after {ANSWER_TIMEOUT_S * _ATTEMPTS} s"
    notice = threading.Timer(NOTICE_AFTER_S, _LOG.warning, ("%s", told))
    notice.daemon = True
    notice.start()
    try:
        yield
    finally:
        notice.cancel()


@contextmanager
def _set_where_unset(variables: dict[str, str]) -> Iterator[None]:
    """Set variables that the user has not, for the time of the block: MLflow takes these two no other way."""
    fresh = {name: value for name, value in variables.items() if name not in os.environ}
    os.environ.update(fresh)
    try:
        yield
    finally:
        for name in fresh:
            os.environ.pop(name, None)
