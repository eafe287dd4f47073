"""Events to a real RabbitMQ: what arrives is a CloudEvent, and only what the broker confirmed counts."""

from __future__ import annotations

import json
import ssl
from dataclasses import replace

import pika
import pytest
from cloudevents.core.bindings.rabbitmq import RabbitMQMessage, from_rabbitmq_event

from keynet_core import (
    CONTENT_TYPE,
    Event,
    EventPublisher,
    EventUndelivered,
    RabbitAddress,
    RabbitPublisher,
    Secret,
    SettingsInvalid,
)
from proxies import Relay, make_certificate, to_tls

TOPIC = "keynet.models"


@pytest.fixture
def event(published):
    return published.to_event()


@pytest.fixture
def url(rabbitmq):
    return rabbitmq.vhost()


def to_publisher(url, **more):
    return RabbitPublisher(address=RabbitAddress.from_url(Secret(url)), topic=TOPIC, **more)


class Queue:
    """A queue for the topic, and what is in it."""

    def __init__(self, url, **arguments):
        self.connection = pika.BlockingConnection(pika.URLParameters(url))
        self.channel = self.connection.channel()
        self.channel.exchange_declare(TOPIC, "topic", durable=True)
        self.channel.queue_declare("q", durable=True, arguments={"x-queue-type": "quorum"} | arguments)
        self.channel.queue_bind("q", TOPIC, TOPIC)

    def take(self):
        """Return (properties, body) of the oldest message, or None."""
        method, properties, body = self.channel.basic_get("q", auto_ack=True)
        return (properties, body) if method else None

    def take_all(self):
        found = []
        while (message := self.take()) is not None:
            found.append(message)
        return found


@pytest.fixture
def queue(url):
    queue = Queue(url)
    yield queue
    if queue.connection.is_open:
        queue.connection.close()


def test_what_arrives_is_read_by_the_cloudevents_sdk(url, queue, event):
    to_publisher(url).publish(event)
    properties, body = queue.take()
    headers = properties.headers or {}
    theirs = from_rabbitmq_event(RabbitMQMessage(headers=headers, content_type=properties.content_type, body=body))
    assert (theirs.get_id(), theirs.get_source(), theirs.get_type()) == (event.id, event.source, event.type)
    assert (theirs.get_subject(), theirs.get_time(), theirs.get_data()) == ("mnist", event.time, event.data)
    assert Event.from_json(body) == event


def test_the_message_is_persistent_and_says_what_it_is(url, queue, event):
    to_publisher(url).publish(event)
    properties, _ = queue.take()
    assert (properties.content_type, properties.delivery_mode) == (CONTENT_TYPE, 2)
    assert (properties.message_id, properties.type, properties.app_id) == (event.id, event.type, "keynet")


def test_an_id_that_amqp_cannot_carry_is_whole_in_the_body(url, queue, event):
    long = replace(event, id="한" * 100)
    to_publisher(url).publish(long)
    properties, body = queue.take()
    assert properties.message_id is None
    assert Event.from_json(body).id == long.id


def test_an_event_of_the_greatest_size_arrives_whole(url, queue, event):
    large = replace(event, data=event.data | {"notes": "x" * 250_000})
    to_publisher(url).publish(large)
    assert Event.from_json(queue.take()[1]) == large


def test_the_same_event_twice_is_two_messages_of_one_id(url, queue, event):
    publisher = to_publisher(url)
    publisher.publish(event)
    publisher.publish(event)
    assert [properties.message_id for properties, _ in queue.take_all()] == [event.id, event.id]


def test_many_events_share_one_connection_and_none_is_kept(rabbitmq, url, queue, event):
    port = RabbitAddress.from_url(Secret(url)).port
    with Relay(port) as relay:
        publisher = to_publisher(url.replace(f":{port}", f":{relay.port}"))
        with publisher.opened() as link:
            for number in range(20):
                link.publish(replace(event, id=str(number)))
        assert relay.count == 1
        publisher.publish(event)
        assert relay.count == 2
    assert [json.loads(body)["id"] for _, body in queue.take_all()] == [*map(str, range(20)), event.id]


def test_a_block_without_events_does_not_connect(event):
    with to_publisher("amqp://127.0.0.1:9").opened() as link:
        assert link is not None


def test_a_connection_that_died_between_two_events_is_made_again(url, queue, event):
    port = RabbitAddress.from_url(Secret(url)).port
    with Relay(port) as relay, to_publisher(url.replace(f":{port}", f":{relay.port}")).opened() as link:
        link.publish(event)
        relay.drop()
        link.publish(replace(event, id="second"))
        assert relay.count == 2
    assert [json.loads(body)["id"] for _, body in queue.take_all()] == [event.id, "second"]


def test_a_block_in_a_block_shares_the_connection(url, queue, event):
    with to_publisher(url).opened() as link, link.opened() as inner:
        inner.publish(event)
        assert inner is link
    assert len(queue.take_all()) == 1


def test_an_event_that_no_queue_takes_comes_back(url, event):
    with pytest.raises(EventUndelivered, match=f"no queue for events of {TOPIC}") as caught:
        to_publisher(url).publish(event)
    assert "keynet server" in caught.value.hint


def test_after_an_event_that_came_back_the_next_is_tried(url, event):
    with to_publisher(url).opened() as link:
        with pytest.raises(EventUndelivered, match="no queue"):
            link.publish(event)
        queue = Queue(url)
        link.publish(event)
        assert len(queue.take_all()) == 1
        queue.connection.close()


def test_an_event_that_a_full_queue_refuses_waits(url, event):
    queue = Queue(url, **{"x-max-length": 1, "x-overflow": "reject-publish"})
    publisher, refusal = to_publisher(url), None
    for number in range(10):
        try:
            publisher.publish(replace(event, id=str(number)))
        except EventUndelivered as error:
            refusal = error
            break
    assert "is full" in refusal.message
    assert [json.loads(body)["id"] for _, body in queue.take_all()] == [*map(str, range(number))]
    queue.connection.close()


def test_a_broker_that_has_another_exchange_of_the_name_is_a_matter_of_settings(url, event):
    with pika.BlockingConnection(pika.URLParameters(url)) as connection:
        connection.channel().exchange_declare(TOPIC, "direct", durable=True)
    with pytest.raises(SettingsInvalid, match=r"another exchange 'keynet\.models'.*'type'") as caught:
        to_publisher(url).publish(event)
    assert "RABBIT_MODEL_UPLOAD_TOPIC" in caught.value.hint


@pytest.fixture
def as_writer(rabbitmq, url):
    """Return a function that gives the URL of a user with these permissions: configure, write, read."""
    vhost = RabbitAddress.from_url(Secret(url)).vhost
    name = f"writer-{vhost}"

    def grant(*permissions):
        rabbitmq.ctl("add_user", name, "writes")
        rabbitmq.ctl("set_permissions", "-p", vhost, name, *permissions)
        return url.replace("keynet:keynet-tests", f"{name}:writes")

    yield grant
    rabbitmq.ctl("delete_user", name)


def test_who_may_write_and_not_declare_publishes(as_writer, queue, event):
    to_publisher(as_writer("", ".*", "")).publish(event)
    assert len(queue.take_all()) == 1


def test_who_may_not_write_is_told_so(as_writer, queue, event):
    with pytest.raises(SettingsInvalid, match=r"does not let the user 'writer-.*' write to the exchange"):
        to_publisher(as_writer(".*", "", "")).publish(event)


def test_events_go_through_tls(url, queue, event, tmp_path):
    certificate = make_certificate(tmp_path)
    address = RabbitAddress.from_url(Secret(url))
    with Relay(address.port, context=to_tls(certificate)) as relay:
        secured = url.replace("amqp:", "amqps:").replace(f":{address.port}", f":{relay.port}")
        with pytest.raises(EventUndelivered, match=r"certificate of RabbitMQ .* is not believed") as caught:
            to_publisher(secured).publish(event)
        assert "cacertfile" in caught.value.hint
        to_publisher(f"{secured}?cacertfile={certificate}").publish(event)
    assert len(queue.take_all()) == 1
    assert ssl.create_default_context().verify_mode == ssl.CERT_REQUIRED


def test_it_is_an_event_publisher(url):
    publisher: EventPublisher = to_publisher(url)
    assert publisher.opened is not None
