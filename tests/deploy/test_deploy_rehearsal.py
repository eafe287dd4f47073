"""The way of a model through compose.yaml, on the engines themselves: from a laptop, through two keynet servers."""

import json
import re
import time
import urllib.error
import urllib.request

import numpy as np
import psycopg
import pytest

from deploy.files import dev_variables, read_variables
from deploy.pages import Shell, blocks
from deploy.rehearsal import DEADLINE_S, end

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
PAGE = "from-laptop-to-cluster.md"
FUNCTION = """
import numpy
from keynet_inference import TritonPlugin, keynet_function

@keynet_function("times")
def main(args):
    values = numpy.array([[1, 2, 3]], dtype="float32")
    return {"answer": TritonPlugin().predict(df={"input_0": values}, model_name="times")["output_0"].tolist()}
"""


@pytest.fixture
def laptop(cluster, tmp_path):
    """A shell in a checkout whose passwords were made as the page says, and then set to those of the engines."""
    shell = Shell(tmp_path)
    shell.run(blocks(PAGE)[0])
    path = tmp_path / "deploy/.env"
    ports = {
        "MLFLOW_PORT": "mlflow:5000",
        "S3_PORT": "minio:9000",
        "RABBIT_PORT": "rabbitmq:5672",
        "TRITON_HTTP_PORT": "triton:8000",
    }
    known = cluster.variables | {name: cluster.addresses[there].rpartition(":")[2] for name, there in ports.items()}
    path.write_text("".join(f"{name}={value}\n" for name, value in (read_variables(path) | known).items()))
    return shell


def train(shell, name, factor):
    """Train with the page's variables; return the package's address."""
    return shell.run(f"{variables()}python train.py {name} {factor}").splitlines()[-1]


def variables():
    """Return the page's block without what it runs."""
    lines = blocks(PAGE)[1].splitlines(keepends=True)
    return "".join(line for line in lines if not re.match("python|keynet", line))


def get(url, path):
    try:
        with urllib.request.urlopen(f"{url}{path}", timeout=30) as answer:
            return json.load(answer)
    except urllib.error.HTTPError as error:
        return json.load(error)


def await_ready(url):
    """Wait until a server acts on events: it listens before it has reached everything."""
    deadline = time.monotonic() + DEADLINE_S
    while (told := get(url, "/readyz"))["status"] != "ok":
        assert time.monotonic() < deadline, told
        time.sleep(0.1)


def await_live(url, name, count):
    """Wait until a model has been deployed a number of times; return its deployments, newest first."""
    deadline = time.monotonic() + DEADLINE_S
    while True:
        history = get(url, f"/v1/models/{name}/history").get("deployments", [])
        if len(history) >= count and history[0]["state"] == "deployed":
            return history
        assert time.monotonic() < deadline, history
        time.sleep(0.2)


def ask(cluster, name):
    from keynet_inference import TritonPlugin

    values = np.array([[1, 2, 3]], dtype=np.float32)
    answer = TritonPlugin(url=cluster.model_server.url).predict(df={"input_0": values}, model_name=name)
    return answer["output_0"].tolist()


def test_a_model_goes_from_a_laptop_to_the_cluster(cluster, laptop):
    """The page, to the letter, but for the ports."""
    with cluster.keynet("first") as (url, _):
        await_ready(url)
        with (laptop.directory / "deploy/.env").open("a") as env:
            env.write(f"KEYNET_PORT={url.rpartition(':')[2]}\n")
        told = laptop.run(blocks(PAGE)[1])
        assert "s3://keynet-packages/packages/times/" in told
        [deployment] = await_live(url, "times", 1)
        assert deployment["served_version"] == "1"
        (laptop.directory / "function.py").write_text(FUNCTION)
        assert json.loads(laptop.run(blocks(PAGE)[2])) == {"answer": [[2.0, 4.0, 6.0]]}


def test_a_rollback_is_asked_for_with_the_token(cluster, laptop):
    with cluster.keynet("second") as (url, _):
        for count, factor in enumerate((2, 7), start=1):
            train(laptop, "back", factor)
            await_live(url, "back", count)
        rollback = f"export KEYNET_URL={url}; keynet models rollback back --why 'a rehearsal'"
        refused = laptop.run(f"{rollback} || echo $?", KEYNET_TOKEN="another")
        assert refused.strip() == "3"
        laptop.run(rollback, KEYNET_TOKEN=dev_variables()["KEYNET_TOKEN"])
        await_live(url, "back", 3)
        assert ask(cluster, "back") == [[2, 4, 6]]


def test_two_servers_deploy_once_and_one_goes_on_when_the_other_is_killed(cluster, laptop):
    with cluster.keynet("third") as (third, process), cluster.keynet("fourth") as (fourth, _):
        for count, factor in enumerate((3, 4, 5), start=1):
            train(laptop, "shared", factor)
            history = await_live(fourth, "shared", count)
        assert [each["state"] for each in history] == ["deployed", "superseded", "superseded"]
        assert get(third, "/v1/models/shared/history")["deployments"] == history
        assert ask(cluster, "shared") == [[5, 10, 15]]
        process.kill()
        end(process)
        train(laptop, "shared", 6)
        assert len(await_live(fourth, "shared", 4)) == 4
        assert ask(cluster, "shared") == [[6, 12, 18]]


LOG = """
import mlflow

with mlflow.start_run() as run:
    mlflow.log_text("kept", "kept.txt")
print(run.info.run_id)
"""


def test_mlflow_keeps_runs_in_postgresql_and_artifacts_in_s3(cluster, laptop, ceph):
    (laptop.directory / "log.py").write_text(LOG)
    run_id = laptop.run(f"{variables()}python log.py").splitlines()[-1]
    listed = ceph.client().list_objects_v2(Bucket="keynet-mlflow", Prefix="artifacts/")["Contents"]
    assert [each["Key"].rpartition("/")[2] for each in listed if run_id in each["Key"]] == ["kept.txt"]
    url = cluster.environ("mlflow")["MLFLOW_BACKEND_STORE_URI"].replace("+psycopg", "")
    with psycopg.connect(url) as connection:
        assert connection.execute("SELECT status FROM runs WHERE run_uuid = %s", [run_id]).fetchone() == ("FINISHED",)
