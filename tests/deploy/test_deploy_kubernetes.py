"""The manifests: what Kubernetes says of them, and what we ask of them."""

import base64
import re
import shutil
import subprocess

import kubernetes_validate
import pytest
import yaml

from deploy.files import DEPLOY, config_maps, kustomization, read_manifests, read_variables, tool, workloads

KUBERNETES = DEPLOY / "kubernetes"
VERSIONS = ["1.30", "1.37"]
MANIFESTS = read_manifests()
PODS = workloads(MANIFESTS)
CONTAINERS = [
    (pod, each["name"], each)
    for pod, template in PODS.items()
    for each in [*template["spec"].get("initContainers", []), *template["spec"]["containers"]]
]
NAMES = [f"{pod}-{name}" for pod, name, _ in CONTAINERS]
LONG_RUNNING = [(pod, each) for pod, template in PODS.items() for each in template["spec"]["containers"]]


def label(manifest):
    return f"{manifest['kind']}/{manifest['metadata']['name']}"


def find(kind, name):
    return next(each for each in MANIFESTS if (each["kind"], each["metadata"]["name"]) == (kind, name))


@pytest.fixture(scope="module")
def rendered(tmp_path_factory):
    """What `kubectl apply -k` would send."""
    copy = tmp_path_factory.mktemp("deploy") / "deploy"
    shutil.copytree(DEPLOY, copy)
    example = read_variables(copy / "kubernetes/secrets.env.example")
    (copy / "kubernetes/secrets.env").write_text("".join(f"{name}=of-{name}\n" for name in example))
    command = [tool("kubectl"), "kustomize", str(copy / "kubernetes")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    return list(yaml.safe_load_all(done.stdout))


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("manifest", MANIFESTS, ids=label)
def test_a_manifest_fits_its_kind(manifest, version):
    kubernetes_validate.validate(manifest, version, strict=True)


@pytest.mark.parametrize("version", VERSIONS)
def test_what_does_not_fit_its_kind_is_seen(version):
    spoiled = yaml.safe_load(yaml.safe_dump(find("Deployment", "keynet")))
    spoiled["spec"]["template"]["spec"]["containers"][0]["readynessProbe"] = {}
    with pytest.raises(kubernetes_validate.ValidationError, match="readynessProbe"):
        kubernetes_validate.validate(spoiled, version, strict=True)


def test_everything_in_the_directory_is_rendered(rendered):
    listed = {name for name in kustomization()["resources"] if name.endswith(".yaml")}
    assert listed == {path.name for path in KUBERNETES.glob("*.yaml")} - {"kustomization.yaml"}
    found = {(each["kind"], each["metadata"]["name"]) for each in rendered}
    assert {(each["kind"], each["metadata"]["name"]) for each in MANIFESTS} < found


@pytest.mark.parametrize("version", VERSIONS)
def test_what_is_rendered_fits_too_and_is_in_one_namespace(rendered, version):
    for each in rendered:
        kubernetes_validate.validate(each, version, strict=True)
        assert each["kind"] == "Namespace" or each["metadata"]["namespace"] == "keynet"


def test_a_reference_that_is_rendered_leads_to_what_is_rendered(rendered):
    there = {(each["kind"], each["metadata"]["name"]): each for each in rendered}
    for name, pod in workloads(rendered).items():
        for container in [*pod["spec"].get("initContainers", []), *pod["spec"]["containers"]]:
            for each in container.get("envFrom", []):
                assert ("ConfigMap", each["configMapRef"]["name"]) in there, name
            for each in container.get("env", []):
                if "valueFrom" in each:
                    key = each["valueFrom"]["secretKeyRef"]
                    value = base64.b64decode(there["Secret", key["name"]]["data"][key["key"]]).decode()
                    assert value == f"of-{key['key']}"
        for volume in pod["spec"].get("volumes", []):
            if "configMap" in volume:
                assert ("ConfigMap", volume["configMap"]["name"]) in there, name


def test_our_images_come_from_the_place_that_the_kustomization_names(rendered):
    images = {container["image"] for pod in workloads(rendered).values() for container in pod["spec"]["containers"]}
    ours = {image for image in images if image.startswith("registry.example.com/")}
    assert {image.rpartition("/")[2] for image in ours} == {"keynet-server:0.9.0", "keynet-mlflow:3.17.2"}


def test_without_the_passwords_nothing_is_rendered(tmp_path):
    shutil.copytree(DEPLOY, tmp_path / "deploy", ignore=shutil.ignore_patterns("secrets.env"))
    command = [tool("kubectl"), "kustomize", str(tmp_path / "deploy/kubernetes")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode != 0
    assert "secrets.env" in done.stderr


def test_no_secret_is_written_down():
    assert set(read_variables(KUBERNETES / "secrets.env.example").values()) == {""}
    assert not any(each["kind"] == "Secret" for each in MANIFESTS)
    for pod, name, container in CONTAINERS:
        for each in container.get("env", []):
            assert not re.search(r"://\w+:(?!\$\()[^@\s]+@", each.get("value", "")), (pod, name)
            if re.search("PASS|SECRET|TOKEN", each["name"]):
                assert "secretKeyRef" in each["valueFrom"], (pod, name)


def test_every_reference_has_its_key_and_every_secret_its_reader():
    secrets = set(read_variables(KUBERNETES / "secrets.env.example"))
    used = set()
    for pod, name, container in CONTAINERS:
        for each in container.get("envFrom", []):
            assert each["configMapRef"]["name"] in config_maps(), (pod, name)
        for each in container.get("env", []):
            if "valueFrom" in each:
                reference = each["valueFrom"]["secretKeyRef"]
                assert reference["name"] == kustomization()["secretGenerator"][0]["name"]
                used.add(reference["key"])
    assert used == secrets


@pytest.mark.parametrize(
    ("pod", "name", "container"), CONTAINERS, ids=lambda each: each if isinstance(each, str) else ""
)
def test_a_container_is_as_restricted_as_its_namespace_demands(pod, name, container):
    around, own = PODS[pod]["spec"]["securityContext"], container["securityContext"]
    assert around["runAsNonRoot"] is True
    assert around["runAsUser"] >= 999
    assert around["seccompProfile"] == {"type": "RuntimeDefault"}
    assert own["allowPrivilegeEscalation"] is False
    assert own["capabilities"] == {"drop": ["ALL"]}
    assert PODS[pod]["spec"]["automountServiceAccountToken"] is False
    assert not {"hostNetwork", "hostPID", "hostIPC"} & set(PODS[pod]["spec"])
    if container["image"] in {"keynet-server", "keynet-mlflow"}:
        assert own["readOnlyRootFilesystem"] is True
    assert find("Namespace", "keynet")["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"


@pytest.mark.parametrize(
    ("pod", "name", "container"), CONTAINERS, ids=lambda each: each if isinstance(each, str) else ""
)
def test_a_container_says_what_it_needs_and_how_much_it_gets(pod, name, container):
    assert {"cpu", "memory"} == set(container["resources"]["requests"])
    assert "memory" in container["resources"]["limits"]
    assert container["image"] in {"keynet-server", "keynet-mlflow"} or not container["image"].endswith(":latest")
    writable = {each["mountPath"] for each in container.get("volumeMounts", [])}
    assert not container["securityContext"].get("readOnlyRootFilesystem") or name == "buckets" or "/tmp" in writable


@pytest.mark.parametrize(("pod", "container"), LONG_RUNNING, ids=[pod for pod, _ in LONG_RUNNING])
def test_a_container_is_watched_on_a_port_it_has(pod, container):
    ports = {each["name"] for each in container["ports"]}
    for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
        how = container[probe]
        asked = how.get("httpGet") or how.get("tcpSocket")
        assert (asked["port"] in ports) if asked else how["exec"]["command"], probe
    startup = container["startupProbe"]
    assert startup["periodSeconds"] * startup["failureThreshold"] >= 120, "a first start may be slow"


def test_no_pod_is_given_the_addresses_of_services_as_variables():
    for name, template in PODS.items():
        assert template["spec"]["enableServiceLinks"] is False, name


def test_a_service_leads_to_a_port_of_the_pod_it_names():
    services = [each for each in MANIFESTS if each["kind"] == "Service"]
    assert {each["metadata"]["name"] for each in services} == set(PODS)
    for service in services:
        name = service["metadata"]["name"]
        assert service["spec"]["selector"].items() <= PODS[name]["metadata"]["labels"].items()
        ports = {port["name"]: port["containerPort"] for port in PODS[name]["spec"]["containers"][0]["ports"]}
        assert {port["targetPort"]: port["port"] for port in service["spec"]["ports"]} == ports


def test_a_selector_finds_the_pods_of_its_workload():
    for each in MANIFESTS:
        if each["kind"] in {"Deployment", "StatefulSet"}:
            wanted = each["spec"]["selector"]["matchLabels"]
            assert wanted.items() <= each["spec"]["template"]["metadata"]["labels"].items()


def test_what_is_mounted_is_there():
    for name, template in PODS.items():
        owner = next(each for each in MANIFESTS if each.get("spec", {}).get("template") is template)
        there = {each["name"] for each in template["spec"].get("volumes", [])}
        there |= {each["metadata"]["name"] for each in owner["spec"].get("volumeClaimTemplates", [])}
        for _, _, container in (each for each in CONTAINERS if each[0] == name):
            assert {each["name"] for each in container.get("volumeMounts", [])} <= there, name


def test_several_servers_stand_on_what_they_can_share():
    server = find("Deployment", "keynet")
    told = config_maps()["keynet"] | {
        each["name"]: each.get("value", "") for each in server["spec"]["template"]["spec"]["containers"][0]["env"]
    }
    assert server["spec"]["replicas"] > 1
    assert told["KEYNET_DATABASE_URL"].startswith("postgresql")
    assert told["KEYNET_STORE"].startswith("s3://")
    assert told["KEYNET_SERVING_REPOSITORY"].startswith("s3://")
    assert told["RABBIT_ENDPOINT_URL"].startswith("amqp://")
    assert find("PodDisruptionBudget", "keynet")["spec"]["minAvailable"] < server["spec"]["replicas"]


def test_one_model_server_is_behind_the_one_address_that_is_asked_to_load():
    assert find("Deployment", "triton")["spec"]["replicas"] == 1
