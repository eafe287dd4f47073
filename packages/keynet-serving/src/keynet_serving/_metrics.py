"""Statistics as Prometheus reads them, under the names Triton gives them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from keynet_serving._model import ServedVersion

_US = 1000

_HELP = {
    "nv_inference_request_success": ("counter", "Number of successful inference requests, all batch sizes"),
    "nv_inference_request_failure": ("counter", "Number of failed inference requests, all batch sizes"),
    "nv_inference_count": ("counter", "Number of inferences performed (does not include cached requests)"),
    "nv_inference_exec_count": ("counter", "Number of model executions performed (does not include cached requests)"),
    "nv_inference_request_duration_us": ("counter", "Cumulative inference request duration in microseconds"),
    "nv_inference_queue_duration_us": ("counter", "Cumulative inference queuing duration in microseconds"),
    "nv_inference_compute_input_duration_us": ("counter", "Cumulative compute input duration in microseconds"),
    "nv_inference_compute_infer_duration_us": ("counter", "Cumulative compute inference duration in microseconds"),
    "nv_inference_compute_output_duration_us": ("counter", "Cumulative compute output duration in microseconds"),
    "nv_inference_pending_request_count": ("gauge", "Number of requests that are queued or running"),
}
_DURATIONS = {
    "nv_inference_request_duration_us": "success",
    "nv_inference_queue_duration_us": "queue",
    "nv_inference_compute_input_duration_us": "compute_input",
    "nv_inference_compute_infer_duration_us": "compute_infer",
    "nv_inference_compute_output_duration_us": "compute_output",
}


def to_prometheus(versions: Iterable[ServedVersion]) -> str:
    """Return the text of `/metrics`."""
    samples: dict[str, list[str]] = {name: [] for name in _HELP}
    for served in versions:
        for name, labels, value in _samples(served, served.statistics.to_dict()):
            samples[name].append(f"{name}{{{labels}}} {value}\n")
    parts = [
        f"# HELP {name} {text}\n# TYPE {name} {kind}\n{''.join(samples[name])}" for name, (kind, text) in _HELP.items()
    ]
    return "".join(parts)


def _samples(served: ServedVersion, told: dict[str, Any]) -> Iterator[tuple[str, str, int]]:
    model = f'model="{_escape(served.name)}"'
    labels = f'{model},version="{served.version}"'
    parts = told["inference_stats"]
    yield "nv_inference_request_success", labels, parts["success"]["count"]
    for reason, count in served.statistics.failures().items():
        yield "nv_inference_request_failure", f'{model},reason="{reason}",version="{served.version}"', count
    yield "nv_inference_count", labels, told["inference_count"]
    yield "nv_inference_exec_count", labels, told["execution_count"]
    for name, part in _DURATIONS.items():
        yield name, labels, parts[part]["ns"] // _US
    yield "nv_inference_pending_request_count", labels, served.pending


def _escape(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
