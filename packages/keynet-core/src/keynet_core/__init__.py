"""
The nouns of keynet: tensors, packages, events, settings, object stores, the outbox.

A public name is loaded when it is first asked for: a function's container pays for what it uses.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from keynet_core._dtypes import DataType
    from keynet_core._durable import (
        copy_durably,
        make_directory,
        make_private_directory,
        remove_tree,
        replacing,
        sha256_of,
        sync_directory,
        sync_tree,
        write_durably,
    )
    from keynet_core._endpoints import (
        Endpoints,
        read_endpoints,
        to_publisher,
        up_lock,
        write_endpoints,
    )
    from keynet_core._errors import (
        EventInvalid,
        EventRefused,
        EventUndelivered,
        KeynetError,
        LockTimeout,
        MissingDependency,
        NameRefused,
        ObjectCorrupt,
        ObjectMissing,
        ObjectTooLarge,
        PackageCorrupt,
        PackageInvalid,
        SettingsInvalid,
        StoreError,
        StoreForbidden,
        StoreFull,
        StoreUnavailable,
        StoreUnsupported,
        TensorMismatch,
    )
    from keynet_core._events import CONTENT_TYPE, MAX_EVENT_BYTES, Event, ModelPublished, to_digest
    from keynet_core._local_store import LocalStore
    from keynet_core._locks import create_once, is_held, locked
    from keynet_core._names import ModelName, to_model_name, to_tensor_name
    from keynet_core._objects import ObjectInfo, ObjectStore, open_store, to_key
    from keynet_core._outbox import Entry, FlushReport, Outbox
    from keynet_core._package import Lineage, Manifest, ModelPackage, PackageFile, digest_of
    from keynet_core._package_store import download_package, package_key, read_manifest, upload_package
    from keynet_core._probe import MAX_PROBE_BYTES, Probe
    from keynet_core._progress import Progress, watching_progress
    from keynet_core._publishing import EventPublisher, HttpPublisher, Nowhere, publish_entry
    from keynet_core._rabbit_address import RabbitAddress
    from keynet_core._rabbit_publisher import RabbitPublisher
    from keynet_core._secrets import Secret
    from keynet_core._settings import (
        CoreSettings,
        S3Settings,
        describe_settings,
        read_settings,
        setting,
        to_http_url,
        to_path,
    )
    from keynet_core._tensors import Dim, Signature, TensorSpec, format_shape
    from keynet_core._wire import from_wire, to_wire

__all__ = [
    "CONTENT_TYPE",
    "MAX_EVENT_BYTES",
    "MAX_PROBE_BYTES",
    "CoreSettings",
    "DataType",
    "Dim",
    "Endpoints",
    "Entry",
    "Event",
    "EventInvalid",
    "EventPublisher",
    "EventRefused",
    "EventUndelivered",
    "FlushReport",
    "HttpPublisher",
    "KeynetError",
    "Lineage",
    "LocalStore",
    "LockTimeout",
    "Manifest",
    "MissingDependency",
    "ModelName",
    "ModelPackage",
    "ModelPublished",
    "NameRefused",
    "Nowhere",
    "ObjectCorrupt",
    "ObjectInfo",
    "ObjectMissing",
    "ObjectStore",
    "ObjectTooLarge",
    "Outbox",
    "PackageCorrupt",
    "PackageFile",
    "PackageInvalid",
    "Probe",
    "Progress",
    "RabbitAddress",
    "RabbitPublisher",
    "S3Settings",
    "Secret",
    "SettingsInvalid",
    "Signature",
    "StoreError",
    "StoreForbidden",
    "StoreFull",
    "StoreUnavailable",
    "StoreUnsupported",
    "TensorMismatch",
    "TensorSpec",
    "copy_durably",
    "create_once",
    "describe_settings",
    "digest_of",
    "download_package",
    "format_shape",
    "from_wire",
    "is_held",
    "locked",
    "make_directory",
    "make_private_directory",
    "open_store",
    "package_key",
    "publish_entry",
    "read_endpoints",
    "read_manifest",
    "read_settings",
    "remove_tree",
    "replacing",
    "setting",
    "sha256_of",
    "sync_directory",
    "sync_tree",
    "to_digest",
    "to_http_url",
    "to_key",
    "to_model_name",
    "to_path",
    "to_publisher",
    "to_tensor_name",
    "to_wire",
    "up_lock",
    "upload_package",
    "watching_progress",
    "write_durably",
    "write_endpoints",
]

_HOMES = {
    "_dtypes": ("DataType",),
    "_durable": (
        "copy_durably",
        "make_directory",
        "make_private_directory",
        "remove_tree",
        "replacing",
        "sha256_of",
        "sync_directory",
        "sync_tree",
        "write_durably",
    ),
    "_endpoints": (
        "Endpoints",
        "read_endpoints",
        "to_publisher",
        "up_lock",
        "write_endpoints",
    ),
    "_errors": (
        "EventInvalid",
        "EventRefused",
        "EventUndelivered",
        "KeynetError",
        "LockTimeout",
        "MissingDependency",
        "NameRefused",
        "ObjectCorrupt",
        "ObjectMissing",
        "ObjectTooLarge",
        "PackageCorrupt",
        "PackageInvalid",
        "SettingsInvalid",
        "StoreError",
        "StoreForbidden",
        "StoreFull",
        "StoreUnavailable",
        "StoreUnsupported",
        "TensorMismatch",
    ),
    "_events": (
        "CONTENT_TYPE",
        "MAX_EVENT_BYTES",
        "Event",
        "ModelPublished",
        "to_digest",
    ),
    "_local_store": ("LocalStore",),
    "_locks": ("create_once", "is_held", "locked"),
    "_names": (
        "ModelName",
        "to_model_name",
        "to_tensor_name",
    ),
    "_objects": (
        "ObjectInfo",
        "ObjectStore",
        "open_store",
        "to_key",
    ),
    "_outbox": (
        "Entry",
        "FlushReport",
        "Outbox",
    ),
    "_package": (
        "Lineage",
        "Manifest",
        "ModelPackage",
        "PackageFile",
        "digest_of",
    ),
    "_package_store": (
        "download_package",
        "package_key",
        "read_manifest",
        "upload_package",
    ),
    "_probe": (
        "MAX_PROBE_BYTES",
        "Probe",
    ),
    "_progress": ("Progress", "watching_progress"),
    "_publishing": (
        "EventPublisher",
        "HttpPublisher",
        "Nowhere",
        "publish_entry",
    ),
    "_rabbit_address": ("RabbitAddress",),
    "_rabbit_publisher": ("RabbitPublisher",),
    "_secrets": ("Secret",),
    "_settings": (
        "CoreSettings",
        "S3Settings",
        "describe_settings",
        "read_settings",
        "setting",
        "to_http_url",
        "to_path",
    ),
    "_tensors": (
        "Dim",
        "Signature",
        "TensorSpec",
        "format_shape",
    ),
    "_wire": (
        "from_wire",
        "to_wire",
    ),
}
"""Module to the public names it holds; the imports above are the same, for those who read types."""

if not TYPE_CHECKING:

    def __getattr__(name: str) -> object:
        from importlib import import_module

        for home, names in _HOMES.items():
            if name in names:
                value = globals()[name] = getattr(import_module(f"{__name__}.{home}"), name)
                return value
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

    def __dir__() -> list[str]:
        return __all__
