"""A store that the training process has used, used again in the forked workers of torch's DataLoader."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from keynet_core import open_store

COUNT = 24

# In a process of its own, as a training is: the one that runs the tests has threads of every library, gRPC's among
# them, and what those hold when it forks is held for ever in the worker.
LOADING = f"""
import json, os, sys
from torch.utils.data import DataLoader, Dataset
from keynet_core import open_store

class Stored(Dataset):
    # Samples that are objects of a store; each read is answered with a write, so that workers do both.
    def __init__(self, store):
        self.store = store

    def __len__(self):
        return {COUNT}

    def __getitem__(self, index):
        text = self.store.get(f"samples/{{index}}", max_bytes=100)
        self.store.put(f"seen/{{index}}", text)
        return int(text), os.getpid()

if __name__ == "__main__":
    store = open_store(sys.argv[1])
    for index in range({COUNT}):
        store.put(f"samples/{{index}}", str(index).encode())
    loader = DataLoader(Stored(store), batch_size=4, num_workers=2, multiprocessing_context=sys.argv[2], timeout=120)
    got = [(int(value), int(pid)) for values, pids in loader for value, pid in zip(values, pids, strict=True)]
    assert os.getpid() not in {{pid for _, pid in got}}
    assert store.get("samples/0", max_bytes=1) == b"0"
    print(json.dumps([value for value, _ in got]))
"""


@pytest.fixture
def url(request, engine, tmp_path, monkeypatch):
    if engine == "local":
        return str(tmp_path / "store")
    server = request.getfixturevalue(engine)
    for name, value in server.environ().items():
        monkeypatch.setenv(name, value)
    return f"s3://{server.bucket()}"


@pytest.mark.parametrize(
    ("engine", "start"), [("local", "fork"), ("ceph", "fork"), ("swift", "fork"), ("ceph", "spawn")]
)
def test_the_workers_of_a_data_loader_use_the_store_of_their_parent(url, start, tmp_path):
    (tmp_path / "loading.py").write_text(LOADING)
    command = [sys.executable, str(tmp_path / "loading.py"), url, start]
    done = subprocess.run(command, env=os.environ, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == list(range(COUNT))
    assert len(list(open_store(url).list("seen/"))) == COUNT
