"""A model that is replaced, a server that is started again, a process that forks: the plugin goes on."""

from __future__ import annotations

import multiprocessing
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest

from keynet_inference import InputRefused, ModelNotServed, Retry, TritonPlugin

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


@pytest.mark.parametrize("scheme", ["http", "grpc"])
def test_a_model_replaced_by_one_of_another_type_is_asked_anew(
    scheme: str, start_server: Callable[..., Any], tmp_path: Path, models: Any
) -> None:

    models.linear(tmp_path)
    server = start_server(tmp_path)
    with TritonPlugin(server.url(scheme), "mlp") as plugin:
        plugin.predict({"input_0": np.ones((1, 4), np.float32)})
        models.identity(tmp_path, "mlp", onnx.TensorProto.DOUBLE, ["rows", 4])
        load(server, "mlp")

        assert plugin.predict({"input_0": np.ones((1, 4))})["output_0"].dtype == np.float64
        with pytest.raises(InputRefused, match=r"takes input_0 FP64"):
            plugin.predict({"input_0": np.ones((1, 4), np.float32)})


@pytest.mark.parametrize("scheme", ["http", "grpc"])
def test_a_stale_belief_is_corrected_by_the_server_s_refusal(
    scheme: str, start_server: Callable[..., Any], tmp_path: Path, models: Any
) -> None:

    models.linear(tmp_path)
    server = start_server(tmp_path)
    with TritonPlugin(server.url(scheme), "mlp") as plugin:
        plugin.predict({"input_0": [[1, 2, 3, 4]]})
        models.identity(tmp_path, "mlp", onnx.TensorProto.INT64, ["rows", 4])
        load(server, "mlp")

        assert plugin.predict({"input_0": [[1, 2, 3, 4]]})["output_0"].dtype == np.int64


@pytest.mark.parametrize("scheme", ["http", "grpc"])
def test_a_model_unloaded_and_loaded_is_found_again(
    scheme: str, start_server: Callable[..., Any], tmp_path: Path, models: Any
) -> None:

    models.linear(tmp_path)
    server = start_server(tmp_path)
    with TritonPlugin(server.url(scheme), "mlp") as plugin:
        plugin.predict({"input_0": [[1, 2, 3, 4]]})
        load(server, "mlp", "unload")
        with pytest.raises(ModelNotServed) as caught:
            plugin.predict({"input_0": [[1, 2, 3, 4]]})
        assert caught.value.hint == "keynet models show mlp; ready there: none"
        load(server, "mlp")
        assert plugin.predict({"input_0": [[1, 2, 3, 4]]})["output_0"].tolist() == [[2, 4, 6, 8]]


def load(server: Any, model: str, verb: str = "load") -> None:
    import urllib.request

    request = urllib.request.Request(f"{server.http}/v2/repository/models/{model}/{verb}", b"{}", method="POST")
    with urllib.request.urlopen(request, timeout=20) as answer:
        assert answer.status == 200


@pytest.mark.parametrize("scheme", ["http", "grpc"])
def test_a_server_that_was_started_again_is_found_again(
    scheme: str, start_server: Callable[..., Any], tmp_path: Path, models: Any
) -> None:

    models.linear(tmp_path)
    first = start_server(tmp_path)
    port = int(first.url(scheme).rpartition(":")[2])
    retry = Retry(attempts=200, first_delay_s=0.05, max_delay_s=0.1)
    with TritonPlugin(first.url(scheme), "mlp", retry=retry) as plugin:
        plugin.predict({"input_0": [[1, 2, 3, 4]]})
        first.process.kill()
        first.process.wait(20)
        start_server(tmp_path, **{f"{scheme}_port": port})

        assert plugin.predict({"input_0": [[1, 2, 3, 4]]})["output_0"].tolist() == [[2, 4, 6, 8]]


def _ask_in_child(plugin: TritonPlugin, answers: Any) -> None:
    answers.put(plugin.predict({"input_0": [[1, 2, 3, 4]]}, "mlp")["output_0"].tolist())


@pytest.mark.parametrize("scheme", ["http", "file"])
def test_a_forked_process_asks_over_connections_of_its_own(scheme: str, server: Any) -> None:
    forking = multiprocessing.get_context("fork")
    with TritonPlugin(server.url(scheme)) as plugin:
        plugin.predict({"input_0": [[1, 2, 3, 4]]}, "mlp")
        answers = forking.Queue()
        children = [forking.Process(target=_ask_in_child, args=(plugin, answers)) for _ in range(2)]
        for child in children:
            child.start()
        found = [answers.get(timeout=30) for _ in children]
        for child in children:
            child.join(30)

        assert found == [[[2, 4, 6, 8]]] * 2
        assert plugin.predict({"input_0": [[1, 2, 3, 4]]}, "mlp")["output_0"].tolist() == [[2, 4, 6, 8]]


def test_plugins_of_one_process_share_the_models_it_serves(server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = TritonPlugin(server.url("file")), TritonPlugin(server.url("file"))
    for plugin in (first, second):
        plugin.predict({"input_0": [[1, 2, 3, 4]]}, "mlp")

    assert first._asker._client._server is second._asker._client._server


def test_a_model_served_in_process_stays_what_it_was_for_this_process_alone(tmp_path: Path, models: Any) -> None:
    models.linear(tmp_path)
    assert ask_in_process(tmp_path) == [[2, 4, 6, 8]]
    models.linear(tmp_path, factor=10.0, version=2)

    assert ask_in_process(tmp_path) == [[2, 4, 6, 8]]
    spawning = multiprocessing.get_context("spawn")
    with spawning.Pool(1) as pool:
        assert pool.apply_async(ask_in_process, (tmp_path,)).get(60) == [[10, 20, 30, 40]]


def ask_in_process(repository: Path) -> Any:
    with TritonPlugin(repository.as_uri(), "mlp") as plugin:
        return plugin.predict({"input_0": [[1, 2, 3, 4]]})["output_0"].tolist()


def test_a_repository_that_is_not_there_serves_nothing(tmp_path: Path) -> None:
    with pytest.raises(ModelNotServed, match="cannot serve"):
        TritonPlugin((tmp_path / "none").as_uri(), "mlp").predict({"input_0": [1]})


def test_a_model_that_does_not_load_in_process_says_why(tmp_path: Path) -> None:
    (tmp_path / "broken/1").mkdir(parents=True)
    (tmp_path / "broken/1/model.onnx").write_bytes(b"no model")

    with pytest.raises(ModelNotServed, match="broken"):
        TritonPlugin(tmp_path.as_uri(), "broken").predict({"input_0": [1]})
