"""The deployment files as values, and the tools that read them as production does."""

from __future__ import annotations

import re
import shutil
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy"
PASSWORD = re.compile(r"PASS(WORD)?$|TOKEN$|SECRET(_ACCESS)?_KEY$")
VARIABLE = re.compile(r"\$\{(?P<name>[A-Z0-9_]+)(?:(?P<operator>:[-?])(?P<rest>[^}]*))?\}")
URL = re.compile(
    r"\b(?P<scheme>https?|amqp|postgresql\+psycopg)://(?:[^@/\s]*@)?(?P<host>[a-z][a-z0-9.-]*):(?P<port>\d+)"
)


class NotSet(Exception):
    """Raised when a variable that compose.yaml cannot do without is missing or empty."""


def tool(name):
    """Return the path of a program, or skip: the deployment's own tools are no part of what `make` installs."""
    found = shutil.which(name, path=str(Path(sys.executable).parent)) or shutil.which(name)
    if found is None:
        pytest.skip(f"{name} is not installed")
    return found


def read_variables(path):
    """Return the variables of an env file."""
    lines = [line for line in path.read_text().splitlines() if line.strip() and not line.startswith("#")]
    return dict(line.split("=", 1) for line in lines)


def interpolate(text, variables):
    """Fill in `${NAME:-default}` and `${NAME:?why}` as Compose does."""

    def value(match):
        given = variables.get(match["name"], "")
        if not given and match["operator"] == ":?":
            raise NotSet(f"{match['name']}: {match['rest']}")
        return given or (match["rest"] or "")

    return VARIABLE.sub(value, text)


def read_compose(variables=None):
    """Return compose.yaml: filled in, or with its `${...}` as they stand."""
    text = (DEPLOY / "compose.yaml").read_text()
    return yaml.safe_load(text if variables is None else interpolate(text, variables))


def dev_variables():
    return read_variables(DEPLOY / "dev.env")


def addresses(environ):
    """Yield (host, port) of each address in the values of an environment or a list of arguments."""
    for value in environ.values() if isinstance(environ, dict) else environ:
        for match in URL.finditer(str(value)):
            yield match["host"], int(match["port"])


def instructions(name):
    """Return a Dockerfile's instructions as (word, rest), its continued lines joined."""
    text = re.sub(r"^\s*#.*\n", "", (DEPLOY / name).read_text(), flags=re.MULTILINE).replace("\\\n", " ")
    return [tuple(line.split(None, 1)) for line in text.splitlines() if line.strip()]


def read_manifests():
    """Return every object of deploy/kubernetes, as it stands in its file."""
    files = sorted((DEPLOY / "kubernetes").glob("*.yaml"))
    return [
        each for path in files if path.name != "kustomization.yaml" for each in yaml.safe_load_all(path.read_text())
    ]


def workloads(manifests):
    """Return name to pod for everything that runs."""
    kinds = {"Deployment", "StatefulSet"}
    return {each["metadata"]["name"]: each["spec"]["template"] for each in manifests if each["kind"] in kinds}


def kustomization():
    return yaml.safe_load((DEPLOY / "kubernetes/kustomization.yaml").read_text())


def config_maps():
    """Return name to values for each config map that the kustomization makes from literals."""
    made = kustomization()["configMapGenerator"]
    return {each["name"]: dict(line.split("=", 1) for line in each["literals"]) for each in made}


def environment(container):
    """Return what a container sees, with a word in place of each secret."""
    known = config_maps()
    environ = {}
    for each in container.get("envFrom", []):
        environ |= known[each["configMapRef"]["name"]]
    for each in container.get("env", []):
        environ[each["name"]] = re.sub(r"\$\((\w+)\)", lambda m: environ[m[1]], each.get("value", "secret"))
    return environ


def health(service):
    """Return the port and the path at which a service of compose.yaml is asked for its health."""
    [(port, path)] = re.findall(r"http://127\.0\.0\.1:(\d+)(/[\w/]*)", str(service["healthcheck"]["test"]))
    return int(port), path
