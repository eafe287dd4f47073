"""Events out of a real RabbitMQ into the journal, and what can never be taken into the dead-letter queue."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace

import pika
import pytest

from consuming import PATIENT_S
from keynet_core import CONTENT_TYPE, MAX_EVENT_BYTES, Event
from keynet_server._consumer import PREFETCH
from keynet_server._dead_letters import look, replay
from keynet_server._topology import MAX_DELIVERIES, Topology


def queues_of(broker, limit=100):
    return asyncio.run(look(broker, limit=limit))


def counts_of(broker):
    queues = queues_of(broker, limit=0)
    return queues.waiting, queues.dead


def test_an_event_of_the_broker_is_written_into_the_journal_and_wakes_the_worker(
    consume, deployer, publishing, publisher, eventually
):
    woken = []
    consumer = consume(deployer.receive, on_taken=lambda: woken.append(1))
    event = publishing.publish("times", version="7").to_event()
    publisher.publish(event)
    eventually(lambda: woken, PATIENT_S)
    received = deployer.journal.event(event.id)
    assert (received.subject, received.outcome) == ("times", None)
    assert Event.from_json(received.body.encode()) == event
    eventually(lambda: consumer.status.taken == 1, PATIENT_S)
    assert deployer.deploy(received) == "deployed"


def test_one_event_in_many_messages_is_one_row_and_none_is_left_in_the_queue(
    consume, deployer, publishing, publisher, broker, eventually
):
    woken = []
    consumer = consume(deployer.receive, on_taken=lambda: woken.append(1))
    event = publishing.publish().to_event()
    with publisher.opened() as link:
        for _ in range(20):
            link.publish(event)
        last = publishing.publish("times", 3.0).to_event()
        link.publish(last)
    eventually(lambda: deployer.journal.knows(last.id), PATIENT_S)
    assert [each.id for each in deployer.journal.unfinished()] == [event.id, last.id]
    eventually(lambda: consumer.status.taken == 2, PATIENT_S)
    assert len(woken) == 2
    consumer.stop(timeout_s=PATIENT_S)
    assert counts_of(broker) == (0, 0)


def to_body(event):
    return event.to_json()


def without(event, name):
    told = json.loads(event.to_json())
    del told[name]
    return json.dumps(told).encode()


POISON = {
    "nothing": (lambda event: b"", "event.invalid", "no JSON"),
    "no JSON": (lambda event: b"\xff\xfe{", "event.invalid", "no JSON"),
    "a list": (lambda event: b"[]", "event.invalid", "no JSON object"),
    "another version of CloudEvents": (lambda event: b'{"specversion":"0.3"}', "event.invalid", "specversion"),
    "no id": (lambda event: without(event, "id"), "event.invalid", "'id'"),
    "another type": (lambda event: to_body(replace(event, type="other")), "event.refused", "other"),
    "a bad digest": (
        lambda event: to_body(replace(event, data=event.data | {"digest": "x"})),
        "event.invalid",
        "no digest",
    ),
    "a bad name": (
        lambda event: to_body(replace(event, data=event.data | {"model": "../x"})),
        "event.invalid",
        "../x",
    ),
    "a package elsewhere": (
        lambda event: to_body(replace(event, data=event.data | {"digest": "sha256:" + "0" * 64})),
        "package.elsewhere",
        "not in this server's store",
    ),
    "too many bytes": (
        lambda event: to_body(event)[:-1] + b" " * MAX_EVENT_BYTES + b"}",
        "event.invalid",
        f"at most {MAX_EVENT_BYTES} bytes",
    ),
    "the predecessor's": (
        lambda event: b'{"train_id": "8c1f", "full_path": "s3://models/8c1f/model.onnx"}',
        "event.invalid",
        "'train_id' and 'full_path', and no CloudEvent",
    ),
}


@pytest.mark.parametrize("kind", POISON)
def test_what_can_never_be_taken_is_laid_aside_with_its_reason_and_the_next_is_taken(
    consume, deployer, publishing, publisher, send, eventually, kind
):
    spoil, code, reason = POISON[kind]
    event = publishing.publish().to_event()
    consumer = consume(deployer.receive)
    broker, body = consumer.broker, spoil(event)
    send(body, message_id="m-1", content_type="application/json", headers={"x-trace": "t"})
    publisher.publish(event)
    eventually(lambda: deployer.journal.knows(event.id), PATIENT_S)
    eventually(lambda: consumer.status.buried == 1, PATIENT_S)
    (letter,) = queues_of(broker).letters
    assert (letter.code, letter.size_bytes) == (code, len(body))
    assert reason in letter.reason
    assert letter.died_at is not None
    consumer.stop(timeout_s=PATIENT_S)
    assert counts_of(broker) == (0, 1)


def test_a_dead_letter_is_the_message_as_it_came_and_the_verdict_in_its_headers(
    consume, deployer, send, publisher, broker, eventually
):
    consumer = consume(deployer.receive)
    body = json.dumps({"train_id": "1", "full_path": "s3://b/model.onnx"}).encode()
    send(
        body,
        message_id="m-1",
        content_type=CONTENT_TYPE,
        app_id="old",
        user_id="keynet",  # would be refused when another user lays it aside
        expiration="60000",  # would let it vanish
        headers={"x-trace": "t", "x-keynet-reason": "forged"},
    )
    eventually(lambda: consumer.status.buried == 1, PATIENT_S)
    dead_queue = Topology(topic=broker.topic).dead_queue
    with pika.BlockingConnection(publisher.to_parameters()) as connection:
        _, properties, found = connection.channel().basic_get(dead_queue, auto_ack=True)
    assert found == body
    assert (properties.message_id, properties.content_type, properties.app_id) == ("m-1", CONTENT_TYPE, "old")
    assert (properties.delivery_mode, properties.expiration, properties.user_id) == (2, None, None)
    headers = {name: text for name, text in properties.headers.items() if name != "x-delivery-count"}
    assert headers.keys() == {"x-trace", "x-keynet-code", "x-keynet-reason", "x-keynet-hint", "x-keynet-time"}
    assert headers["x-keynet-code"] == "event.invalid"
    assert "earlier keynet-train" in headers["x-keynet-reason"]
    assert "log_onnx_model" in headers["x-keynet-hint"]


def test_a_message_with_great_headers_is_laid_aside_too(consume, deployer, send, broker, eventually):
    consumer = consume(deployer.receive)
    send(b"[]", headers={f"h{number}": "x" * 1000 for number in range(100)})
    eventually(lambda: consumer.status.buried == 1, PATIENT_S)
    assert queues_of(broker).letters[0].code == "event.invalid"


def test_an_error_nobody_foresaw_is_tried_again_and_then_laid_aside_with_its_words(
    consume, deployer, publishing, publisher, broker, eventually
):
    first, second = (publishing.publish("times", factor).to_event() for factor in (2.0, 3.0))
    asked = []

    def receive(event):
        if event.id == first.id:
            asked.append(event.id)
            return 1 // 0
        return deployer.receive(event)

    consumer = consume(receive)
    publisher.publish(first)
    publisher.publish(second)
    eventually(lambda: deployer.journal.knows(second.id), PATIENT_S)
    eventually(lambda: queues_of(broker).letters, PATIENT_S)
    (letter,) = queues_of(broker).letters
    assert (letter.id, letter.code, len(asked)) == (first.id, "server.internal", 3)
    assert "ZeroDivisionError" in letter.reason
    eventually(lambda: consumer.status.trouble is None, PATIENT_S)


def test_events_keep_their_order(consume, publisher, eventually):
    order = []
    consume(lambda event: order.append(event.id) is None)
    events = [Event(id=str(number), source="/", type="t", data={}) for number in range(200)]
    with publisher.opened() as link:
        for event in events:
            link.publish(event)
    eventually(lambda: len(order) >= 200, PATIENT_S)
    assert order == [event.id for event in events]


def test_a_thousand_events_are_taken_and_few_are_in_memory_at_a_time(
    consume, deployer, publishing, broker, publisher, eventually
):
    """Nothing is read ahead beyond the prefetch while the journal is slow; then all of them are taken."""
    import threading

    go, published = threading.Event(), publishing.publish()
    events = [replace(published, run_id=f"run-{number}").to_event() for number in range(1000)]
    consumer = consume(lambda event: go.wait(PATIENT_S) and deployer.receive(event))
    with publisher.opened() as link:
        for event in events:
            link.publish(event)
    eventually(lambda: queues_of(broker, limit=0).waiting == 1000 - PREFETCH, PATIENT_S)
    go.set()
    eventually(lambda: consumer.status.taken == 1000, 4 * PATIENT_S)
    assert [each.id for each in deployer.journal.unfinished()] == [event.id for event in events]


def test_two_consumers_share_one_queue_and_each_event_is_one_row(
    consume, deployer, publishing, broker, publisher, eventually
):
    published = publishing.publish()
    events = [replace(published, run_id=f"run-{number}").to_event() for number in range(200)]
    consumers = [consume(deployer.receive), consume(deployer.receive)]
    assert queues_of(broker).consumers == 2
    with publisher.opened() as link:
        for event in [*events, *events[::7]]:
            link.publish(event)
    eventually(lambda: sum(consumer.status.taken for consumer in consumers) == 200, PATIENT_S)
    assert {each.id for each in deployer.journal.unfinished()} == {event.id for event in events}
    assert all(consumer.status.taken > 0 for consumer in consumers)


def test_looking_at_dead_letters_many_times_removes_none_and_keeps_their_order(
    consume, deployer, publishing, send, broker, eventually
):
    consumer = consume(deployer.receive)
    for number in range(5):
        send(json.dumps({"id": f"e-{number}"}).encode())
    eventually(lambda: consumer.status.buried == 5, PATIENT_S)
    for _ in range(25):
        assert [letter.id for letter in queues_of(broker).letters] == [f"e-{number}" for number in range(5)]
    queues = queues_of(broker, limit=2)
    assert (queues.dead, [letter.id for letter in queues.letters]) == (5, ["e-0", "e-1"])


def test_a_message_that_no_server_survives_is_laid_aside_by_the_broker(
    consume, deployer, publishing, publisher, broker, eventually
):
    """Every delivery that ends without an answer counts; the twenty-first is the dead-letter queue's."""
    consume(deployer.receive).stop(timeout_s=PATIENT_S)
    event = publishing.publish().to_event()
    publisher.publish(event)
    with pika.BlockingConnection(publisher.to_parameters()) as connection:
        channel = connection.channel()
        for _, (method, _, _) in zip(
            range(MAX_DELIVERIES + 1), channel.consume(Topology(topic=broker.topic).queue), strict=False
        ):
            channel.basic_nack(method.delivery_tag, requeue=True)
    eventually(lambda: counts_of(broker) == (0, 1), PATIENT_S)
    (letter,) = queues_of(broker).letters
    assert (letter.id, letter.code) == (event.id, "message.undeliverable")
    assert "delivered more than 20 times" in letter.reason
    assert asyncio.run(replay(broker, event.id)) == 1
    consume(deployer.receive)
    eventually(lambda: deployer.journal.knows(event.id), PATIENT_S)


def test_while_the_broker_is_blocked_by_its_disk_events_are_taken_and_dead_letters_follow_later(
    consume, rabbitmq, deployer, publishing, publisher, send, eventually
):
    consume(deployer.receive).stop(timeout_s=PATIENT_S)
    event = publishing.publish().to_event()
    publisher.publish(event)
    send(b"[]")
    with rabbitmq.disk_alarm():
        consumer = consume(deployer.receive)
        eventually(lambda: deployer.journal.knows(event.id), PATIENT_S)
    eventually(lambda: consumer.status.buried == 1, PATIENT_S)
    assert queues_of(consumer.broker).dead == 1


def test_before_any_server_listened_there_is_nothing_to_look_at(broker):
    assert queues_of(broker).to_dict() == {
        "address": str(broker.address),
        "queue": "keynet.models.deployer",
        "dead_queue": "keynet.models.deployer.dead",
        "waiting": 0,
        "consumers": 0,
        "dead": 0,
        "letters": [],
        "is_declared": False,
    }
