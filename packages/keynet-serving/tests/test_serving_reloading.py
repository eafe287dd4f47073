"""Loading again, unloading, and what a load by request may bring along."""

from __future__ import annotations

import gc
import json
import threading
import weakref

import numpy as np
import pytest

from keynet_serving import ModelServer, ModelUnknown, Unsupported
from keynet_serving._control import override_of

X = np.array([[1, 2]], np.float32)
IO = 'input { name: "x" data_type: TYPE_FP32 dims: [2] } output { name: "y" data_type: TYPE_FP32 dims: [2] }'
FULL = f"max_batch_size: 8 {IO}"


@pytest.fixture
def server(repository):
    with ModelServer(repository) as server:
        yield server


def test_a_failed_reload_keeps_what_serves(models, serve, asker, kind):
    from tritonclient.utils import InferenceServerException

    folder = models.scaled("m", 2)
    ask = asker(kind, serve("m"))
    (folder / "1" / "model.onnx").write_bytes(b"nonsense")
    with pytest.raises(InferenceServerException) as caught:
        ask.call("load_model", "m")
    assert caught.value.status() in {"400", "StatusCode.INVALID_ARGUMENT"}
    assert "onnx runtime error" in caught.value.message()
    assert ask.infer("m", {"x": X}).as_numpy("y").tolist() == [[2, 4]]
    assert ask.call("is_model_ready", "m")
    (folder / "config.pbtxt").write_text("max_batch_size: eight")
    with pytest.raises(InferenceServerException, match="failed to poll from model repository"):
        ask.call("load_model", "m")
    assert ask.infer("m", {"x": X}).as_numpy("y").tolist() == [[2, 4]]


def test_a_client_that_asks_all_the_time_never_sees_a_reload(models, serve):
    """Two deployments take turns behind the model's link, as the deployer swaps them."""
    import tritonclient.http as triton

    for number, factor in ((1, 2), (2, 3)):
        models.scaled(f"made{number}", factor).rename(models.repository.parent / f"deployment{number}")
    link = models.repository / "m"
    link.symlink_to("../deployment1")
    engine = serve("m")
    stop = threading.Event()
    seen: set[float] = set()
    errors: list[Exception] = []

    def poll():
        client = triton.InferenceServerClient(engine.http)
        given = triton.InferInput("x", [1, 2], "FP32").set_data_from_numpy(X)
        try:
            while not stop.is_set():
                seen.add(float(client.infer("m", [given]).as_numpy("y")[0, 0]))
                assert client.is_model_ready("m")
        except Exception as error:
            errors.append(error)
        client.close()

    threads = [threading.Thread(target=poll) for _ in range(2)]
    for thread in threads:
        thread.start()
    for number in (2, 1) * 10:
        half = models.repository / ".half"
        half.symlink_to(f"../deployment{number}")
        half.replace(link)
        assert engine.request("POST", "/v2/repository/models/m/load")[0] == 200
    stop.set()
    for thread in threads:
        thread.join(60)
    assert errors == []
    assert seen == {2.0, 3.0}


def test_a_reload_can_change_the_versions(models, server):
    models.scaled("m", 2)
    server.load("m")
    models.scaled("m", 3, versions=(2,))
    server.load("m")
    assert server.infer("m", {"x": X})["y"].tolist() == [[3, 6]]
    assert [(line.version, line.state) for line in server.index()] == [("1", "UNAVAILABLE"), ("2", "READY")]
    with pytest.raises(ModelUnknown):
        server.infer("m", {"x": X}, version="1")


def test_a_request_in_flight_finishes_on_what_it_began_with(models, server):
    models.scaled("m", 2)
    server.load("m")
    from keynet_serving._requests import InferInput, InferRequest

    given = InferInput(name="x", datatype="FP32", shape=(1, 2), data=X.tobytes())
    call = server.start(InferRequest(model="m", inputs=(given,)))
    models.scaled("m", 3)
    server.load("m")
    with call:
        assert call.answer(call.run()).outputs[0].array.tolist() == [[2, 4]]
    server.unload("m")


def test_unloading_frees_the_session(models, server):
    models.scaled("m", 2)
    server.load("m")
    (served,) = server.served()
    held = weakref.ref(served._session)
    server.unload("m")
    del served
    gc.collect()
    deadline = threading.Event()
    for _ in range(100):
        if held() is None:
            break
        deadline.wait(0.05)
        gc.collect()
    assert held() is None
    with pytest.raises(ModelUnknown, match="has no available versions"):
        server.infer("m", {"x": X})


def test_unloading_what_is_not_loaded_is_no_error(server):
    server.unload("nope")
    assert server.index() == []


def test_loads_of_one_model_at_once_end_in_one_served_model(models, server):
    models.scaled("m", 2)
    threads = [threading.Thread(target=server.load, args=("m",)) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert server.infer("m", {"x": X})["y"].tolist() == [[2, 4]]
    assert len(server.served()) == 1


def test_a_configuration_in_the_request_takes_the_files_place(models, serve, asker, kind):
    models.identity("m", config=FULL)
    ask = asker(kind, serve())
    ask.call("load_model", "m", config=json.dumps({"max_batch_size": 2}))
    told = ask.plain("get_model_config", "m")
    assert told.get("config", told)["max_batch_size"] == 2


def test_files_in_the_request_are_refused(models, serve, asker, kind):
    from tritonclient.utils import InferenceServerException

    models.identity("m", config=FULL)
    ask = asker(kind, serve())
    with pytest.raises(InferenceServerException, match="from its repository only"):
        ask.call("load_model", "m", config="{}", files={"file:1/model.onnx": b"x"})
    with pytest.raises(Unsupported):
        override_of({"file:1/model.onnx": b"x"})


def test_unknown_parameters_of_a_load_are_refused(models, serve):
    models.identity("m")
    engine = serve()
    for parameters in ({"other": "x"}, {"config": 3}):
        status, text = engine.error("POST", "/v2/repository/models/m/load", {"parameters": parameters})
        assert (status, text.startswith("unexpected parameter")) == (400, True)
    status, text = engine.error("POST", "/v2/repository/models/m/load", {"parameters": {"config": "nonsense"}})
    assert (status, "failed to parse the configuration of the request" in text) == (500, True)
