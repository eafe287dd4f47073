"""
What events cost: out to RabbitMQ against bare pika, and from RabbitMQ into the journal against the journal alone.

Bare pika does what keynet's publisher does (persistent, mandatory, confirmed) and nothing around it. The consumer finds
its events in the queue, 10,000 of them; each is looked up in the store, written into the journal in a transaction of
its own, and acknowledged. "journal alone" is the same without a broker. All is on one machine; the ways take turns.

    python benchmarks/bench_events.py [--rounds 2] [--events 10000] [--quick] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import sys
import tempfile
import time
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from keynet_core import Event, LocalStore, ModelPublished

TOPIC = "keynet.models"
QUEUE = f"{TOPIC}.deployer"
ALONE = 2000
"""Events for the journal without a broker: their rate does not depend on how many wait."""


def require(kind: Any) -> Any:
    """Return a class of engines, when it can be started."""
    if missing := kind.is_installed():
        raise SystemExit(f"needs {kind.NAME}: make engines ({missing})")
    return kind


@contextmanager
def engines() -> Iterator[tuple[Any, Any]]:
    """Start RabbitMQ and PostgreSQL."""
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))
    from engines.postgres import Postgres
    from engines.rabbitmq import Broker

    with require(Broker)() as rabbit, require(Postgres)() as postgres:
        yield rabbit, postgres


def publish_package(directory: Path, store: LocalStore) -> ModelPublished:
    """Put one small package into a store, and return what announces it."""
    import numpy as np

    from keynet_core import (
        DataType,
        ModelPackage,
        ModelPublished,
        Probe,
        Signature,
        TensorSpec,
        to_model_name,
        upload_package,
    )

    tensor = {"dtype": DataType.FP32, "shape": ("batch", 2)}
    signature = Signature(inputs=(TensorSpec(name="x", **tensor),), outputs=(TensorSpec(name="y", **tensor),))
    array = np.ones((1, 2), np.float32)
    directory.mkdir()
    (directory / "model.onnx").write_bytes(b"weights")
    (directory / "config.pbtxt").write_text('name: "bench"\n')
    probe = Probe(inputs={"x": array}, outputs={"y": array})
    package = ModelPackage.build(directory, name=to_model_name("bench"), signature=signature, probe=probe)
    upload_package(package, store)
    return ModelPublished(model=package.manifest.name, digest=package.digest, store=store.url)


def make_events(published: ModelPublished, count: int) -> list[Event]:
    """Return publications of one package by as many runs."""
    return [replace(published, run_id=f"{number:032x}").to_event() for number in range(count)]


def to_publisher(url: str) -> Any:
    from keynet_core import RabbitAddress, RabbitPublisher, Secret

    return RabbitPublisher(address=RabbitAddress.from_url(Secret(url)), topic=TOPIC)


def declare(url: str) -> None:
    """Have the consumer declare everything, as it does when it starts."""
    consumer = to_consumer(url, lambda _event: True)
    consumer.start()
    wait_for(lambda: consumer.status.is_listening)
    consumer.stop(timeout_s=30)


def bare_send(channel: Any, event: Event) -> None:
    import pika

    properties = pika.BasicProperties(content_type="application/cloudevents+json", delivery_mode=2, message_id=event.id)
    channel.basic_publish(TOPIC, TOPIC, event.to_json(), properties, mandatory=True)


@contextmanager
def bare_channel(url: str) -> Iterator[Any]:
    import pika

    with pika.BlockingConnection(pika.URLParameters(url)) as connection:
        channel = connection.channel()
        channel.exchange_declare(TOPIC, "topic", durable=True)
        channel.confirm_delivery()
        yield channel


def bare_on_one(url: str, events: list[Event]) -> None:
    with bare_channel(url) as channel:
        for event in events:
            bare_send(channel, event)


def bare_each(url: str, events: list[Event]) -> None:
    for event in events:
        with bare_channel(url) as channel:
            bare_send(channel, event)


def keynet_on_one(url: str, events: list[Event]) -> None:
    with to_publisher(url).opened() as link:
        for event in events:
            link.publish(event)


def keynet_each(url: str, events: list[Event]) -> None:
    publisher = to_publisher(url)
    for event in events:
        publisher.publish(event)


def fill(url: str, events: list[Event]) -> None:
    """Put events into the queue as fast as it goes."""
    import pika

    with pika.BlockingConnection(pika.URLParameters(url)) as connection:
        channel = connection.channel()
        for event in events:
            bare_send(channel, event)
        wait_for(lambda: channel.queue_declare(QUEUE, passive=True).method.message_count == len(events))


def empty(url: str) -> None:
    import pika

    with pika.BlockingConnection(pika.URLParameters(url)) as connection:
        connection.channel().queue_purge(QUEUE)


def to_consumer(url: str, receive: Callable[[Event], bool]) -> Any:
    from keynet_core import RabbitAddress, Secret
    from keynet_server._broker import Broker
    from keynet_server._consumer import Consumer

    broker = Broker(address=RabbitAddress.from_url(Secret(url)), topic=TOPIC)
    return Consumer(broker, receive, on_taken=lambda: None)


def wait_for(holds: Callable[[], bool], timeout_s: float = 600.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not holds():
        if time.monotonic() > deadline:
            raise SystemExit("it did not happen in time")
        time.sleep(0.005)


@contextmanager
def deployer_on(url: str, work: Path, store: LocalStore) -> Iterator[Any]:
    """Yield a deployer with an empty journal; its model server is never asked."""
    from keynet_server._database import migrate, open_database
    from keynet_server._deployer import Deployer
    from keynet_server._engine import KServeEngine
    from keynet_server._journal import Journal
    from keynet_server._materialize import DirectoryRepository

    database = open_database(url)
    migrate(database, work / "migrate.lock")
    engine, repository = KServeEngine(url="http://127.0.0.1:9"), DirectoryRepository(work / "serving")
    try:
        yield Deployer(journal=Journal(database), store=store, repository=repository, engine=engine)
    finally:
        database.dispose()


def seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def consume_all(url: str, receive: Callable[[Event], bool], count: int) -> None:
    """Take everything that is in the queue."""
    consumer = to_consumer(url, receive)
    consumer.start()
    wait_for(lambda: consumer.status.taken >= count)
    consumer.stop(timeout_s=30)


def rates_of_publishing(url: str, events: list[Event], rounds: int) -> dict[str, list[float]]:
    """Return events per second of each way, a figure for each round."""
    few = events[: max(20, len(events) // 20)]
    ways: dict[str, tuple[Callable[..., None], list[Event]]] = {
        "bare pika, one connection": (bare_on_one, events),
        "keynet, one connection": (keynet_on_one, events),
        "bare pika, a connection each": (bare_each, few),
        "keynet, a connection each": (keynet_each, few),
    }
    found: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, (way, given) in ways.items():
            found[name].append(len(given) / seconds(lambda way=way, given=given: way(url, given)))
            empty(url)
    return found


def rates_of_taking(
    rabbit: Any, postgres: Any, store: LocalStore, events: list[Event], rounds: int
) -> dict[str, list[float]]:
    """Return events per second of each way, a figure for each round."""
    found: dict[str, list[float]] = {}

    few = events[:ALONE]

    def note(name: str, work: Callable[[], object], count: int = len(events)) -> None:
        found.setdefault(name, []).append(count / seconds(work))

    for _ in range(rounds):
        url = rabbit.vhost()
        declare(url)
        fill(url, events)
        note("consumer, no journal", lambda url=url: consume_all(url, lambda _event: True, len(events)))
        for kind in ("SQLite", "PostgreSQL"):
            for way in ("journal alone", "consumer"):
                with ExitStack() as stack:
                    work = Path(stack.enter_context(tempfile.TemporaryDirectory()))
                    database = f"sqlite:///{work / 'keynet.db'}" if kind == "SQLite" else postgres.database()
                    receive = stack.enter_context(deployer_on(database, work, store)).receive
                    if way == "consumer":
                        fill(url, events)
                        note(f"{way}, {kind}", lambda url=url, receive=receive: consume_all(url, receive, len(events)))
                    else:
                        note(f"{way}, {kind}", lambda receive=receive: [receive(event) for event in few], len(few))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--events", type=int, default=10_000, help="how many are in the queue")
    parser.add_argument("--quick", action="store_true", help="one round, 1,000 events")
    parser.add_argument("--json", type=Path, help="write the figures here")
    chosen = parser.parse_args()
    rounds, count = (1, 1000) if chosen.quick else (chosen.rounds, chosen.events)
    with tempfile.TemporaryDirectory() as directory, engines() as (rabbit, postgres):
        from keynet_core import LocalStore

        store = LocalStore(Path(directory) / "store")
        events = make_events(publish_package(Path(directory) / "package", store), count)
        url = rabbit.vhost()
        declare(url)
        published = rates_of_publishing(url, events[: max(200, count // 10)], rounds)
        before = peak_mib()
        taken = rates_of_taking(rabbit, postgres, store, events, rounds)
        grown = peak_mib() - before
    figures = report(published, taken, grown, count)
    if chosen.json:
        chosen.json.write_text(json.dumps(figures, indent=2))


def peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def report(
    published: dict[str, list[float]], taken: dict[str, list[float]], grown_mib: float, count: int
) -> dict[str, Any]:
    """Print the figures as Markdown, and return them."""
    ratios = {
        "keynet, one connection": "bare pika, one connection",
        "keynet, a connection each": "bare pika, a connection each",
        "consumer, SQLite": "journal alone, SQLite",
        "consumer, PostgreSQL": "journal alone, PostgreSQL",
    }
    rates = published | taken
    rows = {}
    for name, each in rates.items():
        row: dict[str, Any] = {"events_per_s": statistics.median(each), "rounds": each}
        with suppress(KeyError):
            pairs = zip(rates[ratios[name]], each, strict=True)
            row["times_as_long"] = statistics.median(base / own for base, own in pairs)
            row["as"] = ratios[name]
        rows[name] = row
    print(f"\n{count} events in the queue; while they were taken the process grew by {grown_mib:.0f} MiB.\n")
    print("| way | events per second | takes, against the bare way |")
    print("|---|---|---|")
    for name, row in rows.items():
        ratio = f"{row['times_as_long']:.2f}x" if "as" in row else ""
        print(f"| {name} | {row['events_per_s']:,.0f} | {ratio} |")
    return {"events": count, "grown_mib": grown_mib, "ways": rows}


if __name__ == "__main__":
    main()
