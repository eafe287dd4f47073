"""What makes databases and buckets before anything else starts, on the engines themselves."""

import os
import shutil
import subprocess
import sys

import psycopg
import pytest

import engines.rabbitmq
from deploy.files import DEPLOY
from engines.fixtures import skip_without
from engines.rabbitmq import Broker

PASSWORDS = {"KEYNET_DATABASE_PASSWORD": 'it\'s "quoted" $HOME', "MLFLOW_DATABASE_PASSWORD": "of-mlflow"}


def make_databases(environ):
    if shutil.which("psql") is None:
        pytest.skip("needs psql: apt-get install postgresql-client")
    command = ["bash", str(DEPLOY / "postgresql/databases.sh")]
    return subprocess.run(
        command, env={**os.environ, **environ}, capture_output=True, text=True, timeout=60, check=False
    )


def connect(where, user, password, database):
    address = {"host": where["PGHOST"], "port": where["PGPORT"], "connect_timeout": 30}
    return psycopg.connect(**address, dbname=database, user=user, password=password, autocommit=True)


def test_each_has_a_database_that_it_owns_and_the_other_cannot_enter(new_postgresql):
    done = make_databases({**new_postgresql, **PASSWORDS})
    assert (done.returncode, done.stderr) == (0, "")
    for user, variable in (("keynet", "KEYNET_DATABASE_PASSWORD"), ("mlflow", "MLFLOW_DATABASE_PASSWORD")):
        with connect(new_postgresql, user, PASSWORDS[variable], user) as connection:
            connection.execute("CREATE TABLE mine (number integer)")
            is_super = connection.execute("SELECT rolsuper FROM pg_roles WHERE rolname = current_user").fetchone()
            assert is_super == (False,)
    with pytest.raises(psycopg.OperationalError, match="permission denied for database"):
        connect(new_postgresql, "mlflow", PASSWORDS["MLFLOW_DATABASE_PASSWORD"], "keynet")
    with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
        connect(new_postgresql, "keynet", "another", "keynet")


def test_run_again_it_changes_nothing_but_the_passwords(new_postgresql):
    assert make_databases({**new_postgresql, **PASSWORDS}).returncode == 0
    with connect(new_postgresql, "keynet", PASSWORDS["KEYNET_DATABASE_PASSWORD"], "keynet") as connection:
        connection.execute("CREATE TABLE IF NOT EXISTS kept (number integer)")
    done = make_databases({**new_postgresql, **PASSWORDS, "KEYNET_DATABASE_PASSWORD": "newer"})
    assert (done.returncode, done.stderr) == (0, "")
    with connect(new_postgresql, "keynet", "newer", "keynet") as connection:
        assert connection.execute("SELECT count(*) FROM kept").fetchone() == (0,)


@pytest.mark.parametrize("missing", sorted(PASSWORDS))
def test_without_a_password_no_database_is_made(new_postgresql, missing):
    done = make_databases({**new_postgresql, **PASSWORDS, missing: ""})
    assert done.returncode != 0
    assert missing in done.stderr


def test_rabbitmq_takes_what_it_is_told(monkeypatch):
    skip_without(Broker)
    own = "listeners.tcp.1 = 127.0.0.1:{port}\ndefault_user = {user}\ndefault_pass = {password}\n"
    monkeypatch.setattr(engines.rabbitmq, "CONFIGURATION", own + (DEPLOY / "rabbitmq/keynet.conf").read_text())
    with Broker() as broker:
        assert broker.evaluate("rabbit_disk_monitor:get_disk_free_limit().") == str(10**9)
        watermark = broker.evaluate("vm_memory_monitor:get_vm_memory_high_watermark().")
        assert "600" in watermark


def make_buckets(environ, *places):
    command = [sys.executable, str(DEPLOY / "buckets.py"), *places]
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("AWS", "MLFLOW"))}
    return subprocess.run(command, env=kept | environ, capture_output=True, text=True, timeout=120, check=False)


@pytest.fixture(params=["ceph", "swift"])
def s3(request):
    return request.getfixturevalue(request.param)


def test_buckets_are_made_once_and_a_place_in_one_is_there(s3):
    done = make_buckets(s3.environ(), "made-by-deploy", "made-with-a-place/models")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "made-by-deploy: made\nmade-with-a-place/models: made\n"
    listed = s3.client().list_objects_v2(Bucket="made-with-a-place")
    assert [each["Key"] for each in listed["Contents"]] == ["models/.keep"]
    s3.client().put_object(Bucket="made-by-deploy", Key="kept", Body=b"kept")
    done = make_buckets(s3.environ(), "made-by-deploy", "made-with-a-place/models")
    assert done.stdout == "made-by-deploy: there already\nmade-with-a-place/models: there already\n"
    assert s3.client().get_object(Bucket="made-by-deploy", Key="kept")["Body"].read() == b"kept"


def test_two_that_make_the_same_bucket_at_once_both_end_well(s3):
    command = [sys.executable, str(DEPLOY / "buckets.py"), "made-by-two"]
    environ = {**os.environ, **s3.environ()}
    both = [subprocess.Popen(command, env=environ, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    told = [each.communicate(timeout=120)[1] for each in both]
    assert [each.returncode for each in both] == [0, 0], told


def test_wrong_keys_are_told_in_one_line(s3):
    done = make_buckets({**s3.environ(), "AWS_SECRET_ACCESS_KEY": "another"}, "never-made")
    assert done.returncode == 1
    assert done.stderr.startswith("error: never-made: ")
    assert "Traceback" not in done.stderr


def test_an_s3_that_is_away_is_told_in_one_line():
    environ = {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b", "MLFLOW_S3_ENDPOINT_URL": "http://127.0.0.1:9"}
    done = make_buckets(environ, "never-made")
    assert done.returncode == 1
    assert done.stderr.startswith("error: never-made: ")
    assert done.stderr.count("\n") == 1
