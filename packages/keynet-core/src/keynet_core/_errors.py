"""
The root of every error keynet raises, and the branch that belongs to core.

KeynetError
├── NameRefused              (also ValueError)
├── SettingsInvalid          (also ValueError)
├── MissingDependency        (also ImportError)
├── TensorMismatch           (also ValueError)
├── PackageInvalid
│   └── PackageCorrupt
├── StoreError
│   ├── ObjectMissing
│   ├── ObjectCorrupt
│   ├── ObjectTooLarge
│   ├── StoreForbidden
│   ├── StoreUnavailable
│   │   └── StoreFull
│   └── StoreUnsupported
├── EventInvalid             (also ValueError)
├── EventUndelivered
├── EventRefused
└── LockTimeout              (also TimeoutError)
"""

from __future__ import annotations

from typing import ClassVar


class KeynetError(Exception):
    """
    Anything keynet refuses or fails to do.

    Args:
        message: What happened, with the object it happened to, in one sentence.
        hint: The next thing to do, a command where there is one.

    """

    code: ClassVar[str] = "keynet.error"

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}\n  next  {self.hint}" if self.hint else self.message

    def to_dict(self) -> dict[str, str]:
        """Return code, message and, where there is one, hint: what a machine reads."""
        told = {"code": self.code, "message": self.message}
        return told | {"hint": self.hint} if self.hint else told


class NameRefused(KeynetError, ValueError):
    """Raised when a model, function or tensor has a name that some part of the way cannot carry."""

    code = "name.refused"


class SettingsInvalid(KeynetError, ValueError):
    """Raised when an argument or environment variable has a value that cannot be used."""

    code = "settings.invalid"


class MissingDependency(KeynetError, ImportError):
    """Raised when a feature needs a package that is not installed."""

    code = "dependency.missing"


class TensorMismatch(KeynetError, ValueError):
    """Raised when an array does not fit the tensor it was given for."""

    code = "tensor.mismatch"


class PackageInvalid(KeynetError):
    """Raised when a directory is not a model package: no manifest, an unknown schema, a path outside."""

    code = "package.invalid"


class PackageCorrupt(PackageInvalid):
    """Raised when a package's file is missing, truncated or does not have the digest its manifest names."""

    code = "package.corrupt"


class StoreError(KeynetError):
    """Raised when an object store cannot do what it was asked."""

    code = "store.error"


class ObjectMissing(StoreError):
    """Raised when an object store has no object under the key."""

    code = "store.object_missing"


class ObjectCorrupt(StoreError):
    """Raised when bytes on their way into or out of an object store do not have the digest that they should have."""

    code = "store.object_corrupt"


class ObjectTooLarge(StoreError):
    """Raised when an object has more bytes than were asked for at most."""

    code = "store.object_too_large"


class StoreForbidden(StoreError):
    """Raised when an object store does not accept who asks: no keys, wrong keys, or keys without the permission."""

    code = "store.forbidden"


class StoreUnavailable(StoreError):
    """Raised when an object store does not answer, or answers that it cannot now."""

    code = "store.unavailable"


class StoreFull(StoreUnavailable):
    """Raised when an object store has no room left."""

    code = "store.full"


class StoreUnsupported(StoreError):
    """Raised when no engine is known for the scheme of a store's URL."""

    code = "store.unsupported"


class EventInvalid(KeynetError, ValueError):
    """Raised when a text is not a CloudEvent, or its data is not what its type promises."""

    code = "event.invalid"


class EventUndelivered(KeynetError):
    """Raised when an event could not be handed over; sending it again later is safe."""

    code = "event.undelivered"


class EventRefused(KeynetError):
    """Raised when the receiver understood an event and refused it; sending it again is useless."""

    code = "event.refused"


class LockTimeout(KeynetError, TimeoutError):
    """Raised when another process held a lock for longer than we were willing to wait."""

    code = "lock.timeout"
