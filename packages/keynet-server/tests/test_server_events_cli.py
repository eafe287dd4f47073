"""`keynet events` and its routes: what was received, what failed, what lies dead, and acting on it again."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace

import pytest

from consuming import PATIENT_S, TOKEN
from keynet_core import KeynetError, ModelPublished, Secret, upload_package
from keynet_server._client import ServerClient
from keynet_server._errors import EventConflict, EventUnknown, ServerRefused
from keynet_server._replay import replay_failed

KEYNET = [sys.executable, "-c", "from keynet_server._cli import main; main()"]
OURS = ("KEYNET", "TRITON", "AWS", "RABBIT")


@pytest.fixture
def keynet(home):
    """Return a function that runs the command, on a home or against a server."""

    def keynet(*arguments, **environ):
        clean = {name: text for name, text in os.environ.items() if not name.startswith(OURS)}
        surroundings = clean | {"KEYNET_HOME": str(home)} | environ
        return subprocess.run(
            [*KEYNET, "events", *arguments],
            env=surroundings,
            capture_output=True,
            text=True,
            timeout=2 * PATIENT_S,
            check=False,
        )

    return keynet


@pytest.mark.parametrize("command", ["list", "show", "dead", "replay"])
def test_every_command_has_examples_in_its_help(keynet, command):
    assert f"Examples:\n    keynet events {command}" in keynet(command, "--help").stdout


@pytest.fixture
def client(to_services, serve):
    return ServerClient(url=serve(to_services()), token=Secret(TOKEN), timeout_s=PATIENT_S)


@pytest.fixture
def listening(to_services, serve, broker):
    """Return a client of a server that listens to a broker."""
    return ServerClient(url=serve(to_services(broker)), token=Secret(TOKEN), timeout_s=PATIENT_S)


@pytest.fixture
def receive(deployer):
    """Return a function that receives an event and acts on it."""

    def receive(published):
        event = published.to_event()
        deployer.receive(event)
        deployer.deploy(deployer.journal.event(event.id))
        return event

    return receive


@pytest.fixture
def failed(receive, publishing, engine):
    """Return an event whose package the model server refused; it would not any more."""
    engine.refuse = "out of memory"
    event = receive(publishing.publish("times", 2.0))
    engine.refuse = None
    return event


@pytest.fixture
def outcome_of(journal, eventually):
    def outcome_of(event):
        return eventually(lambda: journal.knows(event.id) and journal.event(event.id).outcome, PATIENT_S)

    return outcome_of


def environ_of(client):
    return {"KEYNET_URL": client.url, "KEYNET_TOKEN": TOKEN}


def url_of(broker):
    password = broker.address.password.reveal()
    return str(broker.address).replace("amqp://", f"amqp://{broker.address.user}:{password}@")


def test_events_are_listed_newest_first_with_what_became_of_them(keynet, receive, publishing, failed):
    second = receive(publishing.publish("times", 3.0))
    done = keynet("list", "--json")
    told = json.loads(done.stdout)["events"]
    assert [(each["id"], each["outcome"]) for each in told] == [(second.id, "deployed"), (failed.id, "failed")]
    assert "out of memory" in told[1]["reason"]
    assert [each["id"] for each in json.loads(keynet("list", "--limit", "1", "--json").stdout)["events"]] == [second.id]
    table = keynet("list")
    assert table.stdout.splitlines()[0].split() == ["RECEIVED", "OUTCOME", "MODEL", "ID", "REASON"]
    assert failed.id in table.stdout
    assert "this is what the journal remembers" in table.stderr


def test_the_server_lists_the_same(client, keynet, failed):
    assert client.get("/v1/events")["events"][0]["id"] == failed.id
    assert json.loads(keynet("list", "--json", **environ_of(client)).stdout) == client.get("/v1/events?limit=50")


@pytest.mark.parametrize("limit", ["0", "-1", "1001", "x"])
def test_a_limit_that_makes_no_sense_is_a_problem_with_a_code(client, limit):
    with pytest.raises(ServerRefused, match="limit") as caught:
        client.get(f"/v1/events?limit={limit}")
    assert (caught.value.status, caught.value.problem_code) == (422, "request.invalid")


def test_an_event_is_shown_whole(keynet, client, failed):
    for surroundings in ({}, environ_of(client)):
        told = json.loads(keynet("show", failed.id, "--json", **surroundings).stdout)
        assert told["event"] == json.loads(failed.to_json())
        assert told["outcome"] == "failed"
    shown = keynet("show", failed.id).stdout
    assert f'"digest": "{failed.data["digest"]}"' in shown
    assert f"next: keynet events replay {failed.id}" in shown


def test_an_event_nobody_received_is_4(keynet, client, journal):
    for surroundings in ({}, environ_of(client)):
        done = keynet("show", "a b/c?d#e", **surroundings)
        assert done.returncode == 4
        assert "no event 'a b/c?d#e' was received" in done.stderr


def test_a_failed_event_is_acted_on_again_and_the_journal_keeps_both(keynet, client, failed, engine, eventually):
    done = keynet("replay", failed.id, "--json", **environ_of(client))
    assert json.loads(done.stdout) == {"id": f"{failed.id}/replay/1", "replayed": "event"}
    eventually(lambda: client.get(f"/v1/events/{failed.id}/replay/1")["outcome"] == "deployed", PATIENT_S)
    assert client.get(f"/v1/events/{failed.id}")["outcome"] == "failed"
    assert client.get(f"/v1/events/{failed.id}/replay/1")["event"]["data"] == failed.data
    assert engine.factor() == 2.0


def test_who_replays_what_did_not_fail_is_told_so(keynet, client, failed, eventually):
    keynet("replay", failed.id, **environ_of(client))
    eventually(lambda: client.get(f"/v1/events/{failed.id}/replay/1")["outcome"] == "deployed", PATIENT_S)
    for event_id in (failed.id, f"{failed.id}/replay/1"):
        done = keynet("replay", event_id, **environ_of(client))
        assert done.returncode == 5
        assert f"event {failed.id}/replay/1 did not fail: deployed" in done.stderr
    assert keynet("replay", "no-such", **environ_of(client)).returncode == 4


def test_without_the_token_nothing_is_replayed(keynet, client, failed, journal):
    done = keynet("replay", failed.id, **environ_of(client) | {"KEYNET_TOKEN": "wrong"})
    assert done.returncode == 3
    assert not journal.knows(f"{failed.id}/replay/1")


def test_a_replay_that_fails_is_followed_by_another(deployer, failed, engine):
    engine.refuse = "out of memory"
    first = replay_failed(deployer, failed.id)
    with pytest.raises(EventConflict, match="is still acted on"):
        replay_failed(deployer, failed.id)
    deployer.deploy(deployer.journal.event(first.id))
    second = replay_failed(deployer, first.id)
    assert second.id == f"{failed.id}/replay/2"
    engine.refuse = None
    assert deployer.deploy(deployer.journal.event(second.id)) == "deployed"


def test_what_is_still_acted_on_or_was_no_publication_is_not_replayed(deployer, publishing, receive):
    event = publishing.publish("times", 2.0).to_event()
    deployer.receive(event)
    with pytest.raises(EventConflict, match="is still acted on"):
        replay_failed(deployer, event.id)
    deployer.deploy(deployer.journal.event(event.id))
    receive(publishing.publish("times", 3.0))
    rollback = deployer.request_rollback("times", to=1, who="ada", why=None)
    with pytest.raises(EventConflict, match=r"asked for io\.keynet\.model\.rollback"):
        replay_failed(deployer, rollback.id)
    with pytest.raises(EventUnknown):
        replay_failed(deployer, "no-such")


def test_an_event_whose_package_is_gone_is_not_replayed(deployer, failed, publishing):
    for key in list(publishing.store.list("packages/times/")):
        publishing.store.delete(key)
    with pytest.raises(KeynetError, match="not in this server's store"):
        replay_failed(deployer, failed.id)


def test_without_a_broker_there_are_no_dead_letters_to_see(keynet, client):
    done = keynet("dead", **environ_of(client))
    assert done.returncode == 4
    assert "RABBIT_ENDPOINT_URL" in done.stderr
    with pytest.raises(ServerRefused, match="HTTP alone") as caught:
        client.get("/v1/events/dead")
    assert caught.value.problem_code == "broker.missing"


def test_dead_letters_are_shown_by_the_server_and_by_the_broker_itself(
    keynet, listening, broker, publisher, publishing, eventually
):
    elsewhere = replace(publishing.publish(), digest="sha256:" + "0" * 64).to_event()
    publisher.publish(elsewhere)
    eventually(lambda: listening.get("/v1/events/dead")["dead"] == 1, PATIENT_S)
    (letter,) = listening.get("/v1/events/dead")["letters"]
    assert (letter["id"], letter["subject"], letter["code"]) == (elsewhere.id, "times", "package.elsewhere")
    for surroundings in (environ_of(listening), {"RABBIT_ENDPOINT_URL": url_of(broker)}):
        assert json.loads(keynet("dead", "--json", **surroundings).stdout)["letters"] == [letter]
        shown = keynet("dead", **surroundings).stdout
        assert shown.startswith("1 dead letters in keynet.models.deployer.dead of RabbitMQ at amqp://127.0.0.1")
        assert elsewhere.id in shown
        assert "set the same KEYNET_STORE for training and server" in shown
        assert broker.address.password.reveal() not in shown


def test_a_dead_letter_is_sent_again_once_its_reason_is_mended(
    keynet, listening, publisher, publishing, outcome_of, eventually
):
    package = publishing.package("times", 2.0)
    event = ModelPublished(
        model=package.manifest.name, digest=package.digest, store=publishing.store.url, run_id="r"
    ).to_event()
    publisher.publish(event)
    eventually(lambda: listening.get("/v1/events/dead")["dead"] == 1, PATIENT_S)
    upload_package(package, publishing.store)
    done = keynet("replay", event.id, "--json", **environ_of(listening))
    assert json.loads(done.stdout) == {"id": event.id, "replayed": "dead letter"}
    assert outcome_of(event) == "deployed"
    assert listening.get("/v1/events/dead")["dead"] == 0


def test_one_dead_letter_of_many_is_sent_again_and_the_others_stay(keynet, listening, send, eventually):
    for number in range(5):
        send(json.dumps({"id": f"e-{number}"}).encode())
    send(b"no event", message_id="m-5")
    send(b"nameless")
    eventually(lambda: listening.get("/v1/events/dead")["dead"] == 7, PATIENT_S)
    ids = [letter["id"] for letter in listening.get("/v1/events/dead")["letters"]]
    assert ids[:6] == ["e-0", "e-1", "e-2", "e-3", "e-4", "m-5"]
    assert len(set(ids)) == 7
    assert keynet("replay", "e-2", **environ_of(listening)).returncode == 0
    eventually(lambda: listening.get("/v1/events/dead")["dead"] == 7, PATIENT_S)  # it can still not be taken
    back = [letter["id"] for letter in listening.get("/v1/events/dead")["letters"]]
    assert back == [*(each for each in ids if each != "e-2"), "e-2"]
    assert keynet("replay", "no-such", **environ_of(listening)).returncode == 4


def test_a_broker_that_does_not_answer_is_6(keynet):
    done = keynet("dead", RABBIT_ENDPOINT_URL="amqp://u:hunter2@127.0.0.1:9")
    assert done.returncode == 6
    assert "hunter2" not in done.stderr + done.stdout
    done = keynet("dead", RABBIT_ENDPOINT_URL="amqp://u:hunter2/@h")
    assert done.returncode == 2
    assert "hunter2" not in done.stderr + done.stdout
