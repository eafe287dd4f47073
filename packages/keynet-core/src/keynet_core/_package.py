"""
ModelPackage: an immutable directory that can be served, and the manifest that vouches for it.

`served` files are what an engine loads; the digest is the SHA-256 of the text `sha256sum` prints for them, sorted by
name, so anyone can compute it with that command. `evidence` (the probe) and lineage stand beside the digest: the
same model is the same package, whoever trained it again.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any, Self

from keynet_core._durable import sha256_of, write_durably
from keynet_core._errors import PackageCorrupt, PackageInvalid, StoreError
from keynet_core._names import to_model_name
from keynet_core._objects import to_key
from keynet_core._probe import MAX_PROBE_BYTES, Probe
from keynet_core._tensors import Signature

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from keynet_core._names import ModelName

SCHEMA = "io.keynet.package.v1"
MANIFEST = "manifest.json"
MAX_MANIFEST_BYTES = 4 * 1024 * 1024

_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True, kw_only=True)
class PackageFile:
    """A file of a package: its relative path, its size, the SHA-256 of its bytes in hexadecimal."""

    path: str
    size_bytes: int
    sha256: str

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {"path": self.path, "size_bytes": self.size_bytes, "sha256": self.sha256}


@dataclass(frozen=True, slots=True, kw_only=True)
class Lineage:
    """Where a package comes from. Not part of its digest."""

    run_id: str | None = None
    experiment: str | None = None
    git_commit: str | None = None
    framework: str | None = None
    tags: dict[str, str] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {name: getattr(self, name) for name in self.__slots__}

    @classmethod
    def from_dict(cls, told: dict[str, Any]) -> Self:
        """
        Read what `to_dict` wrote; what this version does not know is ignored.

        Raises:
            PackageInvalid: A value is no text.

        """
        texts = {name: told.get(name) for name in ("run_id", "experiment", "git_commit", "framework")}
        tags = dict(told.get("tags") or {})
        if not all(isinstance(text, str | None) for text in (*texts.values(), *tags.values())):
            raise PackageInvalid("the manifest's lineage has a value that is no text")
        return cls(**texts, tags=tags)


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """What a package says of itself."""

    name: ModelName
    digest: str
    served: tuple[PackageFile, ...]
    evidence: tuple[PackageFile, ...] = ()
    signature: Signature
    output_keys: tuple[str, ...] | None = None
    """The keys of a model that answers with a dict, in the order of `output_0`, `output_1`, ..."""
    parity: dict[str, Any] | None = None
    """How the exported model was compared with the original; None when there was no original to compare with."""
    lineage: Lineage = Lineage()

    @property
    def files(self) -> tuple[PackageFile, ...]:
        """Every file but the manifest."""
        return (*self.served, *self.evidence)

    @property
    def size_bytes(self) -> int:
        """The size of what is served."""
        return sum(each.size_bytes for each in self.served)

    def to_json(self) -> bytes:
        """Return the manifest as JSON."""
        told = {
            "schema": SCHEMA,
            "name": self.name,
            "digest": self.digest,
            "served": [each.to_dict() for each in self.served],
            "evidence": [each.to_dict() for each in self.evidence],
            "signature": self.signature.to_dict(),
            "output_keys": self.output_keys,
            "parity": self.parity,
            "lineage": self.lineage.to_dict(),
        }
        return json.dumps(told, indent=2, ensure_ascii=False).encode() + b"\n"

    @classmethod
    def from_json(cls, text: bytes) -> Self:
        """
        Read a manifest that may come from anywhere: names and paths are checked, and so is its digest.

        Raises:
            PackageInvalid: It is no manifest, or names a path outside the package.
            PackageCorrupt: Its digest is not that of the files it lists.

        """
        try:
            told = json.loads(text)
            if told["schema"] != SCHEMA:
                raise PackageInvalid(f"the manifest has schema {told['schema']!r:.80}, keynet reads {SCHEMA!r}")
            keys, parity = told.get("output_keys"), told.get("parity")
            manifest = cls(
                name=to_model_name(told["name"]),
                digest=str(told["digest"]),
                served=_files(told["served"]),
                evidence=_files(told["evidence"]),
                signature=Signature.from_dict(told["signature"]),
                output_keys=None if keys is None else tuple(map(str, keys)),
                parity=None if parity is None else dict(parity),
                lineage=Lineage.from_dict(told["lineage"]),
            )
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
            raise PackageInvalid(f"the manifest cannot be read: {type(error).__name__}: {error}") from error
        _check(manifest)
        if manifest.digest != digest_of(manifest.served):
            raise PackageCorrupt(f"the manifest of {manifest.name} has digest {manifest.digest:.80}, not its files'")
        return manifest


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelPackage:
    """A directory with a manifest."""

    directory: Path
    manifest: Manifest

    @classmethod
    def build(
        cls,
        directory: Path,
        *,
        name: ModelName,
        signature: Signature,
        probe: Probe | None = None,
        output_keys: Iterable[str] | None = None,
        parity: dict[str, Any] | None = None,
        lineage: Lineage | None = None,
    ) -> Self:
        """
        Make a package of a directory that holds exactly what is to be served; the manifest is written last.

        Raises:
            PackageInvalid: The directory is empty, holds something that is no plain file or whose name no store
                carries, or the probe is larger than MAX_PROBE_BYTES.

        """
        served = tuple(_describe(directory, path) for path in _paths(directory))
        evidence = (_record(directory, probe),) if probe is not None else ()
        manifest = Manifest(
            name=name,
            digest=digest_of(served),
            served=served,
            evidence=evidence,
            signature=signature,
            output_keys=None if output_keys is None else tuple(output_keys),
            parity=parity,
            lineage=lineage or Lineage(),
        )
        _check(manifest)
        write_durably(directory / MANIFEST, manifest.to_json())
        return cls(directory=directory, manifest=manifest)

    @classmethod
    def open(cls, directory: Path) -> Self:
        """
        Open a package, reading its manifest only; `verify` reads the files.

        Raises:
            PackageInvalid: There is no manifest, or it cannot be read.

        """
        path = directory / MANIFEST
        try:
            with path.open("rb") as file:
                text = file.read(MAX_MANIFEST_BYTES + 1)
        except OSError as error:
            raise PackageInvalid(f"{directory} is no package: {path.name}: {error.strerror}") from error
        if len(text) > MAX_MANIFEST_BYTES:
            raise PackageInvalid(f"{path} has more than {MAX_MANIFEST_BYTES} bytes")
        return cls(directory=directory, manifest=Manifest.from_json(text))

    @property
    def digest(self) -> str:
        """`sha256:` and the hexadecimal digest of what is served."""
        return self.manifest.digest

    def verify(self) -> None:
        """
        Read every file.

        Raises:
            PackageCorrupt: One is missing, is no plain file, or is not what the manifest says.
            PackageInvalid: There is a file that the manifest does not name.

        """
        listed = {each.path for each in self.manifest.files}
        if stray := sorted(set(_paths(self.directory)) - listed - {MANIFEST}):
            raise PackageInvalid(f"package {self.manifest.name} holds a file its manifest does not name: {stray[0]}")
        for each in self.manifest.files:
            self._verify(each)

    def _verify(self, expected: PackageFile) -> None:
        path = self.directory / expected.path
        if path.is_symlink() or not path.is_file():
            raise PackageCorrupt(f"package {self.manifest.name} has no file {expected.path}")
        size, sha256 = path.stat().st_size, sha256_of(path)
        if (size, sha256) != (expected.size_bytes, expected.sha256):
            raise PackageCorrupt(
                f"{expected.path} of package {self.manifest.name} is not what its manifest says: "
                f"{size} bytes, sha256 {sha256[:12]}; listed {expected.size_bytes} bytes, {expected.sha256[:12]}"
            )

    def probe(self) -> Probe | None:
        """
        Return the recorded request and answer, or None when none was recorded.

        Raises:
            PackageInvalid: It is too large, or cannot be read.
            PackageCorrupt: Its file is missing.

        """
        for each in self.manifest.evidence:
            if each.path.startswith("probe-"):
                return Probe.from_json(self._read_probe(each))
        return None

    def _read_probe(self, expected: PackageFile) -> bytes:
        try:
            with (self.directory / expected.path).open("rb") as file:
                data = file.read(MAX_PROBE_BYTES + 1)
        except OSError as error:
            raise PackageCorrupt(f"package {self.manifest.name} has no file {expected.path}") from error
        if len(data) > MAX_PROBE_BYTES:
            raise PackageInvalid(f"the probe of {self.manifest.name} has more than {MAX_PROBE_BYTES} bytes")
        return data


def digest_of(files: Iterable[PackageFile]) -> str:
    """Return the digest of a list of files: the SHA-256 of what `sha256sum` prints for them, sorted by path."""
    import hashlib

    lines = (f"{each.sha256}  {each.path}\n" for each in sorted(files, key=lambda each: each.path))
    return f"sha256:{hashlib.sha256(''.join(lines).encode()).hexdigest()}"


def _describe(directory: Path, path: str) -> PackageFile:
    file = directory / _path(path)
    if file.is_symlink() or not file.is_file():
        raise PackageInvalid(f"a package holds plain files only, and {file} is none")
    return PackageFile(path=path, size_bytes=file.stat().st_size, sha256=sha256_of(file))


def _record(directory: Path, probe: Probe) -> PackageFile:
    import hashlib

    data = probe.to_json()
    if len(data) > MAX_PROBE_BYTES:
        raise PackageInvalid(
            f"the probe has {len(data)} bytes, a package records at most {MAX_PROBE_BYTES}",
            hint="record a smaller sample, or none",
        )
    # Named by its own digest: two runs that publish the same model never overwrite each other's evidence.
    name = f"probe-{hashlib.sha256(data).hexdigest()[:12]}.json"
    write_durably(directory / name, data)
    return _describe(directory, name)


def _paths(directory: Path) -> list[str]:
    return sorted(
        path.relative_to(directory).as_posix()
        for path in directory.rglob("*")
        if path.is_symlink() or not path.is_dir()
    )


def _files(told: Iterable[dict[str, Any]]) -> tuple[PackageFile, ...]:
    return tuple(
        PackageFile(path=_path(each["path"]), size_bytes=int(each["size_bytes"]), sha256=str(each["sha256"]))
        for each in told
    )


def _path(text: str) -> str:
    try:
        key = to_key(text)
    except StoreError as error:
        raise PackageInvalid(f"a package cannot hold {text!r:.80}: its paths are relative and stay inside") from error
    if key == MANIFEST:
        raise PackageInvalid(f"{MANIFEST} is the package's own, and lists every other file")
    return key


def _check(manifest: Manifest) -> None:
    """Refuse a list of files that no directory could hold, or that serves nothing."""
    paths = [each.path for each in manifest.files]
    if not manifest.served:
        raise PackageInvalid(f"package {manifest.name} holds nothing to serve")
    if len(set(paths)) != len(paths):
        raise PackageInvalid(f"package {manifest.name} names a file twice")
    if beneath := {str(parent) for path in paths for parent in PurePosixPath(path).parents} & set(paths):
        raise PackageInvalid(f"package {manifest.name} has {min(beneath)!r} as a file and as a directory")
    if wrong := [each.path for each in manifest.files if not _SHA256.fullmatch(each.sha256) or each.size_bytes < 0]:
        raise PackageInvalid(f"package {manifest.name} lists {wrong[0]!r} without a size and a SHA-256")
