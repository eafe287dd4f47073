"""Dead letters while RabbitMQ takes nothing from publishers: they wait with their reason, and nobody waits for them."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from dataclasses import replace

import pytest

from consuming import PATIENT_S, QUICK
from keynet_core import EventUndelivered
from keynet_server import _graveyard
from keynet_server._consumer import PREFETCH
from keynet_server._dead_letters import look
from keynet_server._errors import JournalUnavailable
from keynet_server._graveyard import Graveyard
from keynet_server._verdict import Dead
from proxies import Relay


@pytest.fixture
def events(publishing):
    published = publishing.publish()
    return [replace(published, run_id=f"run-{number}").to_event() for number in range(20)]


@pytest.fixture
def waiting(queue_up, events):
    queue_up(["poison"], events[:3])


@pytest.fixture
def queue_up(consume, deployer, publisher, send):
    """Return a function that has messages which can never be taken, and events behind them, wait for a consumer."""

    def queue_up(names, behind):
        consume(deployer.receive).stop(timeout_s=PATIENT_S)  # it declares the queue
        for name in names:
            send(b"[]", message_id=name)
        for event in behind:
            publisher.publish(event)

    return queue_up


def letters_of(broker):
    return [(each.id, each.code, each.reason) for each in asyncio.run(look(broker)).letters]


def unacknowledged(rabbitmq, broker):
    told = rabbitmq.ctl("list_queues", "--vhost", broker.address.vhost, "name", "messages_unacknowledged")
    counts = dict(line.split("\t") for line in told.splitlines() if line.startswith(f"{broker.topic}.deployer\t"))
    return int(counts[f"{broker.topic}.deployer"])


NO_MORE = "no events come from RabbitMQ: broker.refused: "
OURS = ("poison", "event.invalid", "the event is no JSON object")


@pytest.fixture
def hurried(monkeypatch):
    """Make the patience with a confirmation short: an alarm lasts for more than one of them."""
    monkeypatch.setattr(_graveyard, "CONFIRM_TIMEOUT_S", 5.0)


def holds_for_alarm(consumer):
    trouble = consumer.status.trouble or ""
    return "held until it can be laid aside" in trouble and "its disk or its memory runs out" in trouble


@pytest.mark.usefixtures("waiting", "hurried")
def test_under_an_alarm_events_are_taken_and_a_dead_letter_waits_with_its_reason(
    consume, rabbitmq, broker, publisher, deployer, events, eventually
):
    with rabbitmq.disk_alarm():
        consumer = consume(deployer.receive)
        eventually(lambda: consumer.status.taken == 3, PATIENT_S)
        eventually(lambda: holds_for_alarm(consumer), PATIENT_S)
        eventually(lambda: unacknowledged(rabbitmq, broker) == 1, PATIENT_S)  # what was taken is acknowledged
        time.sleep(1.5 * _graveyard.CONFIRM_TIMEOUT_S)
        assert consumer.status.buried == 0
        assert letters_of(broker) == []
    eventually(lambda: consumer.status.buried, PATIENT_S)
    assert set(letters_of(broker)) == {OURS}
    eventually(lambda: consumer.status.trouble is None, PATIENT_S)
    publisher.publish(events[3])
    eventually(lambda: deployer.journal.knows(events[3].id), PATIENT_S)
    consumer.stop(timeout_s=PATIENT_S)
    assert asyncio.run(look(broker, limit=0)).waiting == 0


def test_under_an_alarm_events_are_taken_behind_more_dead_letters_than_are_delivered_at_a_time(
    consume, rabbitmq, broker, queue_up, deployer, events, eventually
):
    names = [f"poison-{number}" for number in range(2 * PREFETCH + 3)]
    queue_up(names, events)
    with rabbitmq.disk_alarm():
        consumer = consume(deployer.receive)
        eventually(lambda: consumer.status.taken == len(events), PATIENT_S)
        assert [each.id for each in deployer.journal.unfinished()] == [event.id for event in events]
        eventually(lambda: unacknowledged(rabbitmq, broker) == len(names), PATIENT_S)
    eventually(lambda: {each for each, *_ in letters_of(broker)} == set(names), PATIENT_S)
    consumer.stop(timeout_s=PATIENT_S)
    assert asyncio.run(look(broker, limit=0)).waiting == 0


@pytest.mark.usefixtures("waiting")
def test_under_an_alarm_events_behind_a_dead_letter_are_taken_also_after_a_session_that_broke(
    consume, rabbitmq, broker, deployer, events, eventually
):
    asked, is_back = threading.Event(), threading.Event()

    def receive(event):
        asked.set()
        if not is_back.is_set():
            raise JournalUnavailable("the journal is away")
        return deployer.receive(event)

    with Relay(broker.address.port) as relay, rabbitmq.disk_alarm():
        consumer = consume(receive, of=replace(broker, address=replace(broker.address, port=relay.port)))
        assert asked.wait(PATIENT_S)  # the dead letter before it is held
        relay.drop()
        is_back.set()
        eventually(lambda: all(deployer.journal.knows(event.id) for event in events[:3]), PATIENT_S)
        eventually(lambda: holds_for_alarm(consumer), PATIENT_S)
        consumer.stop(timeout_s=PATIENT_S)


@pytest.fixture
def room(queue_up, events, monkeypatch):
    """Have as many dead letters wait as there is room for, and an event behind them; return how many."""
    room = 2 * PREFETCH
    monkeypatch.setattr(_graveyard, "MAX_HELD", room)
    queue_up([f"poison-{number}" for number in range(room)], events[:1])
    return room


def test_no_more_dead_letters_are_held_than_there_is_room_for(
    consume, rabbitmq, broker, deployer, events, eventually, room
):
    with rabbitmq.disk_alarm():
        consumer = consume(deployer.receive)
        eventually(lambda: unacknowledged(rabbitmq, broker) == room, PATIENT_S)
        time.sleep(5 * QUICK.look_s)
        assert not deployer.journal.knows(events[0].id)
    eventually(lambda: deployer.journal.knows(events[0].id), PATIENT_S)
    eventually(lambda: unacknowledged(rabbitmq, broker) == 0, PATIENT_S)
    consumer.stop(timeout_s=PATIENT_S)


@pytest.mark.usefixtures("waiting")
def test_without_permission_to_lay_it_aside_a_message_leaves_its_queue_by_the_broker_itself(
    consume, rabbitmq, broker, deployer, events, eventually, caplog
):
    elsewhere = r"^(?!keynet\.models\.dlx$).*"
    rabbitmq.ctl("set_permissions", "-p", broker.address.vhost, broker.address.user, ".*", elsewhere, ".*")
    consume(deployer.receive)
    eventually(lambda: asyncio.run(look(broker, limit=0)).dead, 2 * PATIENT_S)
    eventually(lambda: all(deployer.journal.knows(event.id) for event in events[:3]), PATIENT_S)
    assert {each for each, *_ in letters_of(broker)} == {"poison"}
    assert any(NO_MORE in text and "keynet.models.dlx" in text for text in caplog.messages)


@pytest.fixture
def turned_down(rabbitmq, broker, queue_up, events):
    """Have a message that can never be taken, which the queue of dead letters has no room for, and an event wait."""
    full = json.dumps({"max-length": 0, "overflow": "reject-publish"})
    queue_up([], [])
    rabbitmq.ctl("set_policy", "-p", broker.address.vhost, "full", r"\.dead$", full, "--apply-to", "queues")
    queue_up(["first", "second"], events[:1])  # the first one still finds room
    return events[0]


def test_what_the_broker_turns_down_again_and_again_ends_the_session_and_the_event_behind_it_is_taken(
    consume, deployer, eventually, turned_down, caplog
):
    def is_told():
        return any(NO_MORE in text and "takes no dead letter into" in text for text in caplog.messages)

    consume(deployer.receive)
    eventually(is_told, 2 * PATIENT_S)
    eventually(lambda: deployer.journal.knows(turned_down.id), PATIENT_S)


@pytest.mark.usefixtures("waiting")
def test_servers_that_end_under_an_alarm_lose_no_reason(consume, rabbitmq, broker, deployer, eventually):
    with rabbitmq.disk_alarm():
        for _ in range(3):
            consumer = consume(deployer.receive)
            eventually(lambda consumer=consumer: consumer.status.trouble, PATIENT_S)
            assert consumer.stop(timeout_s=PATIENT_S)
    consumer = consume(deployer.receive)
    eventually(lambda: consumer.status.buried, PATIENT_S)
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
    names = {f"poison-{number}" for number in range(40)}
    eventually(lambda: {each for each, *_ in letters_of(broker)} == names, PATIENT_S)
    consumer.stop(timeout_s=PATIENT_S)
    assert asyncio.run(look(broker, limit=0)).waiting == 0


def test_a_dead_letter_queue_that_was_deleted_is_declared_again(consume, broker, send, deployer, eventually):
    consumer = consume(deployer.receive)
    asyncio.run(delete_dead_queue(broker))
    send(b"[]", message_id="poison")
    eventually(lambda: consumer.status.buried, PATIENT_S)
    assert set(letters_of(broker)) == {OURS}


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
