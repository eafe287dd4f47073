"""The network policies, evaluated: what must be reached is, and what must not be is not."""

import pytest

from deploy.files import addresses, environment, read_manifests, workloads

MANIFESTS = read_manifests()
PODS = workloads(MANIFESTS)
POLICIES = [each["spec"] for each in MANIFESTS if each["kind"] == "NetworkPolicy"]
CLIENT = "a client's namespace"
STRANGER = "another namespace"
NAMESPACES = {CLIENT: {"keynet.io/client": "true"}, STRANGER: {"keynet.io/client": "false"}}


def matches(selector, labels):
    return selector.get("matchLabels", {}).items() <= labels.items()


def is_peer(peer, who):
    """Whether a peer of a rule is this pod, or everything in this namespace."""
    if "namespaceSelector" in peer:
        return who in NAMESPACES and matches(peer["namespaceSelector"], NAMESPACES[who])
    return who in PODS and matches(peer["podSelector"], PODS[who]["metadata"]["labels"])


def lets(direction, here, there, port):
    """Whether the policies on `here` let a connection with `there` pass; no policy on it lets everything pass."""
    if here in NAMESPACES:
        return True
    labels = PODS[here]["metadata"]["labels"]
    about = [each for each in POLICIES if direction in each["policyTypes"] and matches(each["podSelector"], labels)]
    side = "from" if direction == "Ingress" else "to"
    rules = [rule for each in about for rule in each.get(direction.lower(), [])]
    return not about or any(
        any(is_peer(peer, there) for peer in rule[side]) and port in {each["port"] for each in rule["ports"]}
        for rule in rules
    )


def reaches(source, target, port):
    return lets("Egress", source, target, port) and lets("Ingress", target, source, port)


def asked():
    """Each (pod, host, port) that stands in what a container is told."""
    for name, template in PODS.items():
        for container in [*template["spec"].get("initContainers", []), *template["spec"]["containers"]]:
            told = [*environment(container).values(), *container.get("args", []), *container.get("command", [])]
            yield from ((name, host, port) for host, port in addresses(told))


ASKED = sorted(set(asked()))


@pytest.mark.parametrize(("source", "target", "port"), ASKED)
def test_a_pod_reaches_what_it_is_told_to_ask(source, target, port):
    assert reaches(source, target, port)


def test_what_is_asked_is_found_in_the_manifests():
    assert {("keynet", "postgresql", 5432), ("keynet", "triton", 8000), ("triton", "minio", 9000)} < set(ASKED)
    assert len(ASKED) == 7


@pytest.mark.parametrize(
    ("target", "port"),
    [("keynet", 8700), ("mlflow", 5000), ("minio", 9000), ("rabbitmq", 5672), ("triton", 8000), ("triton", 8001)],
)
def test_a_client_reaches_what_trainings_and_functions_ask_and_a_stranger_does_not(target, port):
    assert reaches(CLIENT, target, port)
    assert not reaches(STRANGER, target, port)


@pytest.mark.parametrize("source", [CLIENT, STRANGER, "triton", "rabbitmq", "minio"])
def test_the_database_is_reached_by_those_who_keep_something_in_it_alone(source):
    assert not reaches(source, "postgresql", 5432)


@pytest.mark.parametrize("source", ["postgresql", "minio", "rabbitmq"])
def test_what_keeps_the_data_asks_nobody(source):
    for target in set(PODS) - {source}:
        for port in (5432, 9000, 5672, 8000, 8700, 5000):
            assert not reaches(source, target, port)


def test_every_pod_may_ask_for_names():
    policy = next(each for each in MANIFESTS if each["kind"] == "NetworkPolicy" and each["metadata"]["name"] == "names")
    assert policy["spec"]["podSelector"] == {}
    assert {(each["port"], each["protocol"]) for each in policy["spec"]["egress"][0]["ports"]} == {
        (53, "UDP"),
        (53, "TCP"),
    }
