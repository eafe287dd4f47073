"""`keynet up`, for real: MLflow, the server and the model server, on one home."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest

from keynet_core import LocalStore, ModelPublished, Outbox, read_endpoints

ANY_PORTS = ["--port", "0", "--mlflow-port", "0", "--serving-port", "0", "--grpc-port", "0"]
KEYNET = [sys.executable, "-c", "from keynet_server._cli import main; main()"]


def environ_for(home):
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("KEYNET", "MLFLOW", "TRITON"))}
    # What must not mislead: a proxy that answers nothing, a client's addresses.
    wrong = {"http_proxy": "http://127.0.0.1:9", "HTTP_PROXY": "http://127.0.0.1:9", "TRITON_URL": "grpc://127.0.0.1:9"}
    return clean | wrong | {"KEYNET_HOME": str(home), "MLFLOW_TRACKING_URI": "http://127.0.0.1:9"}


def keynet(home, *arguments, timeout=60):
    return subprocess.run(
        [*KEYNET, *arguments], env=environ_for(home), capture_output=True, text=True, timeout=timeout, check=False
    )


def descendants(pid):
    found = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in task.read_text().split():
            found += [int(child), *descendants(child)]
    return found


def is_running(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def put_into(outbox, publishing, name, factor, **options):
    package = publishing.package(name, factor, **options)
    with outbox.stage() as staged:
        for path in package.directory.iterdir():
            path.rename(staged / path.name)
        published = ModelPublished(model=name, digest=package.digest, store="waiting", run_id=f"run-{factor}")
        outbox.add(published.to_event(), staged)


@dataclass
class Up:
    home: Path
    process: subprocess.Popen[str]
    told: dict[str, str]

    def models(self):
        return json.loads(keynet(self.home, "models", "list", "--json").stdout)["models"]


def start(home, *arguments):
    process = subprocess.Popen(
        [*KEYNET, "up", "--json", *(arguments or ANY_PORTS)],
        env=environ_for(home),
        stdout=subprocess.PIPE,
        stderr=(home.parent / "up.err").open("w"),
        text=True,
    )
    lines = []
    for line in process.stdout:
        lines.append(line)
        if line == "}\n":
            return Up(home=home, process=process, told=json.loads("".join(lines)))
    pytest.fail(f"keynet up ended: {(home.parent / 'up.err').read_text()}")


@pytest.fixture(scope="module")
def up(tmp_path_factory, publishing_class):
    """Start everything once, on a home whose outbox holds a package that nobody has announced yet."""
    home = tmp_path_factory.mktemp("up") / "home"
    publishing = publishing_class(store=LocalStore(home / "unused"), scratch=home.parent / "scratch")
    put_into(Outbox(home / "outbox"), publishing, "waited", 2.0)
    up = start(home)
    yield up
    up.process.kill()
    up.process.wait()
    up.process.stdout.close()


@pytest.fixture
def publish(up, publishing_class):
    def publish(name, factor, **options):
        scratch = up.home.parent / f"scratch-{name}-{factor}"
        publishing = publishing_class(store=LocalStore(up.home / "unused"), scratch=scratch)
        put_into(Outbox(up.home / "outbox"), publishing, name, factor, **options)

    return publish


def live_of(up, name):
    return next((each["live"] for each in up.models() if each["name"] == name), None)


def test_what_was_published_while_nothing_ran_is_served(up, eventually):
    live = eventually(lambda: live_of(up, "waited"))
    body = {"inputs": [{"name": "input_0", "datatype": "FP32", "shape": [1, 3], "data": [1.0, 2.0, 3.0]}]}
    url = f"{up.told['serving']}/v2/models/waited/versions/{live['served_version']}/infer"
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(urllib.request.Request(url, json.dumps(body).encode()), timeout=60) as answer:
        assert json.load(answer)["outputs"][0]["data"] == [2.0, 4.0, 6.0]


def test_addresses_and_token_are_for_this_user_only(up):
    assert read_endpoints(up.home).server == up.told["server"]
    for name in ("token", "endpoints.json"):
        assert (up.home / "run" / name).stat().st_mode & 0o077 == 0


def test_rollback_history_and_doctor_on_what_runs(up, publish, eventually):
    publish("times", 2.0)
    eventually(lambda: live_of(up, "times"))
    publish("times", 3.0)
    eventually(lambda: live_of(up, "times")["number"] == 2)
    done = keynet(up.home, "models", "rollback", "times", "--why", "it was better")
    assert done.returncode == 0, done.stderr
    assert "deployment 3 is live" in done.stdout
    history = keynet(up.home, "models", "history", "times").stdout
    assert "it was better" in history
    assert keynet(up.home, "models", "rollback", "times", "--to", "1").returncode == 5
    assert keynet(up.home, "models", "rollback", "nope").returncode == 4
    refused = keynet(up.home, "models", "rollback", "times", "--to", "99")
    assert refused.returncode == 4
    assert refused.stderr.startswith("error: times has no deployment 99\n  next  keynet models history times\n  code")
    assert refused.stdout == ""
    shown = keynet(up.home, "doctor")
    assert shown.returncode == 0, shown.stdout


def test_a_failed_rollback_says_why(up, publish, eventually):
    publish("wrong", 2.0, answers=7.0)
    eventually(lambda: [each for each in up.models() if each["name"] == "wrong" and each["last"]["state"] == "failed"])
    done = keynet(up.home, "models", "rollback", "wrong", "--to", "1")
    assert done.returncode == 1
    assert "does not answer as it did" in done.stderr
    assert "nothing is live" in keynet(up.home, "models", "show", "wrong").stdout


def control(up, name, verb):
    """Tell the model server to load or unload, behind the journal's back."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    url = f"{up.told['serving']}/v2/repository/models/{name}/{verb}"
    opener.open(urllib.request.Request(url, b"{}"), timeout=60).close()


def served_findings(up):
    done = keynet(up.home, "doctor", "--json")
    found = [each for each in json.loads(done.stdout)["findings"] if each["check"] == "served"]
    return done.returncode, {(each["level"], each["finding"].split()[0]) for each in found}


def test_doctor_finds_what_is_live_and_not_ready(up):
    control(up, "waited", "unload")
    try:
        code, found = served_findings(up)
        assert code == 1
        assert ("error", "waited") in found
    finally:
        control(up, "waited", "load")


def test_doctor_finds_what_is_ready_and_was_never_deployed(up, publishing_class, tmp_path):
    package = publishing_class(store=LocalStore(tmp_path), scratch=tmp_path).package("handmade", 2.0)
    models = up.home / "serving" / "models"
    shutil.copytree(package.directory, models / "handmade" / "1")
    try:
        control(up, "handmade", "load")
        assert ("warning", "handmade") in served_findings(up)[1]
        control(up, "handmade", "unload")
    finally:
        shutil.rmtree(models / "handmade")


def test_a_second_up_says_what_runs(up):
    done = keynet(up.home, "up")
    assert done.returncode == 5
    assert up.told["server"] in done.stderr
    assert "up.already_running" in done.stderr
    assert json.loads(keynet(up.home, "up", "--json").stdout)["error"]["code"] == "up.already_running"


def test_a_wrong_token_is_forbidden(up):
    environ = environ_for(up.home) | {"KEYNET_TOKEN": "wrong"}
    command = [*KEYNET, "models", "rollback", "waited"]
    done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 3
    assert "request.token_refused" in done.stderr


TRACK = """
import sys, mlflow
mlflow.set_tracking_uri(sys.argv[1])
if mlflow.get_experiment_by_name(sys.argv[2]) is None:
    mlflow.create_experiment(sys.argv[2], artifact_location=sys.argv[4] if len(sys.argv) > 4 else None)
mlflow.set_experiment(sys.argv[2])
with mlflow.start_run() as run:
    mlflow.log_metric("loss", 0.5)
    mlflow.log_text("written by " + sys.argv[3], sys.argv[3] + ".txt")
print(mlflow.artifacts.load_text(run.info.artifact_uri + "/" + sys.argv[3] + ".txt"))
"""


def test_experiments_work_over_http_and_on_the_same_sqlite(up):
    """An experiment made on one way takes runs on the other."""
    direct = f"sqlite:///{up.home / 'mlflow.db'}"
    local = (up.home / "mlartifacts").as_uri()
    by_name = up.told["tracking"].replace("127.0.0.1", "localhost")
    clean = {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW")}
    for arguments in (
        (up.told["tracking"], "made-over-http", "http"),
        (direct, "made-over-http", "direct"),
        (direct, "made-directly", "direct", local),
        (by_name, "made-directly", "http"),
    ):
        command = [sys.executable, "-c", TRACK, *arguments]
        done = subprocess.run(
            command, env=clean, cwd=up.home.parent, capture_output=True, text=True, timeout=120, check=False
        )
        assert f"written by {arguments[2]}" in done.stdout, done.stderr
    assert not (up.home.parent / "mlruns").exists()


def test_mlflow_refuses_hosts_that_are_not_ours(up):
    request = urllib.request.Request(f"{up.told['tracking']}/api/2.0/mlflow/experiments/get?experiment_id=0")
    request.add_header("Host", "evil.example")
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with pytest.raises(urllib.error.HTTPError) as raised:
        opener.open(request, timeout=60)
    assert raised.value.code == 403
    raised.value.close()


def test_a_killed_engine_and_a_killed_server_come_back_and_serve_the_same(up, eventually):
    live = eventually(partial(live_of, up, "waited"))
    for marker in (b"keynet_serving", b"keynet_server\x00127.0.0.1"):
        commands = {pid: Path(f"/proc/{pid}/cmdline").read_bytes() for pid in descendants(up.process.pid)}
        [running] = [pid for pid, command in commands.items() if marker in command and b"_guard" not in command]
        os.kill(running, signal.SIGKILL)
        eventually(lambda: "started again" in (up.home.parent / "up.err").read_text())
        (up.home.parent / "up.err").write_text("")
    eventually(lambda: keynet(up.home, "doctor").returncode == 0, timeout_s=40)
    assert live_of(up, "waited") == live


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_however_it_ends_no_process_is_left(up, eventually, number):
    """The last test of the module: it ends what the others use, once gently and once, after a new start, not."""
    running = up if up.process.poll() is None else start(up.home)
    pids = descendants(running.process.pid)
    assert len(pids) >= 6
    running.process.send_signal(number)
    assert running.process.wait(60) == (0 if number is signal.SIGINT else -signal.SIGKILL)
    eventually(lambda: not any(map(is_running, pids)), timeout_s=60)
    running.process.stdout.close()
    assert read_endpoints(up.home) is None
    assert "waited" in keynet(up.home, "models", "list").stdout
