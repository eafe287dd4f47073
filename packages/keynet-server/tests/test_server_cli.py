"""`keynet` as a user meets it: streams, exit codes, what it costs to start."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import keynet_server
from keynet_core import KeynetError, ModelPublished, Outbox
from keynet_server import _errors
from keynet_server._output import exit_code_of, to_table

if TYPE_CHECKING:
    from keynet_server._deployer import Deployer

KEYNET = [sys.executable, "-c", "from keynet_server._cli import main; main()"]


@pytest.fixture
def keynet(home):
    def keynet(*arguments, **environ):
        clean = {name: value for name, value in os.environ.items() if not name.startswith(("KEYNET", "TRITON", "AWS"))}
        return subprocess.run(
            [*KEYNET, *arguments],
            env=clean | {"KEYNET_HOME": str(home)} | environ,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    return keynet


@pytest.fixture
def deployed(publishing, deployer: Deployer):
    def deployed(factor=2.0, **options):
        event = publishing.publish("times", factor, **options).to_event()
        deployer.receive(event)
        deployer.deploy(deployer.journal.event(event.id))

    return deployed


def findings(done):
    return {each["check"]: each for each in json.loads(done.stdout)["findings"]}


def test_help_adds_few_modules_to_python():
    script = (
        "import sys; bare = set(sys.modules); from keynet_server._cli import keynet\n"
        "keynet(['--help'], standalone_mode=False); print(len(set(sys.modules) - bare), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60)
    # Counted, not timed: modules follow from the code, whatever else the machine does.
    assert int(done.stderr) <= 110


@pytest.mark.parametrize("command", ["", "up", "models", "events", "doctor"])
def test_help_imports_nothing_heavy(command):
    script = (
        "import sys; from keynet_server._cli import keynet;"
        f"keynet({[*command.split(), '--help']!r}, standalone_mode=False);"
        "heavy = {'fastapi', 'sqlalchemy', 'alembic', 'numpy', 'uvicorn', 'tritonclient', 'mlflow', 'pydantic'};"
        "sys.exit(', '.join(heavy & set(sys.modules)) or None)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("command", ["up", "models list", "models show", "models history", "models rollback", "doctor"])
def test_every_command_has_examples_in_its_help(keynet, command):
    done = keynet(*command.split(), "--help")
    assert done.returncode == 0
    assert f"Examples:\n    keynet {command}" in done.stdout


def test_wrong_usage_is_2(keynet):
    for arguments in (
        ("nope",),
        ("models", "show"),
        ("models", "rollback", "m", "--to", "x"),
        ("up", "--port", "99999"),
    ):
        done = keynet(*arguments)
        assert (done.returncode, done.stdout) == (2, ""), arguments


def test_the_version_is_told(keynet):
    assert keynet("--version").stdout.startswith("keynet, version ")


def test_without_a_server_and_a_journal_the_next_step_is_up(keynet):
    done = keynet("models", "list")
    assert done.returncode == 6
    assert done.stdout == ""
    assert "  next  keynet up\n  code  server.unreachable" in done.stderr
    told = json.loads(keynet("models", "list", "--json").stdout)
    assert told["error"]["code"] == "server.unreachable"
    assert keynet("models", "rollback", "times").returncode == 6


def test_without_a_server_the_journal_is_read(keynet, deployed):
    deployed(2.0, version="7")
    done = keynet("models", "list")
    assert done.returncode == 0
    assert done.stdout.splitlines()[1].split()[:3] == ["times", "1", "7"]
    assert "what the journal remembers" in done.stderr
    assert json.loads(keynet("models", "history", "times", "--json").stdout)["deployments"][0]["number"] == 1
    assert "deployment 1 is live" in keynet("models", "show", "times").stdout
    assert keynet("models", "show", "other").returncode == 4


def test_a_failed_model_is_shown_with_its_reason(keynet, deployed, engine):
    deployed(2.0)
    engine.refuse = "unexpected shape"
    deployed(3.0)
    assert "2 failed" in keynet("models", "list").stdout
    shown = keynet("models", "show", "times").stdout
    assert "last tried: deployment 2, failed" in shown
    assert "unexpected shape" in shown


def test_an_empty_journal_says_what_to_do(keynet, journal):
    assert "no model was deployed yet" in keynet("models", "list").stdout


def test_a_name_that_cannot_be_a_models_is_a_usage_error(keynet, journal):
    assert keynet("models", "show", "../etc").returncode == 2


def test_a_server_that_does_not_answer_is_6(keynet):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{probe.getsockname()[1]}"
    done = keynet("models", "list", KEYNET_URL=url)
    assert done.returncode == 6
    assert url in done.stderr


def test_what_is_no_keynet_server_is_told(keynet, serving):
    done = keynet("models", "list", KEYNET_URL=serving.url)
    assert done.returncode in {1, 4}
    assert done.stderr.startswith("error: ")


def test_a_setting_that_cannot_be_used_is_named(keynet):
    done = keynet("models", "list", KEYNET_URL="ftp://x")
    assert done.returncode == 2
    assert "KEYNET_URL" in done.stderr


def test_up_with_a_port_in_use_that_was_asked_for_is_a_conflict(keynet):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        done = keynet("up", "--port", str(listener.getsockname()[1]))
    assert done.returncode == 5
    assert "up.port_taken" in done.stderr


def test_up_tells_why_an_engine_did_not_start_and_leaves_none_behind(keynet, tmp_path, home):
    fake = tmp_path / "fake" / "mlflow"
    fake.mkdir(parents=True)
    (fake / "__init__.py").write_text("import sys; sys.exit('no such table: alembic_version')")
    done = keynet(
        "up",
        "--port",
        "0",
        "--mlflow-port",
        "0",
        "--serving-port",
        "0",
        "--grpc-port",
        "0",
        PYTHONPATH=str(fake.parent),
    )
    assert done.returncode == 1
    assert "MLflow ended with status 1" in done.stderr
    assert "no such table" in done.stderr
    assert not (home / "run" / "endpoints.json").exists()
    running = [path for path in Path("/proc").glob("[0-9]*/cmdline") if str(home).encode() in path.read_bytes()]
    assert running == []


def test_doctor_without_a_home_says_how_to_begin(keynet):
    done = keynet("doctor", "--json")
    assert done.returncode == 0
    assert findings(done)["home"]["remedy"] == "keynet up"


def test_doctor_on_a_home_where_all_is_well(keynet, deployed):
    deployed(2.0)
    done = keynet("doctor")
    assert done.returncode == 0
    assert "✗" not in done.stdout
    assert "✓ journal" in done.stdout


def test_doctor_finds_a_link_that_points_nowhere(keynet, deployed, repository):
    deployed(2.0)
    (repository.models / "ghost").symlink_to("../deployments/ghost/1")
    done = keynet("doctor", "--json")
    assert done.returncode == 1
    assert "ghost" in findings(done)["links"]["finding"]


def test_doctor_tells_what_waits_and_what_was_refused(keynet, home):
    from keynet_core import EventRefused, EventUndelivered

    outbox = Outbox(home / "outbox")

    def event(name):
        return ModelPublished(model=name, digest="sha256:" + "0" * 64, store="x").to_event()

    def deliver(entry):
        raise EventRefused("not wanted here") if entry.event.subject == "refused" else EventUndelivered("nobody there")

    outbox.add(event("refused"))
    outbox.add(event("waits"))
    outbox.flush(deliver)
    done = keynet("doctor")
    assert done.returncode == 1
    assert "! outbox     waits waits: nobody there" in done.stdout
    assert "✗ outbox     refused was refused: not wanted here" in done.stdout


def test_doctor_finds_an_entry_that_cannot_be_read(keynet, home):
    (home / "outbox" / "ready" / "1").mkdir(parents=True)
    (home / "outbox" / "ready" / "1" / "event.json").write_text("{")
    assert findings(keynet("doctor", "--json"))["outbox"]["level"] == "error"


def test_doctor_finds_a_store_nobody_can_open_and_a_journal_that_is_none(keynet, home):
    home.mkdir()
    (home / "keynet.db").write_bytes(b"not a database, whatever its name says" * 100)
    done = keynet("doctor", "--json", KEYNET_STORE="gopher://x")
    assert done.returncode == 1
    found = findings(done)
    assert found["store"]["level"] == "error"
    assert "not a database" in found["journal"]["finding"]


def test_doctor_finds_tables_of_another_keynet(keynet, journal):
    import sqlalchemy as sa

    with journal._engine.begin() as connection:
        connection.execute(sa.text("UPDATE alembic_version SET version_num = '0001'"))
    assert findings(keynet("doctor", "--json"))["journal"]["level"] == "error"


def test_to_look_creates_no_database(keynet, home, tmp_path):
    home.mkdir()
    url = f"sqlite:///{tmp_path / 'elsewhere' / 'new.db'}"
    found = findings(keynet("doctor", "--json", KEYNET_DATABASE_URL=url))
    assert found["journal"]["level"] == "warning"
    assert keynet("models", "list", KEYNET_DATABASE_URL=url).returncode == 6
    assert not (tmp_path / "elsewhere").exists()


@pytest.mark.parametrize("url", ["postgresql//u:hunter2@h/db", "unheardof://u:hunter2@h/db"])
def test_a_database_that_cannot_be_opened_is_told_without_its_password(keynet, home, url):
    home.mkdir()
    done = keynet("doctor", "--json", KEYNET_DATABASE_URL=url)
    assert findings(done)["journal"]["level"] == "error"
    assert "hunter2" not in done.stdout + done.stderr


@pytest.mark.parametrize("command", [("up",), ("doctor",), ("models", "list")])
def test_a_home_that_is_a_file_is_told_in_a_sentence(keynet, tmp_path, command):
    (tmp_path / "file").write_text("")
    done = keynet(*command, KEYNET_HOME=str(tmp_path / "file"))
    assert "Traceback" not in done.stderr
    if command == ("up",):
        assert done.returncode == 1
        assert done.stderr.startswith(f"error: {tmp_path / 'file'}: File exists\n")


def test_a_home_that_cannot_be_made_is_told_in_a_sentence(keynet):
    done = keynet("up", "--home", "/proc/nope")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("error: /proc/nope: ")
    assert json.loads(keynet("up", "--json", "--home", "/proc/nope").stdout)["error"]["message"].startswith(
        "/proc/nope"
    )


def test_up_leaves_the_mode_of_a_directory_that_is_there(keynet, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine").chmod(0o755)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        keynet("up", "--port", str(listener.getsockname()[1]), KEYNET_HOME=str(tmp_path / "mine"))
    assert (tmp_path / "mine").stat().st_mode & 0o777 == 0o755
    assert (tmp_path / "mine" / "run").is_dir()


def test_a_history_that_goes_on_says_so(keynet, deployed, monkeypatch):
    from keynet_server._cli_models import _show_history

    deployed(2.0)
    told = json.loads(keynet("models", "history", "times", "--json").stdout)
    assert told["truncated"] is False
    assert "not shown" not in _show_history(told)
    assert "older ones, not shown" in _show_history(told | {"truncated": True})


def test_doctor_tells_of_addresses_a_killed_up_left(keynet, home):
    (home / "run").mkdir(parents=True)
    (home / "run" / "endpoints.json").write_text("{}")
    done = keynet("doctor", "--json")
    assert done.returncode == 0
    assert "killed" in findings(done)["endpoints"]["finding"]


def test_a_held_home_whose_engines_do_not_answer_is_red(keynet, home):
    from keynet_core import Endpoints, Secret, locked, up_lock, write_endpoints

    nobody = "http://127.0.0.1:9"
    addresses = dict.fromkeys(("server", "tracking", "serving", "serving_grpc"), nobody)
    write_endpoints(home, Endpoints(**addresses, pid=1, started_at="now"), Secret("t"))
    with locked(up_lock(home), timeout_s=1):
        found = findings(keynet("doctor", "--json"))
    assert [found[check]["level"] for check in ("endpoints", "mlflow", "serving", "served")] == ["error"] * 4


def test_everything_public_is_exported_sorted():
    assert keynet_server.__all__ == sorted(keynet_server.__all__)
    raised = {
        name for name, each in vars(_errors).items() if isinstance(each, type) and issubclass(each, KeynetError)
    } - {"KeynetError"}
    assert raised <= set(keynet_server.__all__)


def test_every_error_has_a_code_of_its_own_and_a_place_in_the_tree():
    own = [getattr(keynet_server, name) for name in keynet_server.__all__ if name != "ServerSettings"]
    codes = [each.code for each in own]
    assert len(set(codes)) == len(codes)
    for each in own:
        assert each.__name__ in _errors.__doc__


@pytest.mark.parametrize(
    ("status", "code"), [(401, 3), (403, 3), (404, 4), (409, 5), (422, 2), (503, 6), (500, 1), (502, 1)]
)
def test_a_problem_of_the_server_has_an_exit_code(status, code):
    assert exit_code_of(keynet_server.ServerRefused("x", status=status)) == code


def test_columns_are_aligned():
    assert to_table([("a", "bb"), ("ccc", "d")], ("X", "Y")) == "X    Y\na    bb\nccc  d"
