"""What one version has done: counts and durations, as Triton's statistics and metrics tell them."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from typing import Any


@dataclass(slots=True)
class Duration:
    """How often something happened and how long it took altogether."""

    count: int = 0
    ns: int = 0

    def add(self, ns: int, count: int = 1) -> None:
        """Count one more."""
        self.count += count
        self.ns += ns

    def to_dict(self) -> dict[str, int]:
        """Return plain values."""
        return {"count": self.count, "ns": self.ns}


_PARTS = ("success", "fail", "queue", "compute_input", "compute_infer", "compute_output")
_NONE = {"count": 0, "ns": 0}


class Statistics:
    """The counters of one served version; safe to use from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._parts = {part: Duration() for part in _PARTS}
        self._batches: dict[int, Duration] = {}
        self._failures = {"REJECTED": 0, "CANCELED": 0, "BACKEND": 0, "OTHER": 0}
        self._inferences = 0
        self._executions = 0
        self._last_ms = 0

    def add_success(self, *, total_ns: int, queue_ns: int, infer_ns: int, rows: int) -> None:
        """Count one answered request of so many rows."""
        with self._lock:
            self._succeed(total_ns, queue_ns, infer_ns, rows)

    def add_alone(self, *, total_ns: int, infer_ns: int, rows: int) -> None:
        """Count one answered request that was one run of the session."""
        with self._lock:
            self._succeed(total_ns, 0, infer_ns, rows)
            self._execute(rows, infer_ns)

    def _succeed(self, total_ns: int, queue_ns: int, infer_ns: int, rows: int) -> None:
        parts = self._parts
        parts["success"].add(total_ns)
        parts["queue"].add(queue_ns)
        parts["compute_input"].add(max(0, total_ns - queue_ns - infer_ns))
        parts["compute_infer"].add(infer_ns)
        parts["compute_output"].add(0)
        self._inferences += rows
        self._last_ms = time.time_ns() // 1_000_000

    def add_failure(self, reason: str, ns: int) -> None:
        """Count one request that was accepted and not answered."""
        with self._lock:
            self._parts["fail"].add(ns)
            self._failures[reason] += 1

    def add_execution(self, rows: int, ns: int) -> None:
        """Count one run of the session."""
        with self._lock:
            self._execute(rows, ns)

    def _execute(self, rows: int, ns: int) -> None:
        self._executions += 1
        durations = self._batches.get(rows)
        if durations is None:
            durations = self._batches[rows] = Duration()
        durations.add(ns)

    def to_dict(self) -> dict[str, Any]:
        """Return what `/stats` tells, without name and version."""
        with self._lock:
            parts = {part: duration.to_dict() for part, duration in self._parts.items()}
            return {
                "last_inference": self._last_ms,
                "inference_count": self._inferences,
                "execution_count": self._executions,
                "inference_stats": parts | {"cache_hit": dict(_NONE), "cache_miss": dict(_NONE)},
                "response_stats": {},
                "batch_stats": [_batch(rows, self._batches[rows]) for rows in sorted(self._batches)],
                "memory_usage": [],
            }

    def failures(self) -> dict[str, int]:
        """Return the failures by reason."""
        with self._lock:
            return dict(self._failures)


def _batch(rows: int, infer: Duration) -> dict[str, Any]:
    other = {"count": infer.count, "ns": 0}
    return {
        "batch_size": rows,
        "compute_input": other,
        "compute_infer": infer.to_dict(),
        "compute_output": dict(other),
    }
