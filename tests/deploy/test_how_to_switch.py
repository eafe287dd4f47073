"""The pages that switch a seam each, on the engines they switch to."""

import re
import shlex

import psycopg
import pytest

from deploy.pages import Shell, blocks, replaced
from deploy.rehearsal import free_port

pytestmark = pytest.mark.timeout(600)


@pytest.fixture
def shell(tmp_path):
    return Shell(tmp_path)


def s3_keys(ceph):
    return {
        "http://127.0.0.1:9000": ceph.url,
        "AWS_ACCESS_KEY_ID=keynet": f"AWS_ACCESS_KEY_ID={ceph.access_key}",
        "AWS_SECRET_ACCESS_KEY=...": f"AWS_SECRET_ACCESS_KEY={ceph.secret_key}",
    }


def test_packages_and_files_are_in_s3_after_its_page(shell, ceph):
    switch, bucket, train, files = blocks("use-s3.md")
    shell.run(replaced(switch, s3_keys(ceph)))
    assert shell.run(bucket).startswith("keynet-packages: ")
    with shell.keynet_up():
        assert "s3://keynet-packages/packages/times/" in (told := shell.run(train))
        assert "s3://keynet-packages answers" in told
        shell.await_live("times")
    shell.run(files)
    [storage] = blocks("use-s3.md", "python")
    assert shell.python(storage).startswith("s3://keynet-files/greetings/hello.txt b'hello' http")
    kept = ceph.client().get_object(Bucket="keynet-files", Key="greetings/hello.txt")
    assert kept["Body"].read() == b"hello"


def test_events_go_through_rabbitmq_after_its_page(shell, rabbitmq):
    switch, train, dead, trainer = blocks("use-rabbitmq.md")
    vhost = rabbitmq.vhost()
    shell.run(replaced(switch, {"amqp://keynet:...@127.0.0.1:5672/keynet": vhost}))
    with shell.keynet_up():
        told = shell.run(train)
        shell.await_live("times")
        assert "times" in told
        assert "0 dead letters in keynet.models.deployer.dead" in shell.run(dead)
        for line in trainer.splitlines():
            program, *words = shlex.split(line)
            assert program == "rabbitmqctl"
            rabbitmq.ctl(*(vhost.rpartition("/")[2] if word == "keynet" else word for word in words))
        narrow = re.sub("://[^@]+@", "://trainer:another-password@", vhost)
        shell.run("python train.py narrow 3", RABBIT_ENDPOINT_URL=narrow)
        shell.await_live("narrow")
        for forbidden in (read_events, publish_elsewhere):
            assert refusal(narrow, forbidden) == 403
    rabbitmq.ctl("delete_user", "trainer")


def read_events(channel):
    channel.basic_get("keynet.models.deployer")


def publish_elsewhere(channel):
    channel.confirm_delivery()
    channel.basic_publish("keynet.models.dlx", "keynet.models", b"{}")


def refusal(url, act):
    """Return the code with which a broker refuses an act."""
    import pika

    connection = pika.BlockingConnection(pika.URLParameters(url))
    try:
        with pytest.raises(pika.exceptions.ChannelClosedByBroker) as raised:
            act(connection.channel())
        return raised.value.reply_code
    finally:
        connection.close()


def tritonserver(page_text):
    """The repository and the other options of each `tritonserver` of a page."""
    for line in page_text:
        program, repository, *options = shlex.split(line)
        assert program == "tritonserver"
        yield repository.removeprefix("--model-repository="), options


def test_triton_serves_from_a_directory_after_its_page(shell, triton):
    switch, train, _, ask = blocks("use-triton.md")
    (there, options), _ = tritonserver(blocks("use-triton.md", "text"))
    place = str(shell.directory / "serving")
    changes = {"/srv/keynet/serving": place, "KEYNET_TOKEN=...": "KEYNET_TOKEN=of-the-page"}
    shell.run(replaced(switch, changes | {"http://127.0.0.1:8000": f"http://127.0.0.1:{free_port()}"}))
    with shell.keynet_server():
        """It makes what Triton reads."""
    with triton.serve(there.replace("/srv/keynet/serving", place), *options) as server:
        shell.run(replaced(switch, changes | {"http://127.0.0.1:8000": server.url}))
        with shell.keynet_server() as url:
            shell.run(replaced(train, {"http://127.0.0.1:8700": url}))
            shell.await_live("times")
            assert shell.run(replaced(ask, {"grpc://127.0.0.1:8001": server.grpc_url})) == "[[2.0, 4.0, 6.0]]\n"


def test_triton_serves_from_s3_after_both_pages(shell, triton, ceph):
    switch, train, repository, ask = blocks("use-triton.md")
    _, (there, options) = tritonserver(blocks("use-triton.md", "text"))
    to_s3, bucket, *_ = blocks("use-s3.md")
    shell.run(replaced(to_s3, s3_keys(ceph)))
    shell.run(bucket)
    shell.run(repository)
    keys = {name: value for name, value in shell.environ.items() if name.startswith("AWS_")}
    with triton.serve(replaced(there, {"http://127.0.0.1:9000": ceph.url}), *options, environ=keys) as server:
        directory = "export KEYNET_SERVING_REPOSITORY=/srv/keynet/serving\n"
        changes = {directory: "", "http://127.0.0.1:8000": server.url, "KEYNET_TOKEN=...": "KEYNET_TOKEN=of-the-page"}
        shell.run(replaced(switch, changes))
        with shell.keynet_server() as url:
            shell.run(replaced(train, {"http://127.0.0.1:8700": url}))
            shell.await_live("times")
            assert shell.run(replaced(ask, {"grpc://127.0.0.1:8001": server.grpc_url})) == "[[2.0, 4.0, 6.0]]\n"


def test_the_journal_is_in_postgresql_after_its_page(shell, new_postgresql):
    switch, look = blocks("use-postgresql.md")
    [statements] = blocks("use-postgresql.md", "sql")
    where = {"host": new_postgresql["PGHOST"], "port": new_postgresql["PGPORT"]}
    with psycopg.connect(
        **where, dbname="postgres", user="postgres", password=new_postgresql["PGPASSWORD"], autocommit=True
    ) as connection:
        for statement in statements.strip().split("\n"):
            connection.execute(statement)
    shell.run(replaced(switch, {"127.0.0.1:5432": f"127.0.0.1:{where['port']}"}))
    with shell.keynet_up():
        shell.run("python train.py")
        shell.await_live("times")
        assert "times" in shell.run(look)
    assert not (shell.directory / ".keynet/keynet.db").exists()
    assert "times" in shell.run("keynet models list"), "also while no server runs"
    with psycopg.connect(**where, dbname="keynet", user="keynet", password="a-password") as connection:
        assert connection.execute("SELECT model, state FROM deployments").fetchall() == [("times", "deployed")]
