"""What the doctor says of versions that stay loaded, of strays, and of a serving repository that is not whole."""

from __future__ import annotations

import socket
import threading

import pytest
import uvicorn

from keynet_core import Outbox, Secret, read_settings
from keynet_server import ServerSettings
from keynet_server._app import Services
from keynet_server._checks import check_links
from keynet_server._checks_running import check_served
from keynet_server._deployer import Deployer
from keynet_server._engine import KServeEngine
from keynet_server._materialize import DirectoryRepository
from keynet_server._pages import Links
from keynet_server._running import Running
from keynet_server._serve import with_life
from keynet_server._worker import Worker

CONFIG = b"""name: "doctored" backend: "onnxruntime" max_batch_size: 8
input { name: "input_0" data_type: TYPE_FP32 dims: [3] } output { name: "output_0" data_type: TYPE_FP32 dims: [3] }
version_policy { latest { num_versions: 2 } }
"""


@pytest.fixture
def engine(serving):
    engine = KServeEngine(url=serving.url)
    yield engine
    engine.unload("doctored")


@pytest.fixture
def deployer(serving, journal, publishing, engine):
    repository = DirectoryRepository(serving.root)
    repository.prepare()
    yield Deployer(journal=journal, store=publishing.store, repository=repository, engine=engine)
    repository.unlink("doctored")


@pytest.fixture
def worker(deployer, publishing, home):
    return Worker(deployer, Outbox(home / "outbox"), publishing.store)


@pytest.fixture
def act(worker, journal, eventually):
    """Have the running server, and nobody beside it, act on an event that is in the journal."""

    def act(event_id):
        worker.wake()
        eventually(lambda: journal.event(event_id).outcome, 60)
        assert journal.event(event_id).outcome == "deployed", journal.history("doctored")

    return act


@pytest.fixture
def publish(publishing, deployer, act):
    def publish(factor):
        package = publishing.publish("doctored", factor, version=str(int(factor)), files={"config.pbtxt": CONFIG})
        event = package.to_event()
        deployer.receive(event)
        act(event.id)

    return publish


@pytest.fixture
def running(deployer, worker, serving):
    services = Services(
        deployer=deployer,
        worker=worker,
        token=Secret("t"),
        links=Links(tracking=None, serving=None),
    )
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = uvicorn.Server(uvicorn.Config(with_life(services), log_config=None, access_log=False))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        yield Running(start="keynet server", server=url, serving=serving.url)
        server.should_exit = True
        thread.join(60)


@pytest.fixture
def settings(home):
    return read_settings(ServerSettings, {"KEYNET_HOME": str(home)})


def test_a_version_that_stays_beside_the_live_one_is_no_stray(
    publish, act, running, settings, serving, deployer, engine
):
    publish(1.0)
    publish(2.0)
    assert [each.level for each in check_served(settings, running)] == ["ok"]
    stray = deployer.request_rollback("doctored", to=1, who="ada", why=None)
    act(stray.id)
    (serving.root / "models" / "doctored").unlink()
    (serving.root / "models" / "doctored").symlink_to("../deployments/doctored/2")
    engine.load("doctored")
    told = [each.finding for each in check_served(settings, running) if each.level == "warning"]
    assert told == ["doctored version 2 is ready, but not from a deployment of the journal"]


def findings(settings):
    return [(each.level, each.finding) for each in check_links(settings)]


def test_a_link_that_points_nowhere_is_told(home, settings):
    repository = DirectoryRepository(home / "serving")
    repository.prepare()
    assert [level for level, _ in findings(settings)] == ["ok"]
    (repository.models / "ghost").symlink_to("../deployments/ghost/1")
    assert findings(settings) == [("error", "what ghost is served from is not whole")]


def test_a_repository_of_objects_is_looked_at_too(ceph, home, monkeypatch):
    for name, value in ceph.environ().items():
        monkeypatch.setenv(name, value)
    url = f"s3://{ceph.bucket()}/models"
    settings = read_settings(ServerSettings, {"KEYNET_HOME": str(home), "KEYNET_SERVING_REPOSITORY": url})
    assert settings.serving_url == url
    assert [level for level, _ in findings(settings)] == ["ok"]
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    [(level, _)] = findings(settings)
    assert level == "error"


def test_without_a_setting_the_repository_is_in_the_home(home, settings):
    assert settings.serving_url == (home / "serving").as_uri()
