"""A store that the training process has used, used again in the forked workers of torch's DataLoader."""

from __future__ import annotations

import os

import pytest
from torch.utils.data import DataLoader, Dataset

from keynet_core import open_store

COUNT = 24


class Stored(Dataset):
    """Samples that are objects of a store; each read is answered with a write, so that workers do both."""

    def __init__(self, store):
        self.store = store

    def __len__(self):
        return COUNT

    def __getitem__(self, index):
        text = self.store.get(f"samples/{index}", max_bytes=100)
        self.store.put(f"seen/{index}", text)
        return int(text), os.getpid()


@pytest.fixture
def store(request, engine, tmp_path, monkeypatch):
    if engine == "local":
        return open_store(str(tmp_path / "store"))
    server = request.getfixturevalue(engine)
    for name, value in server.environ().items():
        monkeypatch.setenv(name, value)
    return open_store(f"s3://{server.bucket()}")


@pytest.mark.parametrize(
    ("engine", "start"), [("local", "fork"), ("ceph", "fork"), ("swift", "fork"), ("ceph", "spawn")]
)
def test_the_workers_of_a_data_loader_use_the_store_of_their_parent(store, start):
    for index in range(COUNT):
        store.put(f"samples/{index}", str(index).encode())
    loader = DataLoader(Stored(store), batch_size=4, num_workers=2, multiprocessing_context=start, timeout=60)
    got = [(int(value), int(pid)) for values, pids in loader for value, pid in zip(values, pids, strict=True)]
    assert [value for value, _ in got] == list(range(COUNT))
    assert os.getpid() not in {pid for _, pid in got}
    assert len(list(store.list("seen/"))) == COUNT
    assert store.get("samples/0", max_bytes=1) == b"0"
