"""A broker in trouble: whatever it is, the event waits, the wait is bounded, and the password is shown to nobody."""

from __future__ import annotations

import json
import logging
import os
import signal
import socket
import threading
import time
import traceback
from contextlib import contextmanager
from dataclasses import replace

import pika
import pytest
from pika import exceptions as pika_errors
from pika.adapters.utils import connection_workflow

from keynet_core import EventUndelivered, KeynetError, RabbitAddress, RabbitPublisher, Secret, SettingsInvalid
from keynet_core._rabbit_errors import KINDS, translating
from proxies import Relay

TOPIC = "keynet.models"
PATIENT_S, BOUND_S = 25.0, 60.0
"""For brokers that do answer, however busy the machine is; and for everything."""

QUICK = {"connect_timeout_s": 1.0, "handshake_timeout_s": 1.0}


@pytest.fixture
def event(published):
    return published.to_event()


@pytest.fixture
def url(rabbitmq):
    url = rabbitmq.vhost()
    declare(url)
    return url


def declare(url):
    with pika.BlockingConnection(pika.URLParameters(url)) as connection:
        channel = connection.channel()
        channel.exchange_declare(TOPIC, "topic", durable=True)
        channel.queue_declare("q", durable=True, arguments={"x-queue-type": "quorum"})
        channel.queue_bind("q", TOPIC, TOPIC)


def ids_in_queue(url):
    with pika.BlockingConnection(pika.URLParameters(url)) as connection:
        channel, found = connection.channel(), []
        while (got := channel.basic_get("q", auto_ack=True))[0]:
            found.append(json.loads(got[2])["id"])
        return found


def to_publisher(url, **more):
    names = ("connect_timeout_s", "handshake_timeout_s", "blocked_timeout_s", "answer_timeout_s")
    bounds = dict.fromkeys(names, PATIENT_S) | more
    return RabbitPublisher(address=RabbitAddress.from_url(Secret(url)), topic=TOPIC, **bounds)


def refusal_of(url, event, **more):
    """Publish what cannot be, and return the error; it took a bounded time and shows no password."""
    start = time.monotonic()
    with pytest.raises(KeynetError) as caught:
        to_publisher(url, **more).publish(event)
    assert time.monotonic() - start < BOUND_S
    password = RabbitAddress.from_url(Secret(url)).password.reveal()
    assert password not in "".join(traceback.format_exception(caught.value))
    assert caught.value.hint
    return caught.value


def at_port(url, port):
    return url.replace(f":{RabbitAddress.from_url(Secret(url)).port}", f":{port}")


@contextmanager
def behaving(behave):
    """Yield the port of a socket that lets `behave` do with each connection what it likes."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def run():
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                with connection:
                    behave(connection)

        threading.Thread(target=run, daemon=True).start()
        yield listener.getsockname()[1]
        listener.shutdown(socket.SHUT_RDWR)


def never_answer(connection):
    while connection.recv(65536):
        pass


def answer_http(connection):
    connection.recv(100)
    connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")


def test_a_broker_that_is_not_there(url, event):
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    error = refusal_of(at_port(url, port), event)
    assert isinstance(error, EventUndelivered)
    assert error.message.endswith("does not answer: Connection refused")


def test_a_host_that_has_no_address(event):
    error = refusal_of("amqp://u:hunter2@no-such-host.invalid", event)
    assert isinstance(error, EventUndelivered)
    assert "no-such-host.invalid:5672" in error.message


@pytest.mark.parametrize("behave", [never_answer, answer_http, lambda connection: None])
def test_what_is_no_broker(url, event, behave):
    with behaving(behave) as port:
        assert isinstance(refusal_of(at_port(url, port), event, **QUICK), EventUndelivered)


def test_a_broker_that_accepts_and_never_answers(url, event):
    with behaving(never_answer) as port:
        assert "nothing came back in time" in refusal_of(at_port(url, port), event, **QUICK).message


def test_a_wrong_password_is_a_matter_of_settings(url, event):
    error = refusal_of(url.replace("keynet-tests", "hunter2"), event)
    assert isinstance(error, SettingsInvalid)
    assert "refuses the user 'keynet' or the password" in error.message
    assert "RABBIT_ENDPOINT_URL" in error.hint


def test_a_virtual_host_that_is_missing_is_a_matter_of_settings(url, event):
    error = refusal_of(url.rpartition("/")[0] + "/no-such", event)
    assert isinstance(error, SettingsInvalid)
    assert "no virtual host 'no-such'" in error.message


def test_tls_to_a_plain_port_is_a_matter_of_settings(url, event):
    error = refusal_of(url.replace("amqp:", "amqps:"), event)
    assert isinstance(error, SettingsInvalid)
    assert "5671" in error.hint


def test_a_broker_that_is_blocked_by_its_disk_holds_nobody_up(rabbitmq, url, event):
    with rabbitmq.disk_alarm():
        error = refusal_of(url, event, blocked_timeout_s=1.0)
        assert isinstance(error, EventUndelivered)
        assert "its disk or its memory runs out" in error.message
    to_publisher(url).publish(event)
    assert event.id in ids_in_queue(url)


def test_a_broker_that_falls_silent_after_the_handshake(url, event):
    relay = Relay(RabbitAddress.from_url(Secret(url)).port)
    publisher = to_publisher(at_port(url, relay.port), answer_timeout_s=5.0, handshake_timeout_s=5.0)
    with relay, publisher.opened() as link:
        link.publish(event)
        relay.fall_silent()
        start = time.monotonic()
        with pytest.raises(EventUndelivered, match="does not answer"):
            link.publish(replace(event, id="second"))
        assert time.monotonic() - start < BOUND_S


def test_a_broker_that_is_stopped_in_its_tracks(rabbitmq, url, event):
    pid = int(rabbitmq.evaluate("os:getpid().").strip('"'))
    os.kill(pid, signal.SIGSTOP)
    try:
        assert isinstance(refusal_of(url, event, **QUICK), EventUndelivered)
    finally:
        os.kill(pid, signal.SIGCONT)
    to_publisher(url).publish(event)


def test_after_the_broker_was_the_trouble_the_rest_of_a_flush_does_not_wait_for_it(url, event):
    asked, refusals = [], []

    def never(connection):
        asked.append(connection)
        never_answer(connection)

    with behaving(never) as port, to_publisher(at_port(url, port), **QUICK).opened() as link:
        for number in range(50):
            with pytest.raises(EventUndelivered) as caught:
                link.publish(replace(event, id=str(number)))
            refusals.append(caught.value.message)
    assert len(asked) == 1
    assert len(set(refusals)) == 1


def test_no_event_that_was_confirmed_is_lost_when_the_broker_is_killed(rabbitmq, url, event):
    """Ten events are confirmed after each start, then the broker is killed while the next ones are under way."""
    confirmed = []
    for kill in range(2):
        enough = threading.Event()

        def publish(kill=kill, enough=enough):
            with to_publisher(url).opened() as link:
                for number in range(100_000):
                    one = replace(event, id=f"{kill}-{number}")
                    try:
                        link.publish(one)
                    except EventUndelivered:
                        return
                    confirmed.append(one.id)
                    if number == 10:
                        enough.set()

        thread = threading.Thread(target=publish)
        thread.start()
        assert enough.wait(BOUND_S)
        rabbitmq.kill()
        thread.join(BOUND_S * 2)
        assert not thread.is_alive()
        rabbitmq.start()
    there = wait_for_queue(url)
    assert [each for each in confirmed if each not in there] == []
    assert len(confirmed) > 20


def wait_for_queue(url):
    """Return what is in the queue; a quorum queue has its majority back only a while after the broker."""
    deadline = time.monotonic() + 60
    while True:
        try:
            return set(ids_in_queue(url))
        except pika_errors.AMQPError:
            assert time.monotonic() < deadline
            time.sleep(0.2)


def test_pika_logs_nothing_unless_somebody_asked_for_it_and_never_the_password(url, event, caplog):
    caplog.set_level(logging.DEBUG)
    to_publisher(url).publish(event)
    refusal_of(url.replace("keynet-tests", "hunter2"), event)
    assert caplog.text == ""
    caplog.set_level(logging.DEBUG, logger="pika")
    to_publisher(url).publish(event)
    refusal_of(url.replace("keynet-tests", "hunter2"), event)
    assert "Connection workflow failed" in caplog.text
    assert "keynet-tests" not in caplog.text
    assert "hunter2" not in caplog.text


def pika_exceptions():
    for module in (pika_errors, connection_workflow):
        for each in vars(module).values():
            if isinstance(each, type) and issubclass(each, Exception) and each.__module__ == module.__name__:
                yield each


def instance_of(kind):
    for arguments in ((), ("x",), (320, "x"), (["x"],), ([OSError(1, "x")],)):
        try:
            return kind(*arguments)
        except TypeError:
            continue
    raise AssertionError(f"{kind} cannot be made")


@pytest.mark.parametrize("kind", list(pika_exceptions()))
def test_every_exception_of_pika_is_translated(kind):
    address = RabbitAddress.from_url(Secret("amqp://u:hunter2@h"))
    with pytest.raises(KeynetError), translating(address, TOPIC):
        raise instance_of(kind)
    assert issubclass(kind, KINDS)
