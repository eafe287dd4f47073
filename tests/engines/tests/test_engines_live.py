"""Each engine answers, keeps its data when it is killed or stopped, and is reached from this machine only."""

from __future__ import annotations

import contextlib
import socket
import time
from pathlib import Path

import pytest

from engines import _processes
from engines.fixtures import pytest_runtest_setup

DEADLINE_S = 60


def eventually(ask):
    """Ask until the engine answers: one that was killed may refuse for a while after it is back."""
    deadline = time.monotonic() + DEADLINE_S
    while True:
        try:
            return ask()
        except Exception:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)


class Objects:
    def __init__(self, server):
        self.client, self.bucket = server.client(), server.bucket()

    def put(self):
        self.client.put_object(Bucket=self.bucket, Key="a/b", Body=b"kept")

    def get(self):
        return self.client.get_object(Bucket=self.bucket, Key="a/b")["Body"].read()


class Messages:
    def __init__(self, broker):
        import pika

        self.parameters = pika.URLParameters(broker.vhost())
        self.connect = pika.BlockingConnection
        self.persistent = pika.BasicProperties(delivery_mode=2)

    def put(self):
        with self.connect(self.parameters) as connection:
            channel = connection.channel()
            channel.queue_declare("q", durable=True, arguments={"x-queue-type": "quorum"})
            channel.confirm_delivery()
            channel.basic_publish("", "q", b"kept", self.persistent, mandatory=True)

    def get(self):
        with self.connect(self.parameters) as connection:
            channel = connection.channel()
            _, _, body = channel.basic_get("q")  # not acknowledged: it is there the next time
            assert body is not None, "the queue is empty"
            return body


class Rows:
    def __init__(self, postgres):
        import sqlalchemy

        self.text = sqlalchemy.text
        self.refused = sqlalchemy.exc.OperationalError
        self.engine = sqlalchemy.create_engine(postgres.database(), poolclass=sqlalchemy.NullPool)

    def put(self):
        with self.engine.begin() as connection:
            connection.execute(self.text("CREATE TABLE t AS SELECT 'kept' AS x"))

    def get(self):
        with self.engine.connect() as connection:
            return connection.scalar(self.text("SELECT x FROM t")).encode()


CLIENTS = {"ceph": Objects, "swift": Objects, "rabbitmq": Messages, "postgresql": Rows}


@pytest.fixture(params=CLIENTS)
def engine(request):
    return request.getfixturevalue(request.param)


@pytest.fixture
def client(request, engine):
    return CLIENTS[request.node.callspec.params["engine"]](engine)


def test_what_was_written_outlives_sigkill(engine, client):
    client.put()
    engine.kill()
    assert not engine.is_running
    engine.start()
    assert eventually(client.get) == b"kept"


def test_an_engine_that_a_test_left_dead_runs_again_before_the_next(postgresql, request):
    rows = Rows(postgresql)
    rows.put()
    postgresql.stop()
    with pytest.raises(rows.refused):
        rows.get()
    pytest_runtest_setup(request.node)
    assert eventually(rows.get) == b"kept"


def test_it_listens_on_loopback_only(engine):
    inodes = set()
    for daemon in engine._daemons:
        for entry in _processes.family(daemon.pid):
            for descriptor in Path(f"/proc/{entry.pid}/fd").iterdir():
                name = str(descriptor.readlink()) if descriptor.is_symlink() else ""
                if name.startswith("socket:["):
                    inodes.add(name[8:-1])
    addresses = listening(inodes)
    assert engine.port in {port for _, port in addresses}
    assert {address for address, _ in addresses} <= {"127.0.0.1", "::1"}


def listening(inodes):
    """Return the address and port of each of these sockets that listens, of IPv4 and IPv6."""
    found = set()
    for table, family in (("tcp", socket.AF_INET), ("tcp6", socket.AF_INET6)):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and fields[9] in inodes:
                raw, port = fields[1].split(":")
                words = [bytes.fromhex(raw[i : i + 8])[::-1] for i in range(0, len(raw), 8)]
                found.add((socket.inet_ntop(family, b"".join(words)), int(port, 16)))
    return found


@pytest.mark.parametrize("engine", ["ceph", "swift"], indirect=True)
def test_a_wrong_secret_is_refused(engine):
    import boto3
    from botocore.exceptions import ClientError

    keys = {"aws_access_key_id": engine.access_key, "aws_secret_access_key": "wrong"}
    client = boto3.client("s3", endpoint_url=engine.url, region_name=engine.region, **keys)
    with pytest.raises(ClientError, match="SignatureDoesNotMatch"):
        client.list_buckets()


def test_postgresql_refuses_a_wrong_password(postgresql):
    import psycopg

    url = postgresql.url.replace("+psycopg", "").replace("keynet-tests", "wrong")
    with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
        psycopg.connect(url)


def test_virtual_hosts_and_databases_are_new_each_time(rabbitmq, postgresql):
    assert rabbitmq.vhost() != rabbitmq.vhost()
    assert postgresql.database() != postgresql.database()


def test_rabbitmq_believes_that_its_disk_is_full(rabbitmq):
    import pika

    parameters = pika.URLParameters(rabbitmq.vhost())
    parameters.blocked_connection_timeout = 1
    with rabbitmq.disk_alarm():
        connection = pika.BlockingConnection(parameters)
        channel = connection.channel()
        channel.confirm_delivery()
        publish(channel)  # the first may still pass
        with pytest.raises(pika.exceptions.ConnectionBlockedTimeout):
            publish(channel)
    with pika.BlockingConnection(parameters) as connection:
        channel = connection.channel()
        channel.confirm_delivery()
        with pytest.raises(pika.exceptions.UnroutableError):
            channel.basic_publish("", "nowhere", b"", mandatory=True)


def publish(channel):
    import pika

    with contextlib.suppress(pika.exceptions.UnroutableError):
        channel.basic_publish("", "nowhere", b"", mandatory=True)


def test_rabbitmqctl_speaks_to_this_broker(rabbitmq):
    name = rabbitmq.vhost().rsplit("/", 1)[1]
    assert name in rabbitmq.ctl("list_vhosts").splitlines()
