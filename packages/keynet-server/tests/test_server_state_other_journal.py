"""A journal that was lost, or another database by mistake: what is served stays, and numbers begin anew."""

from __future__ import annotations

import pytest

from keynet_core import Outbox
from keynet_server._database import migrate
from keynet_server._deployer import Deployer
from keynet_server._journal import Journal
from keynet_server._worker import Worker


@pytest.fixture
def deploy(publishing):
    def deploy(deployer, factor, **options):
        event = publishing.publish("times", factor, **options).to_event()
        deployer.receive(event)
        return deployer.deploy(deployer.journal.event(event.id))

    return deploy


@pytest.fixture
def anew(database, publishing, repository, engine, tmp_path):
    """Stand on the same store, repository and engine, with an empty journal."""
    migrate(database, tmp_path / "migrate.lock")
    return Deployer(journal=Journal(database), store=publishing.store, repository=repository, engine=engine)


def test_with_an_empty_journal_what_is_served_stays_served(deployer, deploy, anew, engine, home, publishing):
    deploy(deployer, 2.0)
    assert anew.repair_links() == []
    Worker(anew, Outbox(home / "outbox"), publishing.store).run_once()
    assert engine.factor() == 2.0
    assert ("unload", "times") not in engine.calls


@pytest.mark.parametrize("version", [None, "7"])
def test_a_number_that_another_journal_gave_is_of_another_package(deployer, deploy, anew, engine, repository, version):
    for factor in (2.0, 3.0):
        assert deploy(deployer, factor) == "deployed"
    assert deploy(anew, 5.0, version=version) == "deployed"
    assert engine.factor() == 5.0
    assert deploy(anew, 6.0) == "deployed"
    assert engine.factor() == 6.0
    assert repository.linked("times") == 2
    assert anew.repair_links() == []


def test_the_same_package_under_another_version_is_laid_out_again(deployer, deploy, anew, engine):
    deploy(deployer, 2.0)
    deploy(anew, 2.0, version="7")
    assert anew.journal.live("times").served_version == "7"
    assert engine.loaded["times"][0] == "7"


def test_a_package_that_fails_in_a_number_of_another_journal_leaves_that_packages_link_to_nobody(
    deployer, deploy, anew, repository, engine
):
    deploy(deployer, 2.0)
    assert deploy(anew, 5.0, answers=9.0) == "failed"
    assert repository.links() == []
    assert engine.loaded == {}
