"""A consumer in trouble: broker, journal and connection come and go, and every event is taken once in the end."""

from __future__ import annotations

import asyncio
import logging
import signal
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import pika
import pytest
import sqlalchemy as sa

from consuming import PATIENT_S
from keynet_core import EventUndelivered, RabbitPublisher, Secret
from keynet_server._broker import Broker
from keynet_server._database import migrate, open_database
from keynet_server._dead_letters import look
from keynet_server._deployer import Deployer
from keynet_server._errors import BrokerUnavailable, JournalUnavailable
from keynet_server._journal import Journal
from keynet_server._topology import Topology
from proxies import Relay, make_certificate, to_tls

NAMES = Topology(topic="keynet.models")


def known(event):
    """Stand in for a journal where only the broker is of interest."""
    return event is not None


def at_port(broker, port, **more):
    return replace(broker, address=replace(broker.address, port=port, **more))


def _broker(publisher):
    return Broker(address=publisher.address, topic=publisher.topic)


def connect(broker):
    parameters = RabbitPublisher(address=broker.address, topic=broker.topic).to_parameters()
    return pika.BlockingConnection(parameters)


@pytest.fixture
def events(publishing):
    published = publishing.publish()
    return [replace(published, run_id=f"run-{number}").to_event() for number in range(60)]


def publish_until_taken(publisher, event, journal, eventually):
    """Publish again and again, as an outbox does, until the event is in the journal."""

    def is_taken():
        try:
            publisher.publish(event)
        except EventUndelivered:
            return False
        return journal.knows(event.id)

    eventually(is_taken, 2 * PATIENT_S)


@pytest.mark.parametrize("way", ["kill", "stop"])
def test_after_the_broker_was_away_the_consumer_goes_on_by_itself(
    consume, rabbitmq, publisher, events, deployer, eventually, way
):
    consumer = consume(deployer.receive)
    publisher.publish(events[0])
    eventually(lambda: deployer.journal.knows(events[0].id), PATIENT_S)
    getattr(rabbitmq, way)()
    eventually(lambda: not consumer.status.is_listening, PATIENT_S)
    assert "broker.unavailable" in consumer.status.trouble
    rabbitmq.start()
    eventually(lambda: consumer.status.is_listening, PATIENT_S)
    assert consumer.status.trouble is None
    publish_until_taken(publisher, events[1], deployer.journal, eventually)


def test_a_consumer_that_starts_before_its_broker_waits_for_it_and_does_not_repeat_itself(
    consume, rabbitmq, publisher, events, deployer, eventually, caplog
):
    caplog.set_level(logging.WARNING, logger="keynet.server")
    rabbitmq.stop()
    with Relay(publisher.address.port) as relay:
        consumer = consume(deployer.receive, of=at_port(_broker(publisher), relay.port), listens=False)
        eventually(lambda: relay.count > 5, PATIENT_S)
        assert "does not answer" in consumer.status.trouble
        rabbitmq.start()
        publish_until_taken(publisher, events[0], deployer.journal, eventually)
        consumer.stop(timeout_s=PATIENT_S)
    complaints = [text for text in caplog.messages if text.startswith("no events come from RabbitMQ")]
    assert 0 < len(complaints) < relay.count


@pytest.mark.slow
def test_no_event_is_lost_or_doubled_while_the_broker_is_killed_under_load(
    consume, rabbitmq, publisher, events, deployer, eventually
):
    consume(deployer.receive)

    def publish():
        for event in events:
            done = False
            while not done:
                try:
                    publisher.publish(event)
                    done = True
                except EventUndelivered:
                    threading.Event().wait(0.1)

    thread = threading.Thread(target=publish)
    thread.start()
    eventually(lambda: deployer.journal.knows(events[5].id), PATIENT_S)
    rabbitmq.kill()
    rabbitmq.start()
    thread.join(2 * PATIENT_S)
    assert not thread.is_alive()
    eventually(lambda: len(deployer.journal.unfinished()) == len(events), PATIENT_S)
    assert {each.id for each in deployer.journal.unfinished()} == {event.id for event in events}


def test_a_connection_that_is_cut_is_made_again(consume, broker, publisher, events, deployer, eventually):
    with Relay(broker.address.port) as relay:
        consumer = consume(deployer.receive, of=at_port(broker, relay.port))
        for event in events[:3]:
            relay.drop()
            publisher.publish(event)
            eventually(lambda event=event: deployer.journal.knows(event.id), PATIENT_S)
        assert relay.count > 1
        consumer.stop(timeout_s=PATIENT_S)


def test_a_broker_that_falls_silent_is_noticed(consume, broker, publisher, events, deployer, eventually):
    with Relay(broker.address.port) as relay:
        consumer = consume(deployer.receive, of=at_port(broker, relay.port))
        relay.fall_silent()
        eventually(lambda: not consumer.status.is_listening, PATIENT_S)
        relay.drop()
        relay.speak()
        publisher.publish(events[0])
        eventually(lambda: deployer.journal.knows(events[0].id), PATIENT_S)
        consumer.stop(timeout_s=PATIENT_S)


def test_a_queue_that_is_deleted_is_declared_again(consume, broker, publisher, events, deployer, eventually):
    consume(deployer.receive)
    with connect(broker) as connection:
        connection.channel().queue_delete(NAMES.queue)
    publish_until_taken(publisher, events[0], deployer.journal, eventually)


def test_a_queue_that_is_made_otherwise_is_named_and_taken_once_it_is_gone(
    consume, broker, publisher, events, deployer, eventually
):
    with connect(broker) as connection:
        connection.channel().queue_declare(NAMES.queue, durable=True)
    consumer = consume(deployer.receive, listens=False)
    eventually(lambda: consumer.status.trouble, PATIENT_S)
    assert consumer.status.trouble.startswith("broker.refused: ")
    assert "inequivalent arg" in consumer.status.trouble
    assert NAMES.queue in consumer.status.trouble
    with connect(broker) as connection:
        connection.channel().queue_delete(NAMES.queue)
    publish_until_taken(publisher, events[0], deployer.journal, eventually)


@pytest.mark.parametrize(
    ("changes", "code", "told"),
    [
        ({"password": Secret("hunter2")}, "broker.refused", "refuses the user 'keynet' or the password"),
        ({"vhost": "no-such"}, "broker.unavailable", "does not open the virtual host 'no-such' to the user 'keynet'"),
        ({"is_tls": True}, "broker.refused", "does not speak TLS"),
    ],
)
def test_what_only_a_setting_can_mend_is_named_and_the_password_is_not(
    consume, broker, eventually, caplog, changes, code, told
):
    caplog.set_level(logging.DEBUG)
    wrong = replace(broker, address=replace(broker.address, **changes))
    consumer = consume(known, of=wrong, listens=False)
    eventually(lambda: consumer.status.trouble, PATIENT_S)
    assert told in consumer.status.trouble
    assert consumer.status.trouble.startswith(f"{code}: ")
    with pytest.raises(BrokerUnavailable, match=told):
        asyncio.run(look(wrong))
    assert wrong.address.password.reveal() not in caplog.text


def test_a_broker_that_never_answers_is_given_up_by_who_looks(broker):
    with Relay(broker.address.port) as relay:
        relay.fall_silent()
        with pytest.raises(BrokerUnavailable, match="does not answer"):
            asyncio.run(look(at_port(broker, relay.port)))


def test_events_come_through_tls_and_from_a_virtual_host_with_a_slash(
    consume, rabbitmq, broker, events, deployer, eventually, tmp_path
):
    rabbitmq.ctl("add_vhost", "team/models")
    rabbitmq.ctl("set_permissions", "-p", "team/models", "keynet", ".*", ".*", ".*")
    certificate = make_certificate(tmp_path)
    with Relay(broker.address.port, context=to_tls(certificate)) as relay:
        secured = at_port(broker, relay.port, is_tls=True, ca_file=str(certificate), vhost="team/models")
        consumer = consume(deployer.receive, of=secured)
        RabbitPublisher(address=secured.address, topic=secured.topic).publish(events[0])
        eventually(lambda: deployer.journal.knows(events[0].id), PATIENT_S)
        consumer.stop(timeout_s=PATIENT_S)
    rabbitmq.ctl("delete_vhost", "team/models")


@pytest.fixture
def on_postgresql(postgresql, publishing, repository, engine, tmp_path):
    database = open_database(postgresql.database())
    migrate(database, tmp_path / "migrate.lock")
    yield Deployer(journal=Journal(database), store=publishing.store, repository=repository, engine=engine)
    database.dispose()


def test_while_the_database_is_away_events_are_held_and_taken_when_it_is_back(
    consume, publisher, events, on_postgresql, postgresql, eventually
):
    journal = on_postgresql.journal
    consumer = consume(on_postgresql.receive)
    publisher.publish(events[0])
    eventually(lambda: journal.knows(events[0].id), PATIENT_S)
    postgresql.kill()
    with publisher.opened() as link:
        for event in events[1:]:
            link.publish(event)
    eventually(lambda: consumer.status.trouble, PATIENT_S)
    assert consumer.status.is_listening
    assert "held until it can be taken: the journal's database cannot be used" in consumer.status.trouble
    postgresql.start()
    eventually(lambda: consumer.status.taken == len(events), PATIENT_S)
    assert [each.id for each in journal.unfinished()] == [event.id for event in events]
    assert consumer.status.trouble is None
    assert asyncio.run(look(consumer.broker)).dead == 0


def test_while_the_journal_is_locked_events_are_held(consume, publisher, events, deployer, journal, home, eventually):
    """SQLite's own patience is made short; the lock is that of a backup that takes long."""
    sa.event.listen(journal._engine, "connect", lambda connection, _: connection.execute("PRAGMA busy_timeout = 100"))
    consumer = consume(deployer.receive)
    other = sa.create_engine(f"sqlite:///{home / 'keynet.db'}", isolation_level="AUTOCOMMIT")
    with other.connect() as backup:
        backup.exec_driver_sql("BEGIN EXCLUSIVE")
        publisher.publish(events[0])
        eventually(lambda: consumer.status.trouble, PATIENT_S)
        assert "locked" in consumer.status.trouble
        backup.exec_driver_sql("ROLLBACK")
    other.dispose()
    eventually(lambda: deployer.journal.knows(events[0].id), PATIENT_S)


def test_a_consumer_that_is_told_to_stop_while_it_holds_a_message_stops_and_the_message_stays(
    consume, publisher, events, deployer, eventually
):
    def away(event):
        raise JournalUnavailable("away")

    consumer = consume(away)
    publisher.publish(events[0])
    eventually(lambda: consumer.status.trouble, PATIENT_S)
    assert consumer.stop(timeout_s=PATIENT_S)
    consume(deployer.receive)
    eventually(lambda: deployer.journal.knows(events[0].id), PATIENT_S)


def test_a_consumer_whose_database_hangs_does_not_keep_the_server_from_ending(consume, publisher, events, eventually):
    begun, release = threading.Event(), threading.Event()
    consumer = consume(lambda event: begun.set() or release.wait(PATIENT_S))
    publisher.publish(events[0])
    assert begun.wait(PATIENT_S)
    assert not consumer.stop(timeout_s=0.1)
    assert all(thread.daemon for thread in threading.enumerate() if thread.name.startswith("keynet-consumer"))
    release.set()


def test_killed_between_the_journal_and_the_acknowledgement_the_event_is_known(
    consume, publisher, events, deployer, home, eventually
):
    broker = _broker(publisher)
    url = f"amqp://keynet:{broker.address.password.reveal()}@127.0.0.1:{broker.address.port}/{broker.address.vhost}"
    script = Path(__file__).with_name("killed_consumer.py")
    process = subprocess.Popen([sys.executable, str(script), str(home), url])
    try:
        publish_when_declared(publisher, events[0], eventually)
        assert process.wait(PATIENT_S) == -signal.SIGKILL
    finally:
        process.kill()
    assert [each.id for each in deployer.journal.unfinished()] == [events[0].id]
    eventually(lambda: asyncio.run(look(broker)).waiting == 1, PATIENT_S)
    consumer = consume(deployer.receive)
    eventually(lambda: asyncio.run(look(broker)).waiting == 0, PATIENT_S)
    publisher.publish(events[1])
    eventually(lambda: deployer.journal.knows(events[1].id), PATIENT_S)
    assert [each.id for each in deployer.journal.unfinished()] == [events[0].id, events[1].id]
    eventually(lambda: consumer.status.taken == 1, PATIENT_S)


def publish_when_declared(publisher, event, eventually):
    """Publish once, as soon as there is a queue."""

    def is_published():
        try:
            publisher.publish(event)
        except EventUndelivered:
            return False
        return True

    eventually(is_published, PATIENT_S)


def test_a_message_that_ends_every_connection_takes_none_behind_it_to_the_dead_letters(
    consume, broker, publisher, send, events, deployer, eventually
):
    consume(deployer.receive).stop(timeout_s=PATIENT_S)
    send(b"[]", timestamp=2**63)  # no date that Python has: aiormq ends the connection when it reads it
    for event in events[:5]:
        publisher.publish(event)
    consume(deployer.receive, listens=False)

    def is_over():
        with connect(broker) as connection:
            dead = connection.channel().queue_declare(NAMES.dead_queue, passive=True).method.message_count
        return dead > 0 and all(deployer.journal.knows(event.id) for event in events[:5])

    eventually(is_over, 2 * PATIENT_S)
    with connect(broker) as connection:
        assert connection.channel().queue_declare(NAMES.dead_queue, passive=True).method.message_count == 1
