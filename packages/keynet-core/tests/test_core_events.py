"""Events as CloudEvents 1.0: read by the SDK, and anything else refused in one way."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta, timezone

import pytest
from cloudevents.core.formats.json import JSONFormat
from cloudevents.core.v1.event import CloudEvent
from hypothesis import given
from hypothesis import strategies as st

from keynet_core import MAX_EVENT_BYTES, Event, EventInvalid, ModelPublished, to_digest, to_model_name

TIME = datetime(2026, 11, 20, 12, 30, 1, 123456, tzinfo=UTC)
TOLD = {"specversion": "1.0", "id": "1", "source": "/s", "type": "t", "data": {}}


def event(**changes):
    return Event(**({"id": "1", "source": "/s", "type": "t", "time": TIME, "data": {"a": [1, "한글"]}} | changes))


def read(**changes):
    return Event.from_json(json.dumps(TOLD | changes).encode())


@pytest.mark.parametrize("subject", [None, "mnist"])
def test_an_event_survives_json(subject):
    assert Event.from_json(event(subject=subject).to_json()) == event(subject=subject)


def test_an_event_made_now_survives_json():
    made = Event(id="1", source="/s", type="t", data={})
    assert Event.from_json(made.to_json()) == made


def test_the_cloudevents_sdk_reads_what_we_write(published):
    ours = published.to_event()
    theirs = JSONFormat().read(CloudEvent, ours.to_json())
    assert theirs.get_specversion() == "1.0"
    assert (theirs.get_id(), theirs.get_source(), theirs.get_type()) == (ours.id, ours.source, ours.type)
    assert (theirs.get_subject(), theirs.get_time()) == ("mnist", ours.time)
    assert (theirs.get_datacontenttype(), theirs.get_data()) == ("application/json", ours.data)


def test_we_read_what_the_cloudevents_sdk_writes():
    attributes = {"id": "7", "source": "/s", "type": "t", "specversion": "1.0", "time": TIME, "extension": "x"}
    theirs = CloudEvent(attributes | {"datacontenttype": "application/json"}, {"a": 1})
    assert Event.from_json(JSONFormat().write(theirs)) == event(id="7", data={"a": 1})


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2026-11-20T12:30:01.123456Z", TIME),
        ("2026-11-20t12:30:01.123456z", TIME),
        ("2026-11-20T12:30:01.123456789Z", TIME),
        ("2026-11-20T21:30:01.123456+09:00", TIME),
        ("2026-11-20 12:30:01", TIME.replace(microsecond=0)),
    ],
)
def test_a_time_is_read_as_utc(text, expected):
    time = read(time=text).time
    assert time == expected
    assert time.utcoffset() == timedelta(0)


def test_a_time_elsewhere_is_written_as_utc():
    seoul = TIME.astimezone(timezone(timedelta(hours=9)))
    assert json.loads(event(time=seoul).to_json())["time"] == "2026-11-20T12:30:01.123456Z"


def test_an_event_without_a_time_happened_now():
    assert abs(read().time - datetime.now(UTC)) < timedelta(minutes=1)


@pytest.mark.parametrize(
    "time",
    ["", "now", 20261120, "20261120", "2026-W47-5", "2026-13-01T00:00:00Z", "0001-01-01T00:00:00+23:00", [], True],
)
def test_what_is_no_time_is_refused(time):
    with pytest.raises(EventInvalid, match="RFC 3339"):
        read(time=time)


@pytest.mark.parametrize("name", ["id", "source", "type", "subject"])
@pytest.mark.parametrize("value", ["", None, 3, [], "x" * 2049, "a\nb", "a\x9bb", "\x00"])
def test_an_attribute_that_is_no_short_plain_text_is_refused(name, value):
    with pytest.raises(EventInvalid, match=f"'{name}' must be text"):
        read(**{name: value})


@pytest.mark.parametrize("name", ["id", "source", "type", "data", "specversion"])
def test_an_event_without_a_required_attribute_is_refused(name):
    with pytest.raises(EventInvalid):
        Event.from_json(json.dumps({key: value for key, value in TOLD.items() if key != name}).encode())


@pytest.mark.parametrize("version", ["0.3", 1.0, None, ["1.0"], "x" * 10_000])
def test_another_version_is_refused_in_a_short_sentence(version):
    with pytest.raises(EventInvalid, match="specversion") as caught:
        read(specversion=version)
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize(
    "text", [b"", b"null", b"[]", b"\xff", b"[" * 100_000, b'{"a":' * 40_000, b"1" * 5000, b'{"specversion":"1.0"']
)
def test_what_is_no_json_object_is_refused(text):
    with pytest.raises(EventInvalid):
        Event.from_json(text)


@pytest.mark.parametrize("value", ["NaN", "Infinity", '"\\ud800"'])
def test_what_others_could_not_read_or_store_is_refused(value):
    text = json.dumps(TOLD).replace("{}", f'{{"a": [{value}]}}').encode()
    with pytest.raises(EventInvalid, match="no JSON"):
        Event.from_json(text)


def test_an_event_may_be_as_large_as_the_limit_and_no_larger():
    room = MAX_EVENT_BYTES - len(event(data={"a": ""}).to_json())
    largest = event(data={"a": "x" * room})
    assert Event.from_json(largest.to_json()) == largest
    with pytest.raises(EventInvalid, match="at most 262144 bytes"):
        event(data={"a": "x" * (room + 1)}).to_json()
    with pytest.raises(EventInvalid, match="at most 262144 bytes"):
        Event.from_json(largest.to_json() + b" ")


@pytest.mark.parametrize("data", [{"a": {1}}, {"a": float("nan")}, {"a": "\ud800"}])
def test_data_that_is_no_json_cannot_be_written(data):
    with pytest.raises(EventInvalid, match="event 1 cannot be written"):
        event(data=data).to_json()


def test_data_that_contains_itself_cannot_be_written():
    data = {}
    data["a"] = data
    with pytest.raises(EventInvalid, match="event 1 cannot be written"):
        event(data=data).to_json()


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(), max_size=10),
    lambda some: st.lists(some, max_size=3) | st.dictionaries(st.text(st.characters(), max_size=5), some, max_size=3),
    max_leaves=8,
)


@given(st.binary(max_size=200) | VALUES.map(json.dumps).map(str.encode))
def test_any_bytes_are_an_event_or_refused(text):
    with pytest.raises(EventInvalid):
        Event.from_json(text)


@given(
    st.fixed_dictionaries(
        {}, optional=dict.fromkeys(("specversion", "id", "source", "type", "subject", "time", "data"), VALUES)
    )
)
def test_an_event_with_any_values_is_read_and_written_again_or_refused(changes):
    try:
        got = read(**changes)
    except EventInvalid:
        return
    assert Event.from_json(got.to_json()) == got


def test_the_same_publication_has_the_same_id_and_another_has_not(published):
    from dataclasses import replace

    first = published.to_event()
    assert first.id == published.to_event().id == "r1/mnist/" + "ab" * 32
    assert replace(published, model_version="4").to_event().id == first.id
    for change in (
        {"run_id": "r2"},
        {"run_id": None},
        {"digest": "sha256:" + "cd" * 32},
        {"model": to_model_name("b")},
    ):
        assert replace(published, **change).to_event().id != first.id


def test_without_a_run_every_publication_is_a_happening_of_its_own(published):
    from dataclasses import replace

    alone = replace(published, run_id=None)
    first, second = alone.to_event(), alone.to_event()
    assert first.id != second.id
    assert all(each.id.endswith("/mnist/" + "ab" * 32) and each.source == "/keynet" for each in (first, second))
    assert Event.from_json(first.to_json()).id == first.id
    assert ModelPublished.from_event(first) == ModelPublished.from_event(second) == alone


def test_a_publication_survives_its_event(published):
    told = published.to_event()
    assert (told.type, told.source, told.subject) == ("io.keynet.model.published.v1", "/mlflow/runs/r1", "mnist")
    assert ModelPublished.from_event(Event.from_json(told.to_json())) == published


def test_a_publication_of_a_later_version_is_read_without_what_it_added(published):
    told = published.to_event()
    told.data["more"] = 1
    assert ModelPublished.from_event(told) == published


@pytest.mark.parametrize(
    "change",
    [
        {"model": "../evil"},
        {"model": None},
        {"model": 3},
        {"digest": None},
        {"digest": "ab"},
        {"store": ""},
        {"store": None},
        {"model_version": 3},
        {"run_id": ""},
        {"experiment": []},
    ],
    ids=str,
)
def test_a_publication_with_a_wrong_value_is_refused(published, change):
    told = published.to_event()
    told.data.update(change)
    with pytest.raises(EventInvalid):
        ModelPublished.from_event(told)


def test_an_event_of_another_type_is_no_publication():
    with pytest.raises(EventInvalid, match=r"event 1 is of type 't'"):
        ModelPublished.from_event(event())


@pytest.mark.parametrize(
    "text", ["sha256:" + "AB" * 32, "sha256:" + "ab" * 31, "md5:" + "ab" * 32, "ab" * 32, None, b"x", "x" * 10_000]
)
def test_what_is_no_digest_is_refused_in_a_short_sentence(text):
    with pytest.raises(EventInvalid, match="is no digest") as caught:
        to_digest(text)
    assert len(str(caught.value)) < 200
