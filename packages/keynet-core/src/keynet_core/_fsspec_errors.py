"""What the file systems of fsspec raise, as the errors of object stores."""

from __future__ import annotations

import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING

from keynet_core._errors import ObjectMissing, StoreError, StoreForbidden, StoreFull, StoreUnavailable
from keynet_core._file_errors import FULL

if TYPE_CHECKING:
    from collections.abc import Iterator

_FOREIGN = (
    ("aiohttp", "ClientError"),
    ("gcsfs.retry", "HttpError"),
    ("google.auth.exceptions", "GoogleAuthError"),
    ("azure.core.exceptions", "AzureError"),
)
"""Roots of what the libraries below fsspec raise, beside OSError and ValueError."""

_NO_ANSWER = {
    *("ClientConnectionError", "ClientPayloadError", "ServerTimeoutError", "TransportError"),
    *("ServiceRequestError", "ServiceResponseError", "IncompleteReadError"),
}
_NO_KEYS = {"PermissionError", "GoogleAuthError", "ClientAuthenticationError"}
LOOK = "look at the address of the store, and at what the bucket has"
AGAIN = "try again; if it stays so, look at the status page of the service"
_KEYS_HINT = "set GOOGLE_APPLICATION_CREDENTIALS, or AZURE_STORAGE_CONNECTION_STRING, to keys that may use this store"


@contextmanager
def translating_fsspec(path: str) -> Iterator[None]:
    """Raise what a file system says of a path as StoreError."""
    # Only what is loaded can have been raised.
    foreign = (getattr(sys.modules.get(module), name, OSError) for module, name in _FOREIGN)
    try:
        yield
    except (OSError, ValueError, *foreign) as error:
        raise _of(error, path) from error


def _of(error: BaseException, path: str) -> StoreError:
    kinds = {kind.__name__ for kind in type(error).__mro__}
    status = _status_of(error)
    told = f"{path}: {str(error)[:300] or type(error).__name__}"
    if isinstance(error, FileNotFoundError | NotADirectoryError) or status == 404:
        return ObjectMissing(f"the store has no object {path}", hint=LOOK)
    if getattr(error, "errno", None) in FULL or status in {413, 507}:
        return StoreFull(told, hint="make room, or raise the quota of the bucket")
    if kinds & _NO_ANSWER or status in {408, 429} or status >= 500:
        return StoreUnavailable(told, hint=AGAIN)
    if kinds & _NO_KEYS or status in {401, 403}:
        return StoreForbidden(told, hint=_KEYS_HINT)
    return StoreUnavailable(told, hint=AGAIN) if isinstance(error, OSError) else StoreError(told, hint=LOOK)


def _status_of(error: BaseException) -> int:
    """Return the HTTP status that an error carries under one of its libraries' names, or 0."""
    for name in ("status_code", "status", "code"):
        told = getattr(error, name, None)
        if isinstance(told, int) or (isinstance(told, str) and told.isdigit()):
            return int(told)
    return 0
