"""Where RabbitMQ is: URLs as the predecessor's users set them, and passwords that nobody sees."""

from __future__ import annotations

import traceback

import pytest

from keynet_core import (
    CoreSettings,
    HttpPublisher,
    MissingDependency,
    RabbitAddress,
    RabbitPublisher,
    Secret,
    SettingsInvalid,
    read_settings,
    to_publisher,
)


def address(url):
    return RabbitAddress.from_url(Secret(url))


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("amqp://h", "amqp://h:5672/%2F"),
        ("amqp://h/", "amqp://h:5672/%2F"),
        ("amqp://h//", "amqp://h:5672/%2F"),
        ("amqp://h/%2F", "amqp://h:5672/%2F"),
        ("amqp://h:1234/models", "amqp://h:1234/models"),
        ("amqp://h/a%2Fb", "amqp://h:5672/a%2Fb"),
        ("amqps://h/models", "amqps://h:5671/models"),
        ("amqp://u:hunter2@[::1]:99/v", "amqp://[::1]:99/v"),
        ("AMQP://H/v?heartbeat=60&blocked_connection_timeout=9", "amqp://h:5672/v"),
    ],
)
def test_a_url_is_taken_apart_and_shown_without_who_asks(url, shown):
    assert str(address(url)) == shown


def test_user_and_password_are_decoded_and_the_password_is_masked():
    told = address("amqp://us%40er:p%2Fa%3As%23@h")
    assert (told.user, told.password) == ("us@er", Secret("p/a:s#"))
    assert "p/a" not in f"{told} {told!r}"


def test_without_a_user_it_is_rabbitmqs_own_guest():
    assert (address("amqp://h").user, address("amqp://h").password) == ("guest", Secret("guest"))
    assert address("amqp://u:@h").password == Secret("")


def test_certificates_are_named_as_rabbitmq_names_them():
    told = address("amqps://h?cacertfile=/ca.pem&certfile=/c.pem&keyfile=/k.pem")
    assert (told.ca_file, told.certificate_file, told.key_file) == ("/ca.pem", "/c.pem", "/k.pem")


def test_a_certificate_that_cannot_be_read_is_the_settings_fault():
    url = Secret("amqps://u:hunter2@h?cacertfile=/no/such.pem")
    with pytest.raises(SettingsInvalid, match="certificates for RabbitMQ at amqps://h:5671"):
        to_publisher(CoreSettings(rabbit_url=url))


@pytest.mark.parametrize(
    "url",
    [
        "hunter2",
        "http://u:hunter2@h",
        "amqp://",
        "amqp://u:hunter2@",
        "amqp://u:hunter2/x@h",
        "amqp://u:hunter2#x@h",
        "amqp://u:12?hunter2@h",
        "amqp://u:12/hunter2@h",
        "amqp://u:12/hunter2@h:5672",
        "amqp://u:hunter2@h:0",
        "amqp://u:hunter2@h:99999",
        "amqp://u:hunter2@[h",
        "amqp://u:hunter2@h x",
        "amqp://u:hunter2@h\x00",
        "amqp://u:hunter2@h/a/b",
        "amqp://u:hunter2@h?verify=verify_none",
    ],
)
def test_what_is_no_address_is_refused_and_nothing_of_it_is_shown(url):
    with pytest.raises(SettingsInvalid, match="RABBIT_ENDPOINT_URL cannot be used") as caught:
        read_settings(CoreSettings, {"RABBIT_ENDPOINT_URL": url})
    assert "hunter2" not in "".join(traceback.format_exception(caught.value))


@pytest.mark.parametrize("topic", ["a b", "a*", "#", "amq.topic", "x" * 201, "é" * 101, "a\tb"])
def test_what_amqp_reserves_or_reads_as_a_pattern_is_no_topic(topic):
    with pytest.raises(SettingsInvalid, match="RABBIT_MODEL_UPLOAD_TOPIC cannot be used"):
        read_settings(CoreSettings, {"RABBIT_MODEL_UPLOAD_TOPIC": topic})


@pytest.mark.parametrize("topic", ["keynet.models", "model-upload", "Team/Models:upload", "모델", "x" * 200])
def test_a_name_is_a_topic(topic):
    assert read_settings(CoreSettings, {"RABBIT_MODEL_UPLOAD_TOPIC": topic}).rabbit_topic == topic


def test_with_a_broker_events_go_there_whatever_server_is_known(tmp_path):
    settings = read_settings(
        CoreSettings, {"RABBIT_ENDPOINT_URL": "amqp://u:hunter2@h/v", "KEYNET_URL": "http://h"}, home=tmp_path
    )
    assert to_publisher(settings) == RabbitPublisher(address=address("amqp://u:hunter2@h/v"), topic="keynet.models")
    assert "hunter2" not in repr(settings) + repr(to_publisher(settings))


def test_without_a_broker_events_go_to_the_server(tmp_path):
    settings = read_settings(CoreSettings, {"RABBIT_ENDPOINT_URL": " ", "KEYNET_URL": "http://h"}, home=tmp_path)
    assert to_publisher(settings) == HttpPublisher(url="http://h")


WITHOUT_PIKA = """
import sys
sys.modules["pika"] = None
from keynet_core import CoreSettings, MissingDependency, Secret, to_publisher
try:
    to_publisher(CoreSettings(rabbit_url=Secret("amqp://h")))
except MissingDependency as error:
    print(error)
"""


def test_without_pika_the_line_that_installs_it_is_told_before_anything_is_sent(python):
    assert issubclass(MissingDependency, ImportError)
    told = python(WITHOUT_PIKA).stdout
    assert "pip install 'keynet-core[rabbitmq]'" in told
