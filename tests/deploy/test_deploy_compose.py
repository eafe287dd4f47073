"""compose.yaml: what the specification says of it, and what we ask of it."""

import json
import re
import subprocess
import sys

import pytest
import yaml

from deploy.files import (
    DEPLOY,
    PASSWORD,
    VARIABLE,
    NotSet,
    addresses,
    dev_variables,
    interpolate,
    read_compose,
    read_variables,
    tool,
)

PORTS = {"postgresql": {5432}, "minio": {9000}, "rabbitmq": {5672}, "triton": {8000, 8001}}
"""What images of others listen on, by their documentation."""
OWN = {"buckets", "mlflow", "keynet"}
SERVICES = read_compose()["services"]
TEXT = re.sub(r"^ *#.*$", "", (DEPLOY / "compose.yaml").read_text(), flags=re.MULTILINE)
USED = {match["name"]: (match["operator"], match["rest"]) for match in VARIABLE.finditer(TEXT)}
REQUIRED = sorted(name for name, (operator, _) in USED.items() if operator == ":?")


def validate(path):
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec", str(path)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def docker_compose(*arguments, env_file="dev.env"):
    environ = {"PATH": "/usr/bin:/bin", "HOME": "/nonexistent"}
    command = [tool("docker-compose"), "--env-file", str(DEPLOY / env_file), "-f", str(DEPLOY / "compose.yaml")]
    return subprocess.run([*command, *arguments], env=environ, capture_output=True, text=True, timeout=120, check=False)


@pytest.mark.parametrize("name", ["compose.yaml", "compose.gpu.yaml"])
def test_it_fits_the_specification(name):
    done = validate(DEPLOY / name)
    assert done.returncode == 0, done.stdout + done.stderr


def test_what_does_not_fit_the_specification_is_seen(tmp_path):
    spoiled = tmp_path / "compose.yaml"
    spoiled.write_text((DEPLOY / "compose.yaml").read_text().replace("healthcheck:", "healthchecks:", 1))
    assert "healthchecks" in validate(spoiled).stdout


def test_docker_compose_reads_it_with_a_gpu_too():
    for more in ([], ["-f", str(DEPLOY / "compose.gpu.yaml")]):
        done = docker_compose(*more, "config", "--quiet")
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_these_tests_read_it_as_docker_compose_does():
    told = json.loads(docker_compose("config", "--format", "json").stdout)["services"]
    ours = read_compose(dev_variables())["services"]
    assert set(told) == set(ours)
    for name, service in ours.items():
        assert told[name].get("environment") == service.get("environment"), name
        assert told[name].get("command") == service.get("command"), name


@pytest.mark.parametrize("name", REQUIRED)
def test_nothing_starts_without_a_password(name, tmp_path):
    variables = {**dev_variables(), name: ""}
    with pytest.raises(NotSet, match=name):
        read_compose(variables)
    (tmp_path / "env").write_text("".join(f"{key}={value}\n" for key, value in variables.items()))
    done = docker_compose("config", "--quiet", env_file=tmp_path / "env")
    assert f"required variable {name} is missing a value" in done.stderr  # a wrapper of it may lose the exit code


def test_no_password_has_a_default_and_none_is_written_down():
    assert {name for name in USED if PASSWORD.search(name)} == set(REQUIRED)
    for name, service in SERVICES.items():
        for variable, value in service.get("environment", {}).items():
            assert not PASSWORD.search(variable) or VARIABLE.fullmatch(value), f"{name}: {variable}"
    written = re.findall(r"://\w+:(?!\$\{)[^@\s]+@", TEXT)
    assert written == []


def test_the_example_has_every_variable_with_its_default_and_no_password():
    example = read_variables(DEPLOY / ".env.example")
    assert example == {name: "" if operator == ":?" else rest for name, (operator, rest) in USED.items()}


def test_every_line_of_the_example_is_explained():
    explained = False
    for line in (DEPLOY / ".env.example").read_text().splitlines():
        assert explained or not re.match(r"\w+=", line), line
        explained = line.startswith("#") or (explained and bool(line))


def test_the_throw_away_passwords_are_those_that_are_needed():
    assert sorted(dev_variables()) == REQUIRED


def test_the_example_as_it_stands_is_refused():
    with pytest.raises(NotSet):
        read_compose(read_variables(DEPLOY / ".env.example"))


def test_every_published_port_is_bound_to_loopback():
    published = [port for service in SERVICES.values() for port in service.get("ports", [])]
    assert len(published) == 6
    for port in published:
        assert re.fullmatch(r"127\.0\.0\.1:\$\{\w+_PORT:-(\d+)\}:\1", port)


def test_every_image_has_a_tag_that_stays():
    for name, service in SERVICES.items():
        image, _, tag = service["image"].rpartition(":")
        assert image, name
        assert tag not in {"", "latest"}, name


@pytest.mark.parametrize("name", sorted(set(SERVICES) - {"buckets"}))
def test_a_service_is_watched_bounded_and_started_again(name):
    service = SERVICES[name]
    assert service["healthcheck"]["test"][0] == "CMD"
    assert {"interval", "timeout", "retries", "start_period"} <= set(service["healthcheck"])
    assert service["restart"] == "unless-stopped"
    assert "no-new-privileges:true" in service["security_opt"]
    assert service["logging"]["options"] == {"max-size": "10m", "max-file": "3"}
    assert {"cpus", "memory", "pids"} == set(service["deploy"]["resources"]["limits"])
    assert "stop_grace_period" in service


@pytest.mark.parametrize("name", sorted(OWN))
def test_our_own_images_write_where_they_are_told_and_have_no_right_of_roots(name):
    service = SERVICES[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["tmpfs"]
    assert "privileged" not in service
    assert "user" not in service, "the image's own user, which is not root"


def test_whoever_waits_for_health_waits_for_something_that_has_it():
    for name, service in SERVICES.items():
        for awaited, how in service.get("depends_on", {}).items():
            if how["condition"] == "service_healthy":
                assert "test" in SERVICES[awaited]["healthcheck"], f"{name} waits for {awaited}"
            else:
                assert how["condition"] == "service_completed_successfully"
                assert SERVICES[awaited]["restart"].startswith("on-failure"), f"{name} waits for {awaited}"


def test_the_database_is_on_the_network_without_a_way_out_alone():
    assert SERVICES["postgresql"]["networks"] == ["inner"]
    assert read_compose()["networks"]["inner"] == {"internal": True}
    for name, service in SERVICES.items():
        assert "ports" not in service or "edge" in service["networks"], name


def test_every_address_is_of_a_service_on_the_same_network_that_listens_there():
    services = read_compose(dev_variables())["services"]
    listens = {**PORTS, "mlflow": {5000}, "keynet": {8700}}
    count = 0
    for name, service in services.items():
        told = [*addresses(service.get("environment", {})), *addresses(service.get("command", []))]
        for host, port in told:
            assert port in listens[host], f"{name} asks {host}:{port}"
            assert set(services[host]["networks"]) & set(service["networks"]), f"{name} cannot reach {host}"
            count += 1
    assert count >= 8


def test_every_volume_and_file_that_is_mounted_is_there():
    volumes = read_compose()["volumes"]
    mounted = [volume for service in SERVICES.values() for volume in service.get("volumes", [])]
    for volume in mounted:
        source = volume.split(":")[0]
        assert (DEPLOY / source).is_file() if source.startswith("./") else source in volumes, volume


def test_the_buckets_that_are_used_are_made():
    services = read_compose(dev_variables())["services"]
    made = set(services["buckets"]["command"])
    text = yaml.safe_dump({name: services[name] for name in ("mlflow", "triton", "keynet")})
    for place in re.findall(r"s3://(?:http://minio:9000/)?([\w/-]+)", text):
        assert place in made or place.split("/")[0] in made, place


def test_interpolation_takes_the_default_for_what_is_empty():
    assert interpolate("${A:-b} ${C:-d}", {"A": "", "C": "e"}) == "b e"
