"""What a run came to: what was trained against what is stored, journaled and served."""

from __future__ import annotations

import json
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from chaos.ledger import Trained
from chaos.scene import Scene
from chaos.trouble import Done
from chaos.watcher import Seen

ENDED_WELL = {"deployed", "already deployed"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """The counts, and every sentence that should not have been true."""

    publications: int
    trained: int
    stored: int
    events: int
    outcomes: dict[str, int]
    deployments: int
    reasons: dict[str, int]
    """Why events ended as failed, and how often."""
    dead_letters: int
    kills: dict[str, int]
    other_troubles: dict[str, int]
    answers: int
    refusals: dict[str, int]
    """What the watching client was told while the model server was away, or before a model was there."""
    gaps: dict[str, int]
    """The same, of a model that had answered before and whose model server was not touched."""
    seconds: float
    wrong: list[str] = field(default_factory=list)

    def to_json(self) -> str:
        """Return the verdict for machines."""
        return json.dumps(asdict(self), indent=2)

    def __str__(self) -> str:
        lines = [
            f"publications   {self.trained} of {self.publications} trained, {self.stored} stored",
            f"events         {self.events} journaled: {_counts(self.outcomes)}; dead letters: {self.dead_letters}",
            f"deployments    {self.deployments} that went live",
            f"kills          {sum(self.kills.values())}: {_counts(self.kills)}",
            f"other trouble  {_counts(self.other_troubles)}",
            f"a client       {self.answers} answers",
            f"  refused      {_counts(self.refusals)}",
            f"  gaps         {_counts(self.gaps)}",
            *[f"failed because {reason} ({count})" for reason, count in self.reasons.items()],
            f"{self.seconds:.0f} s",
            *[f"WRONG: {each}" for each in self.wrong],
            f"lost or wrong: {len(self.wrong)}",
        ]
        return "\n".join(lines)


def _counts(told: dict[str, int]) -> str:
    return ", ".join(f"{count} {name}" for name, count in sorted(told.items())) or "none"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Event:
    id: str
    digest: str
    outcome: str | None
    reason: str | None


def judge(scene: Scene, done: Done, seen: Seen, seconds: float) -> Verdict:
    """Read what the run left, and compare it with what the trainers wrote down."""
    trained, events, deployments = scene.trained(), _events(scene), _deployments(scene)
    stored, unstored = _stored(scene, trained)
    dead = _dead_letters(scene)
    wrong = [
        *_missing(scene, trained),
        *unstored,
        *_unfinished(trained, events),
        *_twice(events, deployments),
        *_not_newest(scene, trained, deployments),
        *_waiting(scene),
        *([f"{dead} events are dead letters"] if dead else []),
        *seen.violations,
    ]
    return Verdict(
        publications=scene.plan.publications,
        trained=len({each.digest for each in trained}),
        stored=stored,
        events=len(events),
        outcomes=dict(Counter(str(each.outcome) for each in events)),
        deployments=sum(row.state in {"deployed", "superseded"} for row in deployments),
        reasons=dict(Counter(str(each.reason).partition(";")[0][:160] for each in events if each.outcome == "failed")),
        dead_letters=dead,
        kills=dict(done.kills),
        other_troubles=dict(done.others),
        answers=seen.answers,
        refusals=dict(seen.refusals.most_common(8)),
        gaps=dict(seen.gaps.most_common(8)),
        seconds=round(seconds, 1),
        wrong=wrong,
    )


def unfinished_work(scene: Scene) -> str | None:
    """Return what is still to be done before a run can be judged, or None."""
    waiting = sum(1 for _ in _entries(scene, "ready"))
    if waiting:
        return f"{waiting} packages wait in outboxes"
    events = _events(scene)
    known = {each.digest for each in events}
    missing = [each for each in scene.trained() if each.digest not in known]
    if missing:
        return f"{len(missing)} publications are not in the journal"
    pending = [each for each in events if each.outcome is None]
    return f"{len(pending)} events wait for their deployment" if pending else None


def progress_of(scene: Scene) -> float:
    """Return how much of the work is done, from 0 to 1: half of it is training, half deploying."""
    finished = len({each.digest for each in _events(scene) if each.outcome is not None})
    return (len(scene.trained()) + finished) / (2 * scene.plan.publications)


def _missing(scene: Scene, trained: list[Trained]) -> Iterator[str]:
    left = set(range(scene.plan.publications)) - {each.item for each in trained}
    if left:
        yield f"{len(left)} items were never published: {sorted(left)[:10]}"


def _stored(scene: Scene, trained: list[Trained]) -> tuple[int, list[str]]:
    """Fetch and verify every package, and look for objects that belong to none."""
    from keynet_core import KeynetError, ModelName, download_package, open_store, package_key

    store = open_store(scene.environ["KEYNET_STORE"])
    wrong, belonging, count = [], set(), 0
    for each in {each.digest: each for each in trained}.values():
        name = ModelName(each.model)
        with tempfile.TemporaryDirectory() as folder:
            try:
                package = download_package(store, name, each.digest, Path(folder))
            except KeynetError as error:
                wrong.append(f"package {each.model} {each.digest} is lost: {error}")
                continue
        count += 1
        key = package_key(name, each.digest)
        belonging |= {f"{key}/{file.path}" for file in package.manifest.files} | {f"{key}/manifest.json"}
    stray = {key for key in store.list("packages/") if key != "packages/.keynet"} - belonging
    if stray:
        wrong.append(f"{len(stray)} objects belong to no package: {sorted(stray)[:5]}")
    return count, wrong


def _unfinished(trained: list[Trained], events: list[_Event]) -> Iterator[str]:
    by_digest: dict[str, list[_Event]] = {}
    for event in events:
        by_digest.setdefault(event.digest, []).append(event)
    for each in trained:
        told = by_digest.get(each.digest, [])
        if not told:
            yield f"item {each.item} was trained and nobody was told"
        for event in told:
            if event.outcome is None:
                yield f"event {event.id} has no outcome"
            elif event.outcome not in ENDED_WELL and not event.reason:
                yield f"event {event.id} ended as {event.outcome} without a reason"


def _twice(events: list[_Event], deployments: list[Any]) -> Iterator[str]:
    """A trainer that was killed behind its publication makes another: two events, and two deployments at most."""
    asked = Counter(event.digest for event in events)
    live = Counter(row.digest for row in deployments if row.state in {"deployed", "superseded"})
    for digest, count in live.items():
        if count > asked[digest]:
            yield f"package {digest} was deployed {count} times for {asked[digest]} events"


def _not_newest(scene: Scene, trained: list[Trained], deployments: list[Any]) -> Iterator[str]:
    live = {row.model: row.digest for row in deployments if row.state == "deployed"}
    newest = {each.model: each for each in sorted(trained, key=lambda each: each.item)}
    for name in scene.plan.models():
        if name in newest and live.get(name) != newest[name].digest:
            yield f"{name}: {live.get(name)} is live, and item {newest[name].item} is the newest"


def _waiting(scene: Scene) -> Iterator[str]:
    for state in ("ready", "refused"):
        for path in _entries(scene, state):
            yield f"{path.name} of {path.parents[2].name} is {state}"


def _entries(scene: Scene, state: str) -> Iterator[Path]:
    for home in scene.trainer_homes():
        yield from (each for each in (home / "outbox" / state).glob("*") if each.is_dir())


def _events(scene: Scene) -> list[_Event]:
    from keynet_server._tables import events

    return [
        _Event(
            id=row.id, digest=str(json.loads(row.body)["data"].get("digest")), outcome=row.outcome, reason=row.reason
        )
        for row in _rows(scene, events)
    ]


def _deployments(scene: Scene) -> list[Any]:
    from keynet_server._tables import deployments

    return _rows(scene, deployments)


def _rows(scene: Scene, table: Any) -> list[Any]:
    import sqlalchemy as sa

    engine = sa.create_engine(scene.database_url)
    try:
        with engine.connect() as connection:
            return list(connection.execute(sa.select(table)).all())
    finally:
        engine.dispose()


def _dead_letters(scene: Scene) -> int:
    import pika

    connection = pika.BlockingConnection(pika.URLParameters(scene.environ["RABBIT_ENDPOINT_URL"]))
    try:
        queue = f"{scene.environ['RABBIT_MODEL_UPLOAD_TOPIC']}.deployer.dead"
        return int(connection.channel().queue_declare(queue, passive=True).method.message_count)
    finally:
        connection.close()
