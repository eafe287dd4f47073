"""Dynamic batching: what is merged, what must not be, and who pays when a request is bad."""

from __future__ import annotations

import threading
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import pytest
from onnx import TensorProto, helper

from keynet_serving import ModelServer, ServerBusy
from keynet_serving._batching import Batcher, BatchPolicy, Work, merge, split

IO = (
    'input {{ name: "x" data_type: TYPE_FP32 dims: [{x}] }} output {{ name: "y" data_type: TYPE_FP32 dims: [{y}] }} '
    "max_batch_size: {rows} {batching} instance_group {{ count: 1 }}"
)
PATIENT = "dynamic_batching { max_queue_delay_microseconds: 300000 }"


def config(batching=PATIENT, rows=8, x="2", y="2"):
    return IO.format(x=x, y=y, rows=rows, batching=batching)


def ask_together(server, model, requests):
    with ThreadPoolExecutor(len(requests)) as pool:
        futures = [pool.submit(server.infer, model, {"x": rows}) for rows in requests]
        return [future.exception() or future.result()["y"] for future in futures]


def executions(server, model):
    (told,) = server.statistics(model)
    return told["execution_count"], told["inference_count"], [each["batch_size"] for each in told["batch_stats"]]


@pytest.fixture
def server(repository):
    with ModelServer(repository) as server:
        yield server


def rows(count, seed=0, width=2):
    return np.random.default_rng(seed).random((count, width)).astype(np.float32)


def test_requests_that_wait_together_run_together(models, server):
    models.scaled("m", 2, config=config())
    server.load("m")
    requests = [rows(1, seed) for seed in range(8)]
    answers = ask_together(server, "m", requests)
    for asked, answer in zip(requests, answers, strict=True):
        np.testing.assert_array_equal(answer, asked * 2)
    assert executions(server, "m") == (1, 8, [8])


def test_a_batch_never_exceeds_the_largest(models, server):
    models.scaled("m", 2, config=config(rows=4))
    server.load("m")
    ask_together(server, "m", [rows(3, 1), rows(3, 2), rows(1, 3)])
    count, inferences, sizes = executions(server, "m")
    assert (inferences, max(sizes) <= 4, count >= 2) == (7, True, True)


def test_a_preferred_size_does_not_wait_for_the_delay(models, server):
    models.scaled(
        "m", 2, config=config("dynamic_batching { preferred_batch_size: [2] max_queue_delay_microseconds: 60000000 }")
    )
    server.load("m")
    assert len(ask_together(server, "m", [rows(1, 1), rows(1, 2)])) == 2
    assert executions(server, "m") == (1, 2, [2])


def test_a_model_that_is_tiny_and_has_no_delay_counts_every_request(models, server):
    """From the second request on none of them goes through the queue."""
    models.scaled("m", 2, config=config("dynamic_batching {}"))
    server.load("m")
    for seed in range(4):
        np.testing.assert_array_equal(server.infer("m", {"x": rows(2, seed)})["y"], rows(2, seed) * 2)
    assert executions(server, "m") == (4, 8, [2])


def test_without_dynamic_batching_every_request_runs_alone(models, server):
    models.scaled("m", 2, config=config(""))
    server.load("m")
    ask_together(server, "m", [rows(1, seed) for seed in range(4)])
    assert executions(server, "m") == (4, 4, [1])


def test_over_http_and_grpc_requests_meet_in_one_batch(models, serve, asker):
    models.scaled("m", 2, config=config())
    engine = serve("m")
    asks = [asker(kind, engine) for kind in ("http", "grpc", "http.aio", "grpc.aio")]
    with ThreadPoolExecutor(8) as pool:
        futures = [pool.submit(ask.infer, "m", {"x": rows(1, number)}) for number, ask in enumerate(asks * 2)]
        for number, future in enumerate(futures):
            np.testing.assert_array_equal(future.result().as_numpy("y"), rows(1, number) * 2)
    (told,) = asks[0].plain("get_inference_statistics", "m")["model_stats"]
    assert told["inference_count"] == 8
    assert told["execution_count"] < 8


def tripled(models, name, shape_out):
    """The first axis of the output is three times the batch, whatever the graph calls it."""
    repeats = helper.make_tensor("repeats", TensorProto.INT64, [2], [3, 1])
    node = helper.make_node("Tile", ["x", "repeats"], ["y"])
    models.write(name, [node], [("x", 1, ["batch", 2])], [("y", 1, shape_out)], weights=[repeats], config=config())


@pytest.mark.parametrize("shape_out", [["3*batch", 2], ["other", 2]])
def test_an_output_whose_first_axis_is_another_symbol_is_never_merged(models, server, shape_out):
    tripled(models, "m", shape_out)
    server.load("m")
    requests = [rows(1, seed) for seed in range(6)]
    for asked, answer in zip(requests, ask_together(server, "m", requests), strict=True):
        np.testing.assert_array_equal(answer, np.tile(asked, (3, 1)))
    assert executions(server, "m")[:2] == (6, 6)
    (line,) = server.index()
    assert (line.state, line.reason.startswith("requests are not merged")) == ("READY", True)


def test_a_graph_that_lies_about_its_first_axis_is_found_out(models, server):
    tripled(models, "m", ["batch", 2])
    server.load("m")
    requests = [rows(1, seed) for seed in range(6)]
    for asked, answer in zip(requests, ask_together(server, "m", requests), strict=True):
        np.testing.assert_array_equal(answer, np.tile(asked, (3, 1)))


def test_requests_of_other_shapes_are_not_merged(models, server):
    models.identity("m", shape=["batch", "n"], config=config(x="-1", y="-1"))
    server.load("m")
    requests = [rows(1, seed, width) for seed, width in enumerate([2, 3, 2, 3])]
    for asked, answer in zip(requests, ask_together(server, "m", requests), strict=True):
        np.testing.assert_array_equal(answer, asked)
    assert executions(server, "m")[0] == 2


def gathering(models, name):
    """Row `i` of a table of four; an index out of range makes ONNX Runtime fail."""
    table = helper.make_tensor("table", 1, [4, 2], list(range(8)))
    node = helper.make_node("Gather", ["table", "x"], ["y"], axis=0)
    text = config(x="1", y="1, 2").replace('"x" data_type: TYPE_FP32', '"x" data_type: TYPE_INT64')
    models.write(name, [node], [("x", 7, ["batch", 1])], [("y", 1, ["batch", 1, 2])], weights=[table], config=text)


def test_one_failing_request_does_not_poison_the_others(models, server):
    gathering(models, "m")
    server.load("m")
    answers = ask_together(server, "m", [np.array([[index]]) for index in (0, 1, 99, 3)])
    assert "onnx runtime error" in str(answers[2])
    assert [answers[index].tolist() for index in (0, 1, 3)] == [[[[0, 1]]], [[[2, 3]]], [[[6, 7]]]]
    (told,) = server.statistics("m")
    assert told["inference_stats"]["fail"]["count"] == 1
    assert told["inference_stats"]["success"]["count"] == 3


def test_a_failing_run_is_told_to_the_client_that_asked(models, serve, asker, kind):
    from tritonclient.utils import InferenceServerException

    gathering(models, "m")
    ask = asker(kind, serve("m"))
    with pytest.raises(InferenceServerException, match="onnx runtime error"):
        ask.infer("m", {"x": np.array([[99]])})
    assert ask.infer("m", {"x": np.array([[1]])}).as_numpy("y").tolist() == [[[2, 3]]]


def test_unloading_answers_what_is_queued(models, server):
    models.scaled("m", 2, config=config("dynamic_batching { max_queue_delay_microseconds: 60000000 }"))
    server.load("m")
    (served,) = server.served()
    with ThreadPoolExecutor(2) as pool:
        future = pool.submit(server.infer, "m", {"x": rows(1)})
        while not served.batcher._queue:
            assert not future.done()
        server.unload("m")
        np.testing.assert_array_equal(future.result(timeout=60)["y"], rows(1) * 2)


def work(seed=0, count=1, width=2):
    return Work(feeds={"x": rows(count, seed, width)}, outputs=("y",), rows=count, size_bytes=8, arrived_ns=0)


class Gate:
    """An execution that waits until it is let go, and remembers what it ran."""

    def __init__(self):
        self.open = threading.Event()
        self.entered = threading.Event()
        self.batches = []

    def __call__(self, works):
        self.batches.append([each.rows for each in works])
        self.entered.set()
        assert self.open.wait(60)
        return [[each.feeds["x"]] for each in works]


@pytest.fixture
def gate():
    gate = Gate()
    yield gate
    gate.open.set()


def test_requests_that_find_the_session_busy_are_merged_without_any_delay(gate):
    batcher = Batcher(gate, BatchPolicy(max_rows=4))
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(batcher.run, work())
        assert gate.entered.wait(60)
        rest = [batcher.submit(work(seed)) for seed in range(6)]
        batcher.drain()
        gate.open.set()
        first.result(10)
        for seed, future in enumerate(rest):
            np.testing.assert_array_equal(future.result(10)[0], rows(1, seed))
    batcher.close()
    assert gate.batches == [[1], [1, 1, 1, 1], [1, 1]]


def test_deferred_requests_are_drained_together_on_the_callers_thread(gate):
    gate.open.set()
    batcher = Batcher(gate, BatchPolicy(max_rows=4))
    futures = [batcher.submit(work(seed), is_deferred=True) for seed in range(3)]
    batcher.drain()
    assert all(future.done() for future in futures)
    assert gate.batches == [[1, 1, 1]]
    batcher.drain()
    batcher.close()


def test_a_full_queue_refuses(gate):
    batcher = Batcher(gate, BatchPolicy(max_rows=4, max_queue=1))
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(batcher.run, work())
        assert gate.entered.wait(60)
        waiting = batcher.submit(work())
        with pytest.raises(ServerBusy, match="Exceeds maximum queue size"):
            batcher.submit(work())
        gate.open.set()
        assert running.result(10)
        assert waiting.result(10)
    batcher.close()


def test_a_closed_batcher_answers_on_the_callers_thread(gate):
    gate.open.set()
    batcher = Batcher(gate, BatchPolicy(max_rows=4))
    batcher.close()
    assert batcher.submit(work()).done()


def test_an_unforeseen_error_reaches_every_caller():
    def broken(_):
        raise MemoryError("no more")

    batcher = Batcher(broken, BatchPolicy(max_rows=4))
    futures: list[Future] = [batcher.submit(work()) for _ in range(2)]
    for future in futures:
        with pytest.raises(MemoryError):
            future.result(10)
    batcher.close()


def test_split_gives_each_its_rows_or_nothing():
    works = [work(0, 1), work(1, 2)]
    merged = merge(works)["x"]
    answers = split(works, {"y": merged})
    assert [answer[0].tolist() for answer in answers] == [merged[:1].tolist(), merged[1:].tolist()]
    assert split(works, {"y": merged[:2]}) is None
    assert split(works, {"y": np.float32(1).reshape(())}) is None


def test_a_model_takes_a_bounded_number_of_requests(models, serve, asker):
    from tritonclient.utils import InferenceServerException

    from keynet_serving import LoadOptions

    models.slow("m", 400)
    engine = serve("m", load_options=LoadOptions(max_queue=1))
    ask = asker("http", engine)
    x = {"x": np.zeros((4, 128, 128), np.float32)}
    with ThreadPoolExecutor(8) as pool:
        outcomes = [future.exception() for future in [pool.submit(ask.infer, "m", x) for _ in range(8)]]
    refused = [error for error in outcomes if error is not None]
    assert 0 < len(refused) < 8
    for error in refused:
        assert isinstance(error, InferenceServerException)
        assert (error.status(), error.message()) == ("503", "[request id: <id_unknown>] Exceeds maximum queue size")
