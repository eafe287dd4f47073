"""Claims: a model is acted on by one server at a time, for as long as that server lives and is heard of."""

from __future__ import annotations

import subprocess
import sys
import threading

import pytest

from keynet_server._claims import open_claims
from keynet_server._database import open_database
from keynet_server._errors import ClaimMissing, JournalUnavailable

HOLD = """
import sys
from keynet_server._claims import open_claims
from keynet_server._database import open_database
with open_claims(open_database(sys.argv[1])).hold("times") as claim:
    print("held" if claim else "not held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def claims(database):
    return open_claims(database)


@pytest.fixture
def servers(postgresql):
    """Return the claims of two servers on one database."""
    url = postgresql.database()
    engines = [open_database(url) for _ in range(2)]
    yield [open_claims(engine) for engine in engines]
    for engine in engines:
        engine.dispose()


def is_free(claims, subject="times"):
    with claims.hold(subject) as claim:
        return claim is not None


def test_a_claim_that_nobody_else_has_is_had_again_and_again(claims):
    for subject in ("times", "times", "other", None):
        with claims.hold(subject) as claim:
            claim.require()


def test_several_models_are_held_at_once(claims):
    with claims.hold("one") as one, claims.hold("two") as two:
        one.require()
        two.require()


def test_what_goes_wrong_while_a_model_is_held_is_told_and_frees_it(claims):
    with pytest.raises(ZeroDivisionError), claims.hold("times"):
        raise ZeroDivisionError
    assert is_free(claims)


def test_a_model_that_one_server_holds_is_not_anothers_and_others_are(servers):
    ours, theirs = servers
    with ours.hold("times") as claim:
        assert claim is not None
        assert not is_free(theirs)
        assert not is_free(ours), "nor a second time this server's own"
        assert is_free(theirs, "other")
        claim.require()
    assert is_free(theirs)


def test_many_claims_use_no_more_connections_than_are_held_at_once(servers, postgresql):
    ours, theirs = servers
    for number in range(100):
        with ours.hold(f"model-{number}"), theirs.hold(f"model-{number}") as theirs_too:
            assert theirs_too is None
    assert ours._engine.pool.checkedin() == 1


def test_of_servers_that_want_a_model_at_once_one_gets_it(servers):
    got, together = [], threading.Barrier(8)

    def want(claims):
        together.wait(30)
        with claims.hold("times") as claim:
            got.append(claim is not None)
            together.wait(30)

    threads = [threading.Thread(target=want, args=[servers[number % 2]]) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sorted(got) == [False] * 7 + [True]


def test_a_server_that_is_killed_holds_nothing(postgresql, eventually):
    url = postgresql.database()
    command = [sys.executable, "-c", HOLD, url]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout.readline() == "held\n"
        database = open_database(url)
        ours = open_claims(database)
        assert not is_free(ours)
        server.kill()
        eventually(lambda: is_free(ours), timeout_s=30.0)
        database.dispose()


def test_a_claim_whose_connection_was_ended_is_lost_and_stays_lost(servers, postgresql):
    ours, theirs = servers
    with ours.hold("times") as claim:
        end_other_sessions(theirs._engine)
        for _ in range(2):
            with pytest.raises(ClaimMissing, match="times"):
                claim.require()
        with theirs.hold("times") as taken:
            assert taken is not None
            with pytest.raises(ClaimMissing):
                claim.require()
    assert is_free(ours)


def test_a_claim_does_not_survive_its_database(servers, postgresql):
    ours, theirs = servers
    with ours.hold("times") as claim:
        postgresql.kill()
        with pytest.raises(ClaimMissing):
            claim.require()
        with pytest.raises(JournalUnavailable, match="does not answer"):
            is_free(theirs)
        postgresql.start()
        with pytest.raises(ClaimMissing):
            claim.require()
        assert is_free(theirs)
    assert is_free(ours)


def end_other_sessions(engine):
    with engine.connect() as connection:
        connection.exec_driver_sql(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )
