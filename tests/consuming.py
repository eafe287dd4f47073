"""A broker of its own for each test, a publisher, consumers and servers that are stopped at the end: fixtures."""

from __future__ import annotations

import socket
import threading
import time

import pika
import pytest
import uvicorn

from keynet_core import Outbox, RabbitAddress, RabbitPublisher, Secret
from keynet_server._app import Services
from keynet_server._broker import Broker
from keynet_server._consumer import Consumer, Pauses
from keynet_server._pages import Links
from keynet_server._serve import with_life
from keynet_server._worker import Worker

TOKEN = "the-token"
QUICK = Pauses(first_s=0.05, longest_s=0.2, look_s=0.2)

PATIENT_S = 60.0
"""For what takes one; the machine may be busy, and a broker may just have started."""


@pytest.fixture
def broker(rabbitmq):
    """Return a broker with nothing declared yet."""
    return Broker(address=RabbitAddress.from_url(Secret(rabbitmq.vhost())), topic="keynet.models", heartbeat_s=2)


@pytest.fixture
def publisher(broker):
    return RabbitPublisher(address=broker.address, topic=broker.topic)


@pytest.fixture
def consume(broker):
    """Return a function that starts a consumer, and waits until it listens."""
    started = []

    def consume(receive, *, on_taken=lambda: None, of=broker, listens=True):
        consumer = Consumer(of, receive, on_taken=on_taken, pauses=QUICK)
        started.append(consumer)
        consumer.start()
        if listens:
            _wait_until_listening(consumer)
        return consumer

    yield consume
    still_running = [consumer for consumer in started if not consumer.stop(timeout_s=PATIENT_S)]
    assert still_running == []


@pytest.fixture
def send(broker):
    """Return a function that publishes a body as anybody might."""

    def send(body, **properties):
        parameters = RabbitPublisher(address=broker.address, topic=broker.topic).to_parameters()
        with pika.BlockingConnection(parameters) as connection:
            channel = connection.channel()
            channel.confirm_delivery()
            properties = pika.BasicProperties(**properties)
            channel.basic_publish(broker.topic, broker.topic, body, properties, mandatory=True)

    return send


@pytest.fixture
def to_services(deployer, publishing, home):
    """Return a function that puts a server together, with or without a broker."""

    def to_services(broker=None):
        worker = Worker(deployer, Outbox(home / "outbox"), publishing.store, tick_s=0.05)
        consumer = broker and Consumer(broker, deployer.receive, on_taken=worker.wake, pauses=QUICK)
        links = Links(tracking=None, serving=None)
        return Services(deployer=deployer, worker=worker, token=Secret(TOKEN), links=links, consumer=consumer)

    return to_services


@pytest.fixture
def serve():
    """Return a function that runs a server and returns its address."""
    running = []

    def serve(services):
        listener = socket.create_server(("127.0.0.1", 0))
        server = uvicorn.Server(uvicorn.Config(with_life(services), log_config=None, access_log=False))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        running.append((server, thread, listener))
        thread.start()
        if services.consumer is not None:
            _wait_until_listening(services.consumer)
        return f"http://127.0.0.1:{listener.getsockname()[1]}"

    yield serve
    for server, thread, listener in running:
        server.should_exit = True
        thread.join(PATIENT_S)
        listener.close()
        assert not thread.is_alive()


def _wait_until_listening(consumer):
    deadline = time.monotonic() + PATIENT_S
    while not consumer.status.is_listening:
        assert time.monotonic() < deadline, consumer.status
        time.sleep(0.02)
