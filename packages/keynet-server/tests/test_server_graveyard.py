"""Dead letters while RabbitMQ takes nothing from publishers: they wait with their reason, and nobody waits for them."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace

import pytest

from consuming import PATIENT_S, QUICK
from keynet_core import EventUndelivered
from keynet_server import _graveyard
from keynet_server._dead_letters import look
from keynet_server._graveyard import Graveyard
from keynet_server._verdict import Dead


@pytest.fixture
def events(publishing):
    published = publishing.publish()
    return [replace(published, run_id=f"run-{number}").to_event() for number in range(20)]


@pytest.fixture
def waiting(consume, deployer, publisher, send, events):
    """Have a message that can never be taken, and events behind it, wait for a consumer."""
    consume(deployer.receive).stop(timeout_s=PATIENT_S)  # it declares the queue
    send(b"[]", message_id="poison")
    for event in events[:3]:
        publisher.publish(event)


def letters_of(broker):
    return [(each.id, each.code, each.reason) for each in asyncio.run(look(broker)).letters]


def unacknowledged(rabbitmq, broker):
    told = rabbitmq.ctl("list_queues", "--vhost", broker.address.vhost, "name", "messages_unacknowledged")
    counts = dict(line.split("\t") for line in told.splitlines() if line.startswith(f"{broker.topic}.deployer\t"))
    return int(counts[f"{broker.topic}.deployer"])


OURS = ("poison", "event.invalid", "the event is no JSON object")


@pytest.fixture
def hurried(monkeypatch):
    """Make the patience with an answer short: an alarm lasts for many of them."""
    monkeypatch.setattr(_graveyard, "ANSWER_TIMEOUT_S", 2.0)


@pytest.mark.usefixtures("waiting", "hurried")
def test_under_an_alarm_events_are_taken_and_a_dead_letter_waits_with_its_reason(
    consume, rabbitmq, broker, publisher, deployer, events, eventually
):
    with rabbitmq.disk_alarm():
        consumer = consume(deployer.receive)
        eventually(lambda: consumer.status.taken == 3, PATIENT_S)
        eventually(lambda: consumer.status.trouble, PATIENT_S)
        assert "held until it can be laid aside" in consumer.status.trouble
        assert "its disk or its memory runs out" in consumer.status.trouble
        eventually(lambda: unacknowledged(rabbitmq, broker) == 1, PATIENT_S)  # what was taken is acknowledged
        assert (consumer.status.is_listening, consumer.status.buried) == (True, 0)
        time.sleep(3 * _graveyard.ANSWER_TIMEOUT_S)
        assert letters_of(broker) == []
    eventually(lambda: consumer.status.buried == 1, PATIENT_S)
    assert letters_of(broker) == [OURS]
    assert consumer.status.trouble is None
    publisher.publish(events[3])
    eventually(lambda: deployer.journal.knows(events[3].id), PATIENT_S)
    consumer.stop(timeout_s=PATIENT_S)
    queues = asyncio.run(look(broker, limit=0))
    assert (queues.waiting, queues.dead) == (0, 1)


@pytest.mark.usefixtures("waiting")
def test_servers_that_end_under_an_alarm_lose_no_reason(consume, rabbitmq, broker, deployer, eventually):
    with rabbitmq.disk_alarm():
        for _ in range(3):
            consumer = consume(deployer.receive)
            eventually(lambda consumer=consumer: consumer.status.trouble, PATIENT_S)
            assert consumer.stop(timeout_s=PATIENT_S)
    consumer = consume(deployer.receive)
    eventually(lambda: consumer.status.buried == 1, PATIENT_S)
    assert set(letters_of(broker)) == {OURS}
    consumer.stop(timeout_s=PATIENT_S)
    assert asyncio.run(look(broker, limit=0)).waiting == 0


@pytest.mark.usefixtures("waiting")
def test_a_broker_that_is_killed_under_an_alarm_loses_no_reason(consume, rabbitmq, broker, deployer, eventually):
    with rabbitmq.disk_alarm():
        consumer = consume(deployer.receive)
        eventually(lambda: consumer.status.trouble, PATIENT_S)
        rabbitmq.kill()
    rabbitmq.start()
    eventually(lambda: consumer.status.buried, 2 * PATIENT_S)
    assert set(letters_of(broker)) == {OURS}


def test_many_dead_letters_at_once_are_all_laid_aside_and_the_event_among_them_is_taken(
    consume, publisher, send, deployer, broker, events, eventually
):
    consumer = consume(deployer.receive)
    for number in range(40):
        send(b"[]", message_id=f"poison-{number}")
    publisher.publish(events[0])
    eventually(lambda: deployer.journal.knows(events[0].id), PATIENT_S)
    eventually(lambda: consumer.status.buried == 40, PATIENT_S)
    assert sorted(each for each, *_ in letters_of(broker)) == sorted(f"poison-{number}" for number in range(40))
    consumer.stop(timeout_s=PATIENT_S)
    assert asyncio.run(look(broker, limit=0)).waiting == 0


def test_a_dead_letter_queue_that_was_deleted_is_declared_again(consume, broker, send, deployer, eventually):
    consumer = consume(deployer.receive)
    asyncio.run(delete_dead_queue(broker))
    send(b"[]", message_id="poison")
    eventually(lambda: consumer.status.buried == 1, PATIENT_S)
    assert letters_of(broker) == [OURS]


def test_what_nobody_foresaw_ends_the_burying_and_the_session_is_told(broker):
    async def bury_what_is_no_message():
        graveyard = Graveyard(broker, pauses=QUICK, on_buried=lambda _: None, on_trouble=lambda _: None)
        async with graveyard.opened(), asyncio.timeout(PATIENT_S):
            graveyard.take(object(), Dead(code="event.invalid", reason="told"))
            while True:
                graveyard.require()
                await asyncio.sleep(0.01)

    with pytest.raises(AttributeError):
        asyncio.run(bury_what_is_no_message())


async def delete_dead_queue(broker):
    async with broker.channel() as channel:
        await channel.queue_delete(f"{broker.topic}.deployer.dead")


def test_under_an_alarm_a_publisher_is_told(rabbitmq, consume, publisher, deployer, events):
    consume(deployer.receive)
    hurried = replace(publisher, blocked_timeout_s=1.0, answer_timeout_s=30.0)
    with rabbitmq.disk_alarm(), pytest.raises(EventUndelivered, match="takes nothing from publishers"):
        hurried.publish(events[0])
