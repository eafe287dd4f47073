"""Ledger: what a trainer has published, one line each, on disk before the next begins."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Trained:
    """An item whose publication came back to the trainer."""

    item: int
    model: str
    digest: str


@dataclass(frozen=True, slots=True)
class Ledger:
    """A file of one trainer; a line that a kill cut off counts as not written."""

    path: Path

    def append(self, item: int, address: str) -> None:
        """Write down that an item was published; its package's address ends with name and digest."""
        model, digest = address.rstrip("/").split("/")[-2:]
        line = json.dumps({"item": item, "model": model, "digest": f"sha256:{digest}"}).encode() + b"\n"
        descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            os.ftruncate(descriptor, self._whole_bytes())  # what a kill cut off
            os.lseek(descriptor, self._whole_bytes(), os.SEEK_SET)
            os.write(descriptor, line)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def read(self) -> list[Trained]:
        """Return what was written down."""
        if not self.path.exists():
            return []
        whole = self.path.read_bytes()[: self._whole_bytes()]
        return [Trained(**json.loads(line)) for line in whole.splitlines()]

    def _whole_bytes(self) -> int:
        return self.path.read_bytes().rfind(b"\n") + 1 if self.path.exists() else 0
