"""Shared memory and a server that was started again while several threads ask it: none of them is told."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

import numpy as np

from keynet_inference._client import ServerTold
from keynet_inference._deadlines import Deadline
from keynet_inference._errors import InferenceFailed
from keynet_inference._sharing import MIN_BYTES, SharingClient

if TYPE_CHECKING:
    from collections.abc import Callable

    import pytest

INPUTS = {"x": np.zeros(MIN_BYTES, np.uint8)}
WAIT_S = 30.0


class Server:
    """A RegionServer: it knows the regions it was told of since it was started, and says so in Triton's words."""

    def __init__(self) -> None:
        self.known: set[str] = set()
        self.before: Callable[[], object] = lambda: None

    def describe_server(self, _deadline: Deadline) -> ServerTold:
        return ServerTold("2.51.0", frozenset({"system_shared_memory"}))

    def register_region(self, name: str, _size_bytes: int, _deadline: Deadline) -> None:
        self.known.add(name)

    def unregister_region(self, name: str, _deadline: Deadline) -> None:
        self.known.discard(name)

    def region_names(self, _deadline: Deadline) -> tuple[str, ...]:
        return tuple(self.known)

    def infer(self, _model: object, _inputs: object, _deadline: Deadline, shared: dict[str, Any]) -> dict[str, Any]:
        self.before()
        for each in shared.values():
            if each.region not in self.known:
                raise InferenceFailed(f"Unable to find shared memory region: '{each.region}'")
        return {}

    def close(self) -> None:
        pass


def test_a_region_given_back_late_is_not_taken_for_one_the_new_server_knows(monkeypatch: pytest.MonkeyPatch) -> None:
    server: Any = Server()
    client = SharingClient(server, "http://127.0.0.1:1")
    model: Any = None
    first_dropped, second_asked, second_gave_back, first_ended = (threading.Event() for _ in range(4))
    answers: dict[str, object] = {}
    drop_idle = client._regions.drop_idle

    def drop() -> None:
        if is_second():
            second_gave_back.set()
            first_ended.wait(WAIT_S)
        drop_idle()
        if not is_second():
            first_dropped.set()
            second_gave_back.wait(WAIT_S)

    def before() -> None:
        if is_second():
            second_asked.set()
            first_dropped.wait(WAIT_S)

    def ask() -> None:
        name = threading.current_thread().name
        try:
            answers[name] = client.infer(model, INPUTS, Deadline(WAIT_S))
        except InferenceFailed as error:
            answers[name] = error

    monkeypatch.setattr(client._regions, "drop_idle", drop)
    both = threading.Barrier(2)
    server.before = lambda: both.wait(WAIT_S)
    run([threading.Thread(target=ask) for _ in range(2)])  # two regions, since both ask at once
    answers.clear()
    server.known.clear()
    server.before = before

    second = threading.Thread(target=ask, name="second")
    second.start()
    assert second_asked.wait(WAIT_S)
    run([threading.Thread(target=ask, name="first")])
    first_ended.set()
    second.join()
    client.close()

    assert answers == {"first": {}, "second": {}}


def is_second() -> bool:
    return threading.current_thread().name == "second"


def run(threads: list[threading.Thread]) -> None:
    for each in threads:
        each.start()
    for each in threads:
        each.join()
