"""A client that asks every model all the time, and writes down each answer that no whole model gives."""

from __future__ import annotations

import http.client
import json
import threading
from collections import Counter
from dataclasses import dataclass, field

from chaos.plan import Plan, factor_of

PAUSE_S = 0.01
X = 3.0
REQUEST = json.dumps({"inputs": [{"name": "x", "shape": [1], "datatype": "FP32", "data": [X]}]})


@dataclass(slots=True, kw_only=True)
class Seen:
    """What the watcher met; read it after `stop`."""

    answers: int = 0
    refusals: Counter[str] = field(default_factory=Counter)
    """Errors while the engine was away, or before a model was first served."""
    gaps: Counter[str] = field(default_factory=Counter)
    """Errors of a model that had answered, and whose engine was not touched."""
    violations: list[str] = field(default_factory=list)
    """Answers that no item gives."""


class Watcher:
    """
    Asks each model in turn, from a thread of its own.

    `engine_is_away` is told before the engine is killed: from then on every model may be missing until it has answered
    again.
    """

    def __init__(self, plan: Plan, address: tuple[str, int]) -> None:
        self.seen = Seen()
        self._plan = plan
        self._address = address
        self._served: set[str] = set()
        self._stopping = threading.Event()
        self._changing = threading.Lock()
        self._generation = 0
        self._factors = {
            name: {factor_of(item) for item in range(plan.publications) if plan.model_of(item) == name}
            for name in plan.models()
        }
        self._thread = threading.Thread(target=self._watch, name="watcher", daemon=True)

    def start(self) -> None:
        """Begin to ask."""
        self._thread.start()

    def engine_is_away(self) -> None:
        """Expect nothing of a model until it answers again."""
        with self._changing:
            self._generation += 1
            self._served.clear()

    def stop(self) -> Seen:
        """End, and return what was met."""
        self._stopping.set()
        self._thread.join(60)
        return self.seen

    def _watch(self) -> None:
        while not self._stopping.is_set():
            for name in self._factors:
                self._ask(name)
                self._stopping.wait(PAUSE_S)

    def _ask(self, name: str) -> None:
        generation = self._generation
        connection = http.client.HTTPConnection(*self._address, timeout=30)
        try:
            connection.request("POST", f"/v2/models/{name}/infer", REQUEST, {"Content-Type": "application/json"})
            response = connection.getresponse()
            status, body = response.status, response.read()
        except (OSError, http.client.HTTPException) as error:
            status, body = 0, f"{type(error).__name__}".encode()
        finally:
            connection.close()
        with self._changing:
            self._judge(name, status, body, is_same=generation == self._generation)

    def _judge(self, name: str, status: int, body: bytes, *, is_same: bool) -> None:
        if status == 200:
            self.seen.answers += 1
            trouble = self._is_not_whole(name, body)
            if trouble is not None:
                self.seen.violations.append(trouble)
            elif is_same:
                self._served.add(name)
            return
        told = f"{status} {body[:120].decode(errors='replace')}".replace(name, "<model>")
        counts = self.seen.gaps if is_same and name in self._served else self.seen.refusals
        counts[told] += 1

    def _is_not_whole(self, name: str, body: bytes) -> str | None:
        """Return why an answer is none of a whole model, or None."""
        try:
            told = {each["name"]: each["data"] for each in json.loads(body)["outputs"]}
            (product,), (total,) = told["product"], told["sum"]
        except (ValueError, KeyError, TypeError) as error:
            return f"{name} gave an answer that cannot be read: {error!r}: {body[:120]!r}"
        if total - X not in self._factors[name] or product != X * (total - X):
            return f"{name} answered product {product} and sum {total}, which no item of it gives"
        return None
