"""`keynet server` and `keynet doctor` with a broker, as processes: started, asked, killed, told to stop."""

from __future__ import annotations

import asyncio
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time

import pika
import pytest

from consuming import PATIENT_S, TOKEN
from keynet_core import EventUndelivered
from keynet_server._dead_letters import LOOKED_AT, look

KEYNET = [sys.executable, "-c", "from keynet_server._cli import main; main()"]
OURS = ("KEYNET", "TRITON", "AWS", "RABBIT", "MLFLOW")


@pytest.fixture
def environ(home, broker):
    """Return the surroundings of a server whose model server is not there."""
    clean = {name: text for name, text in os.environ.items() if not name.startswith(OURS)}
    password = broker.address.password.reveal()
    url = str(broker.address).replace("amqp://", f"amqp://{broker.address.user}:{password}@")
    own = {"KEYNET_HOME": str(home), "KEYNET_TOKEN": TOKEN, "TRITON_URL": "http://127.0.0.1:9"}
    return clean | own | {"RABBIT_ENDPOINT_URL": url}


@pytest.fixture
def start(environ, tmp_path):
    """Return a function that starts `keynet server` and returns its port and process."""
    started = []

    def start(**more):
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        with (tmp_path / "server.log").open("ab") as log:
            command = [*KEYNET, "server", "--port", str(port)]
            process = subprocess.Popen(command, env=environ | more, stdout=log, stderr=log)
        started.append(process)
        wait_for(lambda: process.poll() is None and ask(port, "/readyz").get("broker") is not None)
        return port, process

    yield start
    for process in started:
        process.kill()
        process.wait()


def wait_for(holds):
    deadline = time.monotonic() + PATIENT_S
    while True:
        try:
            if found := holds():
                return found
        except OSError:
            pass
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.1)


def ask(port, path):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENT_S)
    try:
        connection.request("GET", path)
        return json.loads(connection.getresponse().read())
    finally:
        connection.close()


def is_published(publisher, event):
    try:
        publisher.publish(event)
    except EventUndelivered:
        return False
    return True


def test_a_server_with_a_broker_takes_events_from_it_and_ends_well(start, publishing, publisher, tmp_path):
    port, process = start()
    event = publishing.publish().to_event()
    wait_for(lambda: is_published(publisher, event))
    wait_for(lambda: ask(port, f"/v1/events/{event.id}").get("id") == event.id)
    assert ask(port, "/readyz")["broker"] is True
    process.send_signal(signal.SIGTERM)
    assert process.wait(PATIENT_S) in {0, -signal.SIGTERM}
    log = (tmp_path / "server.log").read_text()
    assert "events come from the queue keynet.models.deployer of RabbitMQ" in log
    assert publisher.address.password.reveal() not in log


def test_a_server_that_is_killed_while_events_come_loses_and_doubles_none(start, publishing, publisher, journal):
    from dataclasses import replace

    published = publishing.publish()
    events = [replace(published, run_id=f"run-{number}").to_event() for number in range(100)]
    _, process = start()
    wait_for(lambda: is_published(publisher, events[0]))
    with publisher.opened() as link:
        for event in events[1:]:
            link.publish(event)
    wait_for(lambda: journal.knows(events[10].id))
    process.kill()
    process.wait()
    start()
    wait_for(lambda: len(journal.newest_events(limit=1000)) == 100)
    assert {each.id for each in journal.newest_events(limit=1000)} == {event.id for event in events}


def test_a_server_starts_without_its_broker_and_answers_http(start, publisher):
    with socket.create_server(("127.0.0.1", 0)) as free:
        nobody = free.getsockname()[1]
    port, _ = start(RABBIT_ENDPOINT_URL=f"amqp://u:hunter2@127.0.0.1:{nobody}")
    ready = ask(port, "/readyz")
    assert (ready["broker"], ready["status"], ready["journal"]) == (False, "degraded", True)
    told = ask(port, "/v1/events/dead")
    assert (told["status"], told["code"]) == (503, "broker.unavailable")
    assert "hunter2" not in json.dumps(told)


def test_a_topic_that_cannot_be_one_is_told_before_the_server_listens(environ):
    done = run("server", environ | {"RABBIT_MODEL_UPLOAD_TOPIC": "a b"})
    assert done.returncode == 2
    assert "RABBIT_MODEL_UPLOAD_TOPIC cannot be used" in done.stderr


def run(command, environ):
    return subprocess.run(
        [*KEYNET, *command.split()], env=environ, capture_output=True, text=True, timeout=PATIENT_S, check=False
    )


WITHOUT_AIO_PIKA = "import sys; sys.modules['aio_pika'] = None; from keynet_server._cli import main; main()"


def test_without_aio_pika_the_line_that_installs_it_is_told(environ):
    command = [sys.executable, "-c", WITHOUT_AIO_PIKA, "server"]
    done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=PATIENT_S, check=False)
    assert done.returncode == 1
    assert "pip install 'keynet-server[rabbitmq]'" in done.stderr


def findings(environ):
    told = json.loads(run("doctor --json", environ).stdout)["findings"]
    return [each for each in told if each["check"] == "broker"]


def test_doctor_without_a_broker_does_not_speak_of_one(environ, journal):
    assert findings({name: text for name, text in environ.items() if name != "RABBIT_ENDPOINT_URL"}) == []


def test_doctor_tells_who_listens_how_much_waits_and_what_is_dead(environ, journal, consume, deployer, send):
    (finding,) = findings(environ)
    assert (finding["level"], "no keynet server has listened" in finding["finding"]) == ("warning", True)
    assert "keynet server" in finding["remedy"]
    consumer = consume(deployer.receive)
    (finding,) = findings(environ)
    assert finding["level"] == "ok"
    assert "0 events wait in keynet.models.deployer" in finding["finding"]
    assert "1 servers listen" in finding["finding"]
    send(b'{"id": "first"}')
    send(b'{"train_id": "1", "full_path": "s3://b/model.onnx"}', message_id="second")
    wait_for(lambda: consumer.status.buried == 2)
    consumer.stop(timeout_s=PATIENT_S)
    send(b'{"id": "third"}')
    broker = consumer.broker
    wait_for(lambda: (queues := asyncio.run(look(broker))).consumers == 0 and queues.waiting == 1)
    alone, dead = findings(environ)
    assert (alone["level"], dead["level"]) == ("warning", "error")
    assert "1 events wait in keynet.models.deployer" in alone["finding"]
    assert "nobody listens" in alone["finding"]
    assert dead["finding"].startswith("2 dead letters; the newest is second: this is a message of an earlier keynet")
    assert dead["remedy"] == "keynet events dead"


def test_doctor_does_not_call_newest_what_is_the_newest_of_those_it_read(
    environ, journal, consume, deployer, publisher
):
    consume(deployer.receive).stop(timeout_s=PATIENT_S)
    with pika.BlockingConnection(publisher.to_parameters()) as connection:
        channel = connection.channel()
        channel.confirm_delivery()
        for number in range(1, LOOKED_AT + 4):
            channel.basic_publish(f"{publisher.topic}.dlx", "", b"[]", pika.BasicProperties(message_id=f"m-{number}"))
    dead = findings(environ)[-1]["finding"]
    assert dead.startswith(f"{LOOKED_AT + 3} dead letters; the newest of the oldest {LOOKED_AT} is m-{LOOKED_AT}: ")


def test_doctor_asks_the_server_where_it_knows_no_broker_itself(environ, journal, to_services, serve, broker):
    without = {name: text for name, text in environ.items() if name != "RABBIT_ENDPOINT_URL"}
    (finding,) = findings(without | {"KEYNET_URL": serve(to_services(broker))})
    assert (finding["level"], "1 servers listen" in finding["finding"]) == ("ok", True)
    assert findings(without | {"KEYNET_URL": serve(to_services())}) == []
    assert findings(without | {"KEYNET_URL": "http://127.0.0.1:9"}) == []


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (("keynet-tests", "hunter2"), "refuses the user"),
        (("amqp:", "amqps:"), "does not speak TLS"),
        (("127.0.0.1", "no-such-host.invalid"), "does not answer"),
    ],
)
def test_doctor_names_a_broker_that_cannot_be_used_without_its_password(environ, journal, change, told):
    wrong = environ | {"RABBIT_ENDPOINT_URL": environ["RABBIT_ENDPOINT_URL"].replace(*change)}
    (finding,) = findings(wrong)
    assert finding["level"] == "error"
    assert told in finding["finding"]
    assert finding["remedy"]
    assert "hunter2" not in json.dumps(finding)
    assert "keynet-tests" not in json.dumps(finding)
