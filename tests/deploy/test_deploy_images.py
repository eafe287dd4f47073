"""The images, built by buildah on a small Debian of our own, and what comes out of them run."""

import http.client
import json
import time
from contextlib import closing

import pytest

from deploy.buildah import open_buildah
from engines._ports import Ports

pytestmark = pytest.mark.timeout(1800)
DEADLINE_S = 120.0


@pytest.fixture(scope="module")
def buildah():
    with open_buildah() as made:
        made.make_base()
        yield made


@pytest.fixture
def port():
    """A port of this machine's, which a container shares; nobody else in the tests has it."""
    with closing(Ports(1)) as ports:
        yield ports.first


@pytest.fixture(scope="module")
def server_image(buildah):
    return buildah.build("Dockerfile.server", "localhost/keynet-server:tests")


@pytest.fixture(scope="module")
def function_image(buildah):
    return buildah.build("Dockerfile.function", "localhost/keynet-function:tests")


@pytest.fixture(scope="module")
def mlflow_image(buildah):
    return buildah.build("Dockerfile.mlflow", "localhost/keynet-mlflow:tests")


def await_answer(port, path, process, log):
    deadline = time.monotonic() + DEADLINE_S
    while True:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
        try:
            connection.request("GET", path)
            answer = connection.getresponse()
            return answer.status, answer.read().decode()
        except OSError:
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.1)
        finally:
            connection.close()


def await_health(buildah, container, command, *, is_healthy):
    """Wait until the image's own health check says so."""
    deadline = time.monotonic() + DEADLINE_S
    while (buildah.run(container, *command).returncode == 0) != is_healthy:
        assert time.monotonic() < deadline, f"the health check never said {is_healthy}"
        time.sleep(0.2)


def test_the_server_is_in_its_image_and_is_nobody_special(buildah, server_image):
    with buildah.container(server_image) as container:
        assert buildah.run(container, "keynet", "--version").stdout == "keynet, version 0.9.0\n"
        told = buildah.run(container, "keynet", "doctor", "--json")
        assert told.returncode == 0, told.stderr
        assert json.loads(told.stdout)["findings"][0]["finding"] == "/var/lib/keynet can be written"
        assert buildah.run(container, "id", "-u").stdout == "10001\n"
        engines = "import aio_pika, boto3, pika, psycopg"
        assert buildah.run(container, "python3", "-c", engines).returncode == 0
        assert buildah.run(container, "python3", "-c", "import pip").returncode != 0
        assert buildah.run(container, "sh", "-c", "command -v gcc make git").returncode != 0
        assert buildah.run(container, "touch", "/opt/keynet/bin/mine").returncode != 0


def test_the_server_of_the_image_starts_with_its_own_command_and_is_found_healthy(
    buildah, server_image, port, tmp_path
):
    config, log = buildah.config(server_image), tmp_path / "log"
    command = [each.replace("8700", str(port)) for each in config["Entrypoint"] + config["Cmd"]]
    word, *health = [each.replace("8700", str(port)) for each in config["Healthcheck"]["Test"]]
    assert word == "CMD"
    environ = {"KEYNET_TOKEN": "of-the-test", "TRITON_URL": "http://127.0.0.1:9"}
    with buildah.container(server_image) as container:
        assert buildah.run(container, *health).returncode != 0
        with buildah.running(container, *command, log=log, environ=environ) as process:
            assert await_answer(port, "/healthz", process, log) == (200, '{"status":"ok"}')
            await_health(buildah, container, health, is_healthy=True)
            assert await_answer(port, "/readyz", process, log)[0] == 503, "there is no model server"
        await_health(buildah, container, health, is_healthy=False)


def test_the_server_of_the_image_says_what_it_lacks(buildah, server_image):
    with buildah.container(server_image) as container:
        told = buildah.run(container, "keynet", "server")
    assert told.returncode == 2
    assert "KEYNET_TOKEN" in told.stderr


FUNCTION = """
import numpy
from keynet_inference import TritonPlugin, keynet_function

@keynet_function("double")
def main(args):
    told = TritonPlugin().predict(df={"input_0": numpy.array([[args["number"]]], "float32")}, model_name="double")
    return {"answer": float(told["output_0"][0, 0])}
"""
CONFIG = """
backend: "onnxruntime"
input { name: "input_0" data_type: TYPE_FP32 dims: [-1, 1] }
output { name: "output_0" data_type: TYPE_FP32 dims: [-1, 1] }
"""


def double():
    """Return a model that doubles."""
    from onnx import TensorProto, helper

    shape = ["batch", 1]
    graph = helper.make_graph(
        [helper.make_node("Add", ["input_0", "input_0"], ["output_0"])],
        "double",
        [helper.make_tensor_value_info("input_0", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("output_0", TensorProto.FLOAT, shape)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    return model.SerializeToString()


def test_a_function_answers_in_its_image_with_a_model_in_its_own_process(buildah, function_image, tmp_path):
    model = tmp_path / "models" / "double"
    (model / "1").mkdir(parents=True)
    (model / "1" / "model.onnx").write_bytes(double())
    (model / "config.pbtxt").write_text(CONFIG)
    (tmp_path / "function.py").write_text(FUNCTION)
    with buildah.container(function_image) as container:
        buildah.call("copy", container, str(tmp_path / "function.py"), "/function/function.py")
        buildah.call("copy", container, str(tmp_path / "models"), "/function/models")
        command = [*buildah.config(function_image)["Entrypoint"], "run", "function.py", "-p", "number=21"]
        told = buildah.run(container, *command, environ={"TRITON_URL": "file:///function/models"})
        assert told.returncode == 0, told.stderr
        assert json.loads(told.stdout)["answer"] == 42.0
        assert buildah.run(container, "id", "-u").stdout == "10001\n"
        assert buildah.run(container, "python3", "-c", "import boto3").returncode == 0
        assert buildah.run(container, "python3", "-c", "import pip").returncode != 0


@pytest.mark.slow
def test_mlflow_of_the_image_keeps_its_runs_in_postgresql(buildah, mlflow_image, postgresql, port, tmp_path):
    config, log = buildah.config(mlflow_image), tmp_path / "log"
    command = [each.replace("5000", str(port)) for each in config["Entrypoint"] + config["Cmd"]]
    health = [each.replace("5000", str(port)) for each in config["Healthcheck"]["Test"][1:]]
    environ = {"MLFLOW_BACKEND_STORE_URI": postgresql.database(), "MLFLOW_WORKERS": "1"}
    with buildah.container(mlflow_image) as container:
        with buildah.running(container, *command, log=log, environ=environ) as process:
            assert await_answer(port, "/health", process, log) == (200, "OK")
            await_health(buildah, container, health, is_healthy=True)
            found = await_answer(port, "/api/2.0/mlflow/experiments/get?experiment_id=0", process, log)
            assert json.loads(found[1])["experiment"]["name"] == "Default"
        assert buildah.run(container, "python3", "-c", "import boto3, psycopg").returncode == 0
