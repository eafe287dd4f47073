"""Large inputs through shared memory to NVIDIA Triton, and what is left of it: nothing, however a process ends."""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import signal
import stat
import subprocess
import sys
import threading
import urllib.request
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ml_dtypes
import numpy as np
import pytest

from keynet_inference import (
    InferenceFailed,
    InputRefused,
    SharedMemoryUnused,
    TritonPlugin,
    TritonTimeout,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

SHM = Path("/dev/shm")
IMAGE = np.random.default_rng(0).random((1, 3, 640, 640), np.float32)
MEANS = IMAGE.mean(axis=(2, 3))


def regions(pid: int | None = None) -> set[str]:
    """The regions of this process, or another; the machine's other processes may have some too."""
    return {path.name for path in SHM.glob(f"keynet-shm-{pid or os.getpid()}-*")}


def mapped(triton: Any) -> set[str]:
    """What the server says it has mapped."""
    with urllib.request.urlopen(f"{triton.url}/v2/systemsharedmemory/status", timeout=30) as answer:
        return {each["name"] for each in json.load(answer)}


@pytest.fixture(autouse=True)
def nothing_is_left() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("error", SharedMemoryUnused)
        yield
    assert regions() == set()


@pytest.fixture(params=["http", "grpc"])
def url(request: pytest.FixtureRequest, real_triton: Any) -> str:
    return str(real_triton.url if request.param == "http" else real_triton.grpc_url)


@pytest.fixture
def plugin(url: str, real_triton: Any) -> Iterator[TritonPlugin]:
    with TritonPlugin(url, "detector", timeout_s=30, shared_memory=True) as plugin:
        yield plugin
    assert mapped(real_triton) == set()


def test_the_answer_is_the_same_and_the_region_is_private_and_reused(plugin: TritonPlugin, real_triton: Any) -> None:
    for number in range(5):
        output = plugin.predict({"input_0": IMAGE + number})["output_0"]
        np.testing.assert_allclose(output, MEANS + number, rtol=1e-4)

    (name,) = regions()
    about = (SHM / name).stat()
    assert stat.S_IMODE(about.st_mode) == 0o600
    assert about.st_size >= IMAGE.nbytes
    assert re.fullmatch(r"keynet-shm-[0-9]+-[0-9a-f]{32}", name)
    assert mapped(real_triton) == {name}
    assert plugin.shared_memory_refusal is None


def test_a_view_that_is_not_contiguous_arrives_as_it_looks(plugin: TritonPlugin) -> None:
    wide = np.random.default_rng(1).random((1, 640, 640, 3), np.float32)

    output = plugin.predict({"input_0": wide.transpose(0, 3, 1, 2)})["output_0"]

    np.testing.assert_allclose(output, wide.mean(axis=(1, 2)), rtol=1e-4)


def test_several_inputs_lie_side_by_side(plugin: TritonPlugin) -> None:
    rows = 300_001  # whose bytes do not end where the next ones may begin
    price = np.arange(rows, dtype=np.float32)
    count = np.arange(rows, dtype=np.int64).reshape(-1, 1)

    outputs = plugin.predict({"count": count, "price": price}, "table")

    np.testing.assert_array_equal(outputs["negative"], -count)
    np.testing.assert_array_equal(outputs["total"], price.reshape(-1, 1) * count.astype(np.float32))


def test_small_inputs_and_texts_are_sent_beside_large_ones(plugin: TritonPlugin) -> None:
    plugin.predict({"input_0": np.ones((1, 4), np.float32)}, "mlp")
    plugin.predict({"input_0": ["고양이" * 50_000] * 3}, "texts")
    assert regions() == set()

    mixed = {"count": np.ones((40_000, 1), np.int64), "price": np.ones(40_000, np.float32)}
    assert plugin.predict(mixed, "table")["total"].sum() == 40_000
    assert len(regions()) == 1


def test_bfloat16_is_shared(plugin: TritonPlugin) -> None:
    halves = np.ones(200_000, ml_dtypes.bfloat16)

    np.testing.assert_array_equal(plugin.predict({"input_0": halves}, "halves")["output_0"], halves)
    assert len(regions()) == 1


def test_a_larger_input_replaces_the_region(plugin: TritonPlugin, real_triton: Any) -> None:
    for rows in (100_000, 2_000_000, 500_000):
        given = np.arange(rows, dtype=np.float32)
        np.testing.assert_array_equal(plugin.predict({"input_0": given}, "vectors")["output_0"], given)

    (name,) = regions()
    assert (SHM / name).stat().st_size >= 8_000_000
    assert mapped(real_triton) == {name}


def test_an_input_that_does_not_fit_costs_nothing(plugin: TritonPlugin) -> None:
    with pytest.raises(InputRefused):
        plugin.predict({"input_0": IMAGE[:, :2]})
    assert regions() == set()


def test_after_a_failure_the_region_is_used_again(plugin: TritonPlugin) -> None:
    with pytest.raises(InferenceFailed):
        plugin.predict({"input_0": np.full(100_000, 5)}, "failing")
    before = regions()

    assert plugin.predict({"input_0": np.ones(100_000, np.int64)}, "failing")["output_0"].sum() == 200_000
    assert regions() == before
    assert len(before) == 1


def test_plugins_and_their_threads_keep_apart(url: str, real_triton: Any) -> None:
    plugins = [TritonPlugin(url, "detector", timeout_s=30, shared_memory=True) for _ in range(2)]
    start = threading.Barrier(8)

    def ask(number: int) -> None:
        start.wait(30)
        for turn in range(5):
            value = number * 10 + turn
            output = plugins[number % 2].predict({"input_0": np.full_like(IMAGE, value)})["output_0"]
            np.testing.assert_allclose(output, np.full((1, 3), value), rtol=1e-4)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(ask, range(8)))
    assert 2 <= len(regions()) <= 8
    plugins[0].close()
    assert regions() == mapped(real_triton) != set()
    plugins[1].close()
    assert regions() == mapped(real_triton) == set()


def test_a_plugin_that_is_forgotten_leaves_nothing(url: str, real_triton: Any) -> None:
    plugin = TritonPlugin(url, "detector", shared_memory=True)
    plugin.predict({"input_0": IMAGE})

    del plugin

    assert regions() == mapped(real_triton) == set()


CHILD = """
import sys, numpy as np
from keynet_inference import TritonPlugin
plugin = TritonPlugin(sys.argv[1], "detector", shared_memory=True)
print(plugin.predict({"input_0": np.ones((1, 3, 640, 640), np.float32)})["output_0"].tolist(), flush=True)
"""


def start_child(code: str, url: str) -> subprocess.Popen[str]:
    pipe = subprocess.PIPE
    return subprocess.Popen([sys.executable, "-c", code, url], stdin=pipe, stdout=pipe, stderr=pipe, text=True)


@pytest.mark.parametrize("end", ["", "\nraise SystemExit(0)", "\nraise ValueError('of its own')"])
def test_a_process_that_ends_by_itself_leaves_nothing(url: str, real_triton: Any, end: str) -> None:
    child = start_child(f"{CHILD}\ninput(){end}", url)
    assert child.stdout.readline() == "[[1.0, 1.0, 1.0]]\n"
    assert regions(child.pid) == mapped(real_triton) != set()

    _, told = child.communicate("\n", timeout=60)

    assert ("ValueError" in told) == ("ValueError" in end)
    assert regions(child.pid) == mapped(real_triton) == set()


def test_what_a_killed_process_left_goes_with_the_next_start(url: str, real_triton: Any) -> None:
    child = start_child(f"{CHILD}\ninput()", url)
    assert child.stdout.readline()
    left = regions(child.pid)
    child.send_signal(signal.SIGKILL)
    child.communicate(timeout=60)
    assert mapped(real_triton) == left != set()

    with TritonPlugin(url, "detector", shared_memory=True) as plugin:
        plugin.predict({"input_0": IMAGE})
        assert regions() == mapped(real_triton) != set()
        assert regions(child.pid) == set()


def test_a_start_leaves_the_regions_of_the_living_alone(plugin: TritonPlugin, url: str, real_triton: Any) -> None:
    plugin.predict({"input_0": IMAGE})
    mine = regions()

    child = start_child(CHILD, url)
    _, told = child.communicate(timeout=60)

    assert child.returncode == 0, told
    assert regions() == mapped(real_triton) == mine != set()
    np.testing.assert_allclose(plugin.predict({"input_0": IMAGE})["output_0"], MEANS, rtol=1e-4)


def test_starts_at_once_do_not_take_each_other_s_regions(real_triton: Any) -> None:
    children = [start_child(CHILD, real_triton.url) for _ in range(4)]

    for child in children:
        out, told = child.communicate(timeout=60)
        assert (out, child.returncode) == ("[[1.0, 1.0, 1.0]]\n", 0), told
        assert "SharedMemoryUnused" not in told
        assert regions(child.pid) == set()
    assert mapped(real_triton) == set()


def _ask_in_child(plugin: TritonPlugin, answers: Any) -> None:
    answers.put((plugin.predict({"input_0": IMAGE})["output_0"].tolist(), regions()))


@pytest.mark.parametrize("way", ["fork", "spawn"])
def test_a_child_of_multiprocessing_leaves_nothing(real_triton: Any, way: str) -> None:
    context = multiprocessing.get_context(way)
    answers = context.Queue()
    plugin = TritonPlugin(real_triton.url, "detector", shared_memory=True)
    child = context.Process(target=_ask_in_child, args=(plugin, answers))
    child.start()
    output, its_own = answers.get(timeout=60)
    child.join(60)

    np.testing.assert_allclose(output, MEANS, rtol=1e-4)
    assert child.exitcode == 0
    assert len(its_own) == 1
    assert regions(child.pid) == mapped(real_triton) == set()


def test_a_forked_child_has_regions_of_its_own(real_triton: Any) -> None:
    forking = multiprocessing.get_context("fork")
    with TritonPlugin(real_triton.url, "detector", shared_memory=True) as plugin:
        plugin.predict({"input_0": IMAGE})
        mine = regions()
        answers = forking.Queue()
        child = forking.Process(target=_ask_in_child, args=(plugin, answers))
        child.start()
        output, its_own = answers.get(timeout=60)
        child.join(60)

        np.testing.assert_allclose(output, MEANS, rtol=1e-4)
        assert len(its_own) == 1
        assert regions() == mapped(real_triton) == mine
        np.testing.assert_allclose(plugin.predict({"input_0": IMAGE})["output_0"], MEANS, rtol=1e-4)


SLOW = """
import pathlib, time
import triton_python_backend_utils as utils

class TritonPythonModel:
    def execute(self, requests):
        while pathlib.Path("GATE").exists():
            time.sleep(0.02)
        given = [utils.get_input_tensor_by_name(each, "input_0").as_numpy() for each in requests]
        return [utils.InferenceResponse([utils.Tensor("output_0", each[:1])]) for each in given]
"""
SLOW_CONFIG = """
backend: "python"
input { name: "input_0" data_type: TYPE_FP32 dims: [ -1 ] }
output { name: "output_0" data_type: TYPE_FP32 dims: [ -1 ] }
instance_group [ { count: 1 kind: KIND_CPU } ]
"""


@pytest.mark.parametrize("scheme", ["http", "grpc"])
def test_what_the_server_still_reads_is_neither_written_to_nor_lost(triton: Any, tmp_path: Path, scheme: str) -> None:
    gate, model = tmp_path / "gate", tmp_path / "models/slow/1/model.py"
    model.parent.mkdir(parents=True)
    model.write_text(SLOW.replace("GATE", str(gate)))
    (model.parents[1] / "config.pbtxt").write_text(SLOW_CONFIG)
    with triton.serve(tmp_path / "models", "--load-model=*") as server:
        url = server.url if scheme == "http" else server.grpc_url
        with TritonPlugin(url, "slow", timeout_s=2, shared_memory=True) as plugin:
            plugin.predict({"input_0": np.full(100_000, 1, np.float32)})
            seen = [regions()]
            gate.touch()
            for number in (2, 3):
                with pytest.raises(TritonTimeout):
                    plugin.predict({"input_0": np.full(100_000, number, np.float32)})
                seen.append(regions())
            gate.unlink()

            assert [len(each) for each in seen] == [1, 1, 2]
            assert plugin.predict({"input_0": np.full(100_000, 4, np.float32)})["output_0"].tolist() == [4]
        assert regions() == mapped(server) == set()


def test_a_server_that_was_started_again_gets_the_region_again(triton: Any, repository: Path) -> None:
    with triton.serve(repository, "--load-model=detector") as server:
        for url in (server.url, server.grpc_url):
            with TritonPlugin(url, "detector", timeout_s=30, shared_memory=True) as plugin:
                plugin.predict({"input_0": IMAGE})
                server.kill()
                server.start()

                np.testing.assert_allclose(plugin.predict({"input_0": IMAGE})["output_0"], MEANS, rtol=1e-4)
                assert regions() == mapped(server) != set()
                assert plugin.shared_memory_refusal is None


def test_a_server_that_is_gone_at_the_end_keeps_nothing_back(triton: Any, repository: Path) -> None:
    with triton.serve(repository, "--load-model=detector") as server:
        plugin = TritonPlugin(server.url, "detector", shared_memory=True)
        plugin.predict({"input_0": IMAGE})
        server.kill()
        plugin.close()

        assert regions() == set()
