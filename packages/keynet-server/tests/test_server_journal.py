"""The journal: one contract, on SQLite and on PostgreSQL."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone

import pytest

from keynet_core import Event, EventInvalid
from keynet_server._database import migrate
from keynet_server._errors import ClaimMissing, DeploymentUnknown, EventUnknown
from keynet_server._journal import SHOWN_DEPLOYMENTS, Journal
from keynet_server._records import Request
from keynet_server._tables import UtcTime


def received(publishing, journal, **options):
    event = publishing.publish(**options).to_event()
    assert journal.receive(event)
    return event


def request_for(event):
    data = event.data
    return Request(
        event_id=event.id,
        model=data["model"],
        digest=data["digest"],
        model_version=data["model_version"],
        run_id=data["run_id"],
        requested_by=event.source,
    )


@pytest.fixture
def journal(database, tmp_path):
    migrate(database, tmp_path / "migrate.lock")
    return Journal(database)


def test_an_event_is_written_down_once(publishing, journal):
    event = received(publishing, journal)
    assert journal.receive(event) is False
    assert [each.id for each in journal.unfinished()] == [event.id]
    assert journal.event(event.id).received_at.utcoffset() == timedelta(0)
    assert "body" not in journal.event(event.id).to_dict()


def test_unfinished_events_come_in_the_order_they_were_received(publishing, journal):
    ids = [received(publishing, journal, factor=float(factor)).id for factor in (3, 1, 2)]
    assert [each.id for each in journal.unfinished()] == ids
    journal.finish(ids[0], "failed", "x" * 9000)
    assert [each.id for each in journal.unfinished()] == ids[1:]
    assert len(journal.event(ids[0]).reason) == 4000


def test_what_is_not_known_says_so(journal):
    with pytest.raises(EventUnknown):
        journal.event("nope")
    with pytest.raises(DeploymentUnknown):
        journal.history("nope")
    with pytest.raises(DeploymentUnknown):
        journal.find("nope", 1)
    assert journal.live("nope") is None


def test_a_deployment_begun_twice_for_one_event_is_one(publishing, journal):
    request = request_for(received(publishing, journal))
    assert journal.begin(request) == journal.begin(request)


def test_models_show_what_is_live_and_what_was_tried_last(publishing, journal):
    first, second = (journal.begin(request_for(received(publishing, journal, factor=f))) for f in (1.0, 2.0))
    journal.deployed(first, "loaded")
    journal.failed(second, "no", None)
    [state] = journal.models()
    assert (state.live.number, state.last.number, state.last.state) == (1, 2, "failed")
    assert journal.find("times", 2).reason == "no"
    assert [each.number for each in journal.recent()] == [2, 1]


def test_times_are_aware_and_a_naive_one_is_refused():
    kept = UtcTime()
    noon = datetime(2026, 1, 1, 12, tzinfo=timezone(timedelta(hours=2)))
    assert kept.process_bind_param(noon, None) == datetime(2026, 1, 1, 10, tzinfo=UTC)
    assert kept.process_result_value(noon, None).isoformat() == "2026-01-01T10:00:00+00:00"
    with pytest.raises(ValueError, match="time zone"):
        kept.process_bind_param(noon.replace(tzinfo=None), None)


@pytest.mark.parametrize(
    ("version", "served"),
    [("7", "7"), ("007", "7"), (None, "3"), ("0", "3"), ("-1", "3"), ("champion", "3"), ("²", "3"), ("9" * 30, "3")],
)
def test_only_a_positive_registry_version_is_served_under_its_number(publishing, journal, version, served):
    for factor in (1.0, 2.0):
        journal.begin(request_for(received(publishing, journal, factor=factor)))
    event = received(publishing, journal, factor=3.0, version=version)
    assert journal.begin(request_for(event)).served_version == served


def test_a_number_nobody_chose_is_above_every_version_that_was_served(publishing, journal):
    versions = []
    for factor, version in ((1.0, "7"), (2.0, None), (3.0, "3"), (4.0, None)):
        event = received(publishing, journal, factor=factor, version=version)
        versions.append(journal.begin(request_for(event)).served_version)
    assert versions == ["7", "8", "3", "9"]


def test_a_failure_that_comes_too_late_changes_nothing(publishing, journal):
    event = received(publishing, journal)
    deployment = journal.begin(request_for(event))
    journal.deployed(deployment, "loaded")
    journal.failed(deployment, "too late", None)
    assert journal.live("times").reason is None
    assert journal.event(event.id).outcome == "deployed"


def test_a_long_history_says_that_it_is_longer(publishing, journal):
    event = received(publishing, journal)
    for number in range(SHOWN_DEPLOYMENTS + 1):
        assert journal.receive(replace(event, id=str(number)))
        journal.begin(replace(request_for(event), event_id=str(number)))
        if number == SHOWN_DEPLOYMENTS - 1:
            assert journal.newest("times").to_dict()["truncated"] is False
    told = journal.newest("times").to_dict()
    assert (len(told["deployments"]), told["deployments"][0]["number"]) == (SHOWN_DEPLOYMENTS, SHOWN_DEPLOYMENTS + 1)
    assert told["truncated"] is True


def waiting(journal, subject, count, first=0):
    """Receive events that nobody needs to understand."""
    ids = [f"{subject}-{number}" for number in range(first, first + count)]
    for each in ids:
        assert journal.receive(Event(id=each, source="/x", type="any", subject=subject, data={}))
    return ids


def test_models_with_events_that_wait_come_by_their_first_event(journal):
    waiting(journal, "b", 1)
    waiting(journal, "a", 2)
    waiting(journal, "b", 1, first=1)
    waiting(journal, None, 1)
    journal.finish("a-0", "failed", "no")
    told = journal.backlogs(limit=10)
    assert [each.subject for each in told] == ["b", "a", None]
    assert [each.last - each.first for each in told] == [3, 0, 0]
    assert [each.subject for each in journal.backlogs(after=told[0].first, limit=1)] == ["a"]
    assert journal.backlogs(after=told[2].first, limit=1) == []


@pytest.mark.parametrize("subject", ["a", None])
def test_events_of_a_model_that_wait_come_oldest_first_and_no_more_than_asked_for(journal, subject):
    waiting(journal, "other", 2)
    ids = waiting(journal, subject, 4)
    journal.finish(ids[1], "failed", "no")
    assert [each.id for each in journal.waiting(subject, limit=2)] == [ids[0], ids[2]]
    assert journal.newest_waiting(subject).id == ids[3]
    assert journal.newest_waiting("nobody") is None


def test_all_events_that_were_overtaken_fail_at_once_and_no_others(publishing, journal):
    begun = received(publishing, journal, factor=1.0)
    deployment = journal.begin(request_for(begun))
    early = waiting(journal, "times", 3)
    elsewhere = waiting(journal, "other", 1)
    newest = received(publishing, journal, factor=2.0)
    journal.deployed(journal.begin(request_for(newest)), "loaded")
    late = waiting(journal, "times", 1, first=3)
    count, deployments = journal.fail_overtaken("times", "overtaken")
    assert (count, [each.number for each in deployments]) == (4, [deployment.number])
    assert {journal.event(each).outcome for each in (begun.id, *early)} == {"failed"}
    assert journal.find("times", deployment.number).reason == "overtaken"
    assert [journal.event(each).outcome for each in (*elsewhere, *late)] == [None, None]
    assert journal.live("times").event_id == newest.id


def test_nothing_is_overtaken_while_nothing_succeeded(journal):
    ids = waiting(journal, "a", 2)
    journal.finish(ids[1], "failed", "no")
    assert journal.fail_overtaken("a", "overtaken") == (0, [])


def test_an_outcome_is_written_once(publishing, journal):
    event = received(publishing, journal)
    journal.finish(event.id, "already deployed", "first")
    journal.finish(event.id, "failed", "second")
    assert (journal.event(event.id).outcome, journal.event(event.id).reason) == ("already deployed", "first")


def test_a_server_that_was_cut_off_cannot_bring_back_what_another_replaced(publishing, journal):
    first, second = (journal.begin(request_for(received(publishing, journal, factor=f))) for f in (1.0, 2.0))
    journal.deployed(first, "loaded by the other")
    journal.deployed(second, "loaded by the other")
    with pytest.raises(ClaimMissing):
        journal.deployed(first, "loaded late")
    journal.postponed(first, "too late as well")
    assert [(each.number, each.state) for each in journal.history("times")] == [(2, "deployed"), (1, "superseded")]
    assert journal.find("times", 1).engine_answer == "loaded by the other"
    assert journal.find("times", 1).reason is None


def test_what_an_operator_unloaded_is_live_no_more_and_keeps_its_line(publishing, journal):
    deployment = journal.begin(request_for(received(publishing, journal)))
    journal.deployed(deployment, "loaded")
    [asked] = waiting(journal, "times", 1)
    journal.unloaded(deployment, asked, who="ada", why="too slow")
    assert journal.live("times") is None
    assert journal.event(asked).outcome == "unloaded"
    assert journal.find("times", 1).reason == "unloaded by ada: too slow"
    assert journal.find("times", 1).state == "unloaded"


def test_words_that_no_database_takes_are_kept_but_for_a_character(publishing, journal):
    deployment = journal.begin(replace(request_for(received(publishing, journal)), why="a\0b", requested_by="\ud800"))
    assert (deployment.why, deployment.requested_by) == ("a\ufffdb", "?")
    journal.failed(deployment, "it said \0 and 모델", "answer \0")
    assert journal.find("times", 1).reason == "it said \ufffd and 모델"
    assert journal.event(deployment.event_id).reason == "it said \ufffd and 모델"


def test_an_event_no_database_can_hold_is_invalid_and_not_a_failure_of_the_database(journal):
    event = Event(id="a\0b", source="/x", type="any", subject="a", data={})
    with suppress(EventInvalid):
        journal.receive(event)
        assert journal.event(event.id), "SQLite holds it"


def test_the_newest_deployments_are_by_receipt_whatever_the_clock_said(publishing, database, journal):
    now = [datetime(2026, 1, 1, tzinfo=UTC)]
    jumping = Journal(database, clock=lambda: now[0])
    for factor, days in ((1.0, 400), (2.0, -800), (3.0, 5)):
        now[0] += timedelta(days=days)
        jumping.deployed(jumping.begin(request_for(received(publishing, jumping, factor=factor))), "loaded")
    assert [each.number for each in jumping.recent()] == [3, 2, 1]
    assert jumping.live("times").number == 3


def test_models_come_in_one_alphabet_on_every_database(publishing, journal):
    for name in ("b", "B", "a-1", "a.1", "a", "Z"):
        journal.begin(request_for(received(publishing, journal, name=name)))
    assert [each.name for each in journal.models()] == sorted(["b", "B", "a-1", "a.1", "a", "Z"])
