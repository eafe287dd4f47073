"""What an EventPublisher promises, over HTTP and over RabbitMQ, with the real server behind both."""

from __future__ import annotations

import asyncio
import socket
from dataclasses import dataclass, replace

import pytest

from consuming import PATIENT_S, TOKEN
from keynet_core import (
    Event,
    EventRefused,
    EventUndelivered,
    HttpPublisher,
    KeynetError,
    Outbox,
    Secret,
    publish_entry,
)
from keynet_server._dead_letters import look


@dataclass
class Route:
    """A way to one server: who publishes, the same with a wrong secret, and the same to nobody."""

    publisher: object
    wrong: object
    away: object
    broker: object = None


@pytest.fixture(params=["http", "rabbitmq"])
def way(request):
    return request.param


@pytest.fixture
def route(way, request, to_services, serve):
    with socket.create_server(("127.0.0.1", 0)) as free:
        nobody = free.getsockname()[1]
    if way == "http":
        right = HttpPublisher(url=serve(to_services()), token=Secret(TOKEN), timeout_s=PATIENT_S)
        return Route(
            publisher=right,
            wrong=replace(right, token=Secret("hunter2")),
            away=replace(right, url=f"http://127.0.0.1:{nobody}"),
        )
    broker, right = request.getfixturevalue("broker"), request.getfixturevalue("publisher")
    serve(to_services(broker))
    return Route(
        publisher=right,
        wrong=replace(right, address=replace(right.address, password=Secret("hunter2"))),
        away=replace(right, address=replace(right.address, port=nobody)),
        broker=broker,
    )


@pytest.fixture
def outcome_of(journal, eventually):
    """Return a function that waits for what became of an event."""

    def outcome_of(event):
        return eventually(lambda: journal.knows(event.id) and journal.event(event.id).outcome, PATIENT_S)

    return outcome_of


def test_an_event_becomes_a_deployment(route, publishing, outcome_of, engine):
    event = publishing.publish("times", 2.0).to_event()
    route.publisher.publish(event)
    assert outcome_of(event) == "deployed"
    assert engine.factor() == 2.0


def test_the_same_event_twice_is_one_row_and_one_deployment(route, publishing, outcome_of, journal):
    event = publishing.publish("times", 2.0).to_event()
    last = publishing.publish("other", 3.0).to_event()
    with route.publisher.opened() as link:
        for _ in range(5):
            link.publish(event)
        link.publish(last)
    route.publisher.publish(event)
    assert (outcome_of(event), outcome_of(last)) == ("deployed", "deployed")
    assert [each.number for each in journal.history("times")] == [1]
    assert len(journal.newest_events(limit=10)) == 2


def test_what_was_sent_is_what_was_received(route, publishing, outcome_of, journal):
    event = publishing.publish("times", 2.0, version="7", run_id="런-1").to_event()
    route.publisher.publish(event)
    outcome_of(event)
    assert Event.from_json(journal.event(event.id).body.encode()) == event


def test_an_event_nobody_acts_on_is_refused_with_its_reason(route, journal, eventually):
    """Over HTTP the publisher is told; a broker takes it, and it lands among the dead letters."""
    event = Event(id="1", source="/", type="io.keynet.unheard.of", data={})
    if route.broker is None:
        with pytest.raises(EventRefused, match="nothing here acts on"):
            route.publisher.publish(event)
    else:
        route.publisher.publish(event)
        (letter,) = eventually(lambda: asyncio.run(look(route.broker)).letters, PATIENT_S)
        assert (letter.id, letter.code) == ("1", "event.refused")
        assert "nothing here acts on" in letter.reason
    assert journal.newest_events(limit=1) == []


def test_a_receiver_that_is_away_leaves_the_event_with_the_publisher(route, publishing, journal):
    with pytest.raises(EventUndelivered, match="does not answer") as caught:
        route.away.publish(publishing.publish().to_event())
    assert caught.value.hint
    assert journal.newest_events(limit=1) == []


def test_a_wrong_secret_leaves_the_event_with_the_publisher_and_is_not_shown(route, publishing, journal):
    with pytest.raises(KeynetError) as caught:
        route.wrong.publish(publishing.publish().to_event())
    assert not isinstance(caught.value, EventRefused)
    assert caught.value.hint
    assert "hunter2" not in f"{caught.value} {route.wrong!r}"
    assert journal.newest_events(limit=1) == []


def test_an_outbox_is_handed_over_on_one_connection(route, publishing, tmp_path, journal, eventually):
    outbox = Outbox(tmp_path / "spool")
    events = [replace(publishing.publish(), run_id=f"run-{number}").to_event() for number in range(20)]
    for event in events:
        outbox.add(event)
    with route.publisher.opened() as link:
        report = outbox.flush(lambda entry: publish_entry(entry, publishing.store, link, lambda _address: None))
    assert [event.id for event in report.delivered] == [event.id for event in events]
    eventually(lambda: len(journal.newest_events(limit=100)) == 20, PATIENT_S)
    assert outbox.entries("ready") == []
