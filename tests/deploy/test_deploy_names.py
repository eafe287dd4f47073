"""Every variable, command, option, path and version in the deployment files is one that the code knows."""

import dataclasses
import importlib
import re
import tomllib

import click
import pytest

from deploy.files import (
    DEPLOY,
    ROOT,
    config_maps,
    dev_variables,
    environment,
    health,
    instructions,
    read_compose,
    read_manifests,
    workloads,
)
from keynet_core import read_settings
from keynet_server import ServerSettings
from keynet_server._cli import keynet

SETTINGS = (ROOT / "docs/reference/settings.md").read_text()
COMPOSE = read_compose(dev_variables())["services"]
PODS = workloads(read_manifests())
OF_BOTO3 = {"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_DEFAULT_REGION"}
"""What boto3 reads by itself, and no setting of ours repeats."""
CONTAINERS = {name: pod["spec"]["containers"][0] for name, pod in PODS.items()}
IMAGES = {"keynet": "server", "mlflow": "mlflow"}
SERVER = [COMPOSE["keynet"]["environment"], environment(CONTAINERS["keynet"])]


def documented():
    return set(re.findall(r"^\| `(\w+)` \|", SETTINGS, re.MULTILINE))


@pytest.mark.parametrize("environ", SERVER, ids=["compose", "kubernetes"])
def test_every_variable_of_the_server_is_in_the_reference(environ):
    only_for_addresses = {"DATABASE_PASSWORD", "RABBIT_PASSWORD"}
    assert set(environ) - documented() - OF_BOTO3 - only_for_addresses == set()


@pytest.mark.parametrize("environ", SERVER, ids=["compose", "kubernetes"])
def test_the_server_takes_the_values_and_every_setting_of_an_engine_is_given(environ):
    settings = read_settings(ServerSettings, environ)
    assert settings.journal_url.startswith("postgresql+psycopg://keynet:")
    assert settings.store_url == "s3://keynet-packages"
    assert "keynet" in settings.allowed_hosts
    given = {each.metadata["env"] for each in dataclasses.fields(ServerSettings)} & set(environ)
    assert {"KEYNET_TOKEN", "TRITON_URL", "KEYNET_SERVING_REPOSITORY", "RABBIT_ENDPOINT_URL"} <= given


def mlflow_options():
    from mlflow.cli import server

    told = [each.envvar for each in server.params if each.envvar]
    return {name for each in told for name in ([each] if isinstance(each, str) else each)}


def mlflow_variables():
    variables = importlib.import_module("mlflow.environment_variables")
    kind = variables._EnvironmentVariable
    return {each.name for each in vars(variables).values() if isinstance(each, kind)}


IMAGE = " ".join(rest for word, rest in instructions("Dockerfile.mlflow") if word == "ENV")
MLFLOW = [
    COMPOSE["mlflow"]["environment"],
    environment(CONTAINERS["mlflow"]),
    dict(re.findall(r"(\w+)=(\S+)", IMAGE)),
]


@pytest.mark.parametrize("environ", MLFLOW, ids=["compose", "kubernetes", "image"])
def test_every_variable_of_mlflow_is_one_it_reads(environ):
    told = {name for name in environ if name.startswith("MLFLOW_")}
    assert told
    assert told - mlflow_options() - mlflow_variables() == set()


def test_the_kubelet_asks_under_a_name_that_the_server_answers_for():
    for each in ("startupProbe", "livenessProbe", "readinessProbe"):
        assert CONTAINERS["keynet"][each]["httpGet"]["httpHeaders"] == [{"name": "Host", "value": "localhost"}]


@pytest.mark.parametrize("name", ["keynet", "mlflow"])
def test_health_is_asked_as_the_rehearsal_asks_for_it(name):
    """What is started there answers at this path."""
    port, path = health(COMPOSE[name])
    assert port in {each["containerPort"] for each in CONTAINERS[name]["ports"]}
    assert any(published.endswith(f":{port}") for published in COMPOSE[name]["ports"])
    probes = [CONTAINERS[name][each]["httpGet"]["path"] for each in ("startupProbe", "livenessProbe", "readinessProbe")]
    assert {path, *probes} == {path}
    [check] = [rest for word, rest in instructions(f"Dockerfile.{IMAGES[name]}") if word == "HEALTHCHECK"]
    assert f"http://127.0.0.1:{port}{path}'" in check


def test_triton_is_asked_where_kserve_has_its_health():
    assert health(COMPOSE["triton"]) == (8000, "/v2/health/ready")
    assert CONTAINERS["triton"]["livenessProbe"]["httpGet"]["path"] == "/v2/health/live"


def parse(command, arguments):
    """Parse arguments as the command would; an option it does not have is an error."""
    while isinstance(command, click.Group):
        context = click.Context(command, info_name=arguments[0])
        command, arguments = command.get_command(context, arguments[0]), arguments[1:]
        assert command is not None
    return command.make_context(command.name, list(arguments)).params


@pytest.mark.parametrize(
    "arguments",
    [COMPOSE["keynet"]["command"], CONTAINERS["keynet"]["args"], None],
    ids=["compose", "kubernetes", "image"],
)
def test_the_command_of_the_server_is_one_and_listens_where_others_ask(arguments):
    told = parse(keynet, arguments or json_words("Dockerfile.server", "CMD"))
    assert (told["host"], told["port"]) == ("0.0.0.0", 8700)


def json_words(name, word):
    [rest] = [rest for each, rest in instructions(name) if each == word]
    return re.findall(r'"([^"]*)"', rest)


def test_the_entry_points_of_the_images_are_commands_of_what_they_install():
    for name, package, command in (
        ("Dockerfile.server", "keynet-server", "keynet"),
        ("Dockerfile.function", "keynet-inference", "keynet-inference"),
    ):
        project = tomllib.loads((ROOT / f"packages/{package}/pyproject.toml").read_text())["project"]
        assert json_words(name, "ENTRYPOINT") == [command]
        assert command in project["scripts"]
        extras = re.search(rf"/wheels/{package.replace('-', '_')}-\*\.whl\)\[([\w,]+)\]", (DEPLOY / name).read_text())
        assert set(extras[1].split(",")) <= set(project["optional-dependencies"])


def test_the_command_of_mlflows_image_is_one():
    from mlflow.cli import cli

    told = parse(cli, json_words("Dockerfile.mlflow", "CMD"))
    assert (told["host"], told["port"]) == ("0.0.0.0", 5000)


def test_the_tags_of_our_images_are_the_versions_of_what_is_in_them():
    version = tomllib.loads((ROOT / "packages/keynet-server/pyproject.toml").read_text())["project"]["version"]
    mlflow = re.search(r"^mlflow==(.+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)[1]
    told = "\n".join(
        path.read_text() for path in sorted(DEPLOY.rglob("*")) if path.is_file() and path.name != "buckets.py"
    )
    assert set(re.findall(r"keynet-(?:server|function)(?::|, newTag: )(\d[\w.]*\d)", told)) == {version}
    assert set(re.findall(r"keynet-mlflow(?::|, newTag: )(\d[\w.]*\d)", told)) == {mlflow}


def test_both_ways_of_deployment_run_the_same_images_with_the_same_settings():
    for name in ("postgresql", "minio", "rabbitmq", "triton"):
        assert COMPOSE[name]["image"] == CONTAINERS[name]["image"]
    assert COMPOSE["triton"]["command"] == CONTAINERS["triton"]["args"]
    compose, kubernetes = COMPOSE["keynet"]["environment"], environment(CONTAINERS["keynet"])
    differs = {"KEYNET_ALLOWED_HOSTS"}
    secret = {name for name, value in compose.items() if "throw-away" in value} | {"AWS_ACCESS_KEY_ID"}
    for name in set(compose) - differs - secret:
        assert kubernetes[name] == compose[name], name
    assert set(kubernetes) - {"DATABASE_PASSWORD", "RABBIT_PASSWORD"} == set(compose)
    assert compose["KEYNET_DATABASE_URL"].replace("throw-away", "secret") == kubernetes["KEYNET_DATABASE_URL"]
    assert compose["RABBIT_ENDPOINT_URL"].replace("throw-away", "secret") == kubernetes["RABBIT_ENDPOINT_URL"]


def test_the_model_server_reads_the_repository_that_the_server_writes():
    written = config_maps()["keynet"]["KEYNET_SERVING_REPOSITORY"]
    endpoint = config_maps()["s3"]["MLFLOW_S3_ENDPOINT_URL"]
    assert f"--model-repository={written.replace('s3://', f's3://{endpoint}/')}" in CONTAINERS["triton"]["args"]


HEADS = [
    "compose.yaml",
    "compose.gpu.yaml",
    "kubernetes/kustomization.yaml",
    "Dockerfile.server",
    "Dockerfile.function",
    "Dockerfile.mlflow",
]


@pytest.mark.parametrize("name", HEADS)
def test_a_file_says_at_its_head_what_was_not_run(name):
    lines = (DEPLOY / name).read_text().splitlines()[:15]
    assert "Not run here" in " ".join(line.lstrip("# ") for line in lines if line.startswith("#"))


def test_the_readme_names_every_file():
    text = (DEPLOY / "README.md").read_text()
    for path in DEPLOY.iterdir():
        if path.name not in {"README.md", ".gitignore", ".env"}:
            name = re.sub(r"^Dockerfile\.\w+\.dockerignore$", "Dockerfile.*.dockerignore", path.name)
            assert name in text, path.name
