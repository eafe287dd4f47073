"""`config.pbtxt` read, compared and written through Triton's own protobuf."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from keynet_core import PackageInvalid

if TYPE_CHECKING:
    from collections.abc import Iterable

    from keynet_core import ModelPackage

CONFIG = "config.pbtxt"
MAX_CONFIG_BYTES = 4 << 20

_DEPLOYMENT = "keynet_deployment"
"""The parameter that tells whose configuration it is; backends ignore what they do not know."""


def read_config(text: bytes, whose: str) -> Any:
    """
    Return a `ModelConfig`.

    Raises:
        PackageInvalid: The text is none.

    """
    from google.protobuf import text_format
    from tritonclient.grpc import model_config_pb2

    try:
        return text_format.Parse(text.decode(), model_config_pb2.ModelConfig())
    except (text_format.ParseError, UnicodeDecodeError) as error:
        raise PackageInvalid(f"{CONFIG} of {whose} cannot be read: {error}") from error


def read_package_config(package: ModelPackage) -> Any:
    """
    Return the configuration of a package that was just fetched; one without a file has none of its fields set.

    Raises:
        PackageInvalid: It cannot be read.

    """
    path = package.directory / CONFIG
    text = path.read_bytes() if path.exists() else b""
    return read_config(text, f"package {package.manifest.name}")


def wanted_versions(config: Any) -> int:
    """Return how many versions a configuration asks to be served at once."""
    policy = config.version_policy
    return max(1, policy.latest.num_versions) if policy.HasField("latest") else 1


def difference(config: Any, other: Any) -> str | None:
    """Return which fields two configurations differ in, or None; what versions they serve does not count."""
    pair = [_without_policy(each) for each in (config, other)]
    fields = (each.name for each in config.DESCRIPTOR.fields)
    different = [name for name in fields if getattr(pair[0], name) != getattr(pair[1], name)]
    return ", ".join(different) or None


def linked_config(config: Any, number: int, versions: Iterable[str]) -> bytes:
    """
    Return the text of a configuration that serves exactly these versions, for a deployment.

    The versions stand in one folder, each with its own labels, so the labels of the last are meant.
    """
    from google.protobuf import text_format

    served = sorted(map(int, versions))
    linked = type(config)()
    linked.CopyFrom(config)
    linked.version_policy.specific.versions[:] = served
    linked.parameters[_DEPLOYMENT].string_value = str(number)
    for output in linked.output:
        if output.label_filename:
            output.label_filename = f"{served[-1]}/{output.label_filename}"
    text: str = text_format.MessageToString(linked, as_utf8=True)
    return text.encode()


def without_versions(config: Any, gone: Iterable[str] | None = None) -> bytes:
    """Return the text of a linked configuration that no longer serves these versions, or None at all."""
    from google.protobuf import text_format

    versions = config.version_policy.specific.versions
    left = [] if gone is None else [each for each in versions if str(each) not in set(gone)]
    config.version_policy.specific.SetInParent()
    config.version_policy.specific.versions[:] = left
    text: str = text_format.MessageToString(config, as_utf8=True)
    return text.encode()


def nothing_served(name: str) -> bytes:
    """Return a configuration that no engine serves anything by: it stands where versions are still being put."""
    from tritonclient.grpc import model_config_pb2

    config = model_config_pb2.ModelConfig(name=name, backend="onnxruntime")
    config.parameters[_DEPLOYMENT].string_value = "0"
    return without_versions(config)


def deployment_of(config: Any) -> int | None:
    """Return whose configuration it is, 0 where it serves no deployment yet, or None when keynet did not write it."""
    if _DEPLOYMENT not in config.parameters:
        return None
    text = config.parameters[_DEPLOYMENT].string_value
    return int(text) if text.isascii() and text.isdigit() else None


def versions_of(config: Any) -> tuple[str, ...]:
    """Return the versions that a linked configuration names, ascending."""
    return tuple(map(str, sorted(config.version_policy.specific.versions)))


def to_json(config: Any) -> str:
    """Return a configuration as a request to load carries it."""
    from google.protobuf import json_format

    text: str = json_format.MessageToJson(config, preserving_proto_field_name=True, indent=None)
    return text


def _without_policy(config: Any) -> Any:
    same = type(config)()
    same.CopyFrom(config)
    same.ClearField("version_policy")
    return same
