"""The journal: every event received and every deployment made, in order. Rows are added and finished, never removed."""

from __future__ import annotations

from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from keynet_core import ModelName
from keynet_server._database import translating
from keynet_server._errors import DeploymentUnknown, EventUnknown
from keynet_server._records import Deployment, History, ModelState, ReceivedEvent
from keynet_server._tables import deployments, events

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from keynet_core import Event
    from keynet_server._records import Outcome, Request

_MAX_REASON = 4000
SHOWN_DEPLOYMENTS = 100


def _now() -> datetime:
    return datetime.now(UTC)


class Journal:
    """Reads and writes the two tables; each method is one transaction."""

    def __init__(self, engine: sa.Engine, *, clock: Callable[[], datetime] = _now) -> None:
        self._engine = engine
        self._reader = engine.execution_options(keynet_reads=True)
        self._clock = clock

    def receive(self, event: Event) -> bool:
        """Write an event down; return False when it was known, by its id, and nothing was written."""
        row = {
            "id": event.id,
            "type": event.type,
            "subject": event.subject,
            "source": event.source,
            "received_at": self._clock(),
            "body": event.to_json().decode(),
        }
        with translating():
            try:
                with self._engine.begin() as connection:
                    connection.execute(events.insert().values(row))
            except sa.exc.IntegrityError:
                return False
        return True

    def knows(self, event_id: str) -> bool:
        """Return whether an event was received before."""
        with self._reading() as connection:
            return connection.execute(sa.select(events.c.seq).where(events.c.id == event_id)).first() is not None

    def event(self, event_id: str) -> ReceivedEvent:
        """
        Return an event.

        Raises:
            EventUnknown: It was never received.

        """
        with self._reading() as connection:
            row = connection.execute(sa.select(events).where(events.c.id == event_id)).one_or_none()
        if row is None:
            raise EventUnknown(f"no event {event_id!r} was received")
        return _to_event(row)

    def unfinished(self) -> list[ReceivedEvent]:
        """Return the events without an outcome, in the order they were received."""
        with self._reading() as connection:
            found = connection.execute(sa.select(events).where(events.c.outcome.is_(None)).order_by(events.c.seq))
            return [_to_event(row) for row in found]

    def is_overtaken(self, event_id: str) -> bool:
        """Return whether an event of the same model that was received later led to what is live, or was."""
        later = events.alias("later")
        query = (
            sa.select(later.c.seq)
            .join(events, sa.and_(later.c.subject == events.c.subject, later.c.seq > events.c.seq))
            .where(events.c.id == event_id, later.c.outcome.in_(("deployed", "already deployed")))
        )
        with self._reading() as connection:
            return connection.execute(query).first() is not None

    def has_begun(self, event_id: str) -> bool:
        """Return whether there is a deployment for an event."""
        with self._reading() as connection:
            query = sa.select(deployments.c.number).where(deployments.c.event_id == event_id)
            return connection.execute(query).first() is not None

    def begin(self, request: Request) -> Deployment:
        """Return the deployment of a request in state `deploying`: a new one, or the one a crash interrupted."""
        by_event = sa.select(deployments).where(deployments.c.event_id == request.event_id)
        with self._writing() as connection:
            row = connection.execute(by_event).one_or_none()
            if row is None:
                connection.execute(deployments.insert().values(self._first_values(connection, request)))
                row = connection.execute(by_event).one()
        return _to_deployment(row)

    def deployed(self, deployment: Deployment, answer: str) -> None:
        """Mark a deployment as live, the one before it as superseded, and its event as finished."""
        with self._writing() as connection:
            connection.execute(
                deployments.update()
                .where(deployments.c.model == deployment.model, deployments.c.state == "deployed")
                .values(state="superseded")
            )
            self._finish_deployment(connection, deployment, state="deployed", reason=None, engine_answer=answer)
            self._finish_event(connection, deployment.event_id, "deployed", None)

    def postponed(self, deployment: Deployment, reason: str) -> None:
        """Write down what a deployment waits for; it stays in state `deploying`."""
        with self._writing() as connection:
            connection.execute(_one(deployment).values(reason=reason[:_MAX_REASON]))

    def failed(self, deployment: Deployment, reason: str, answer: str | None) -> None:
        """Mark a deployment that is under way, and its event, as failed; what was live stays live."""
        values = {"state": "failed", "reason": reason[:_MAX_REASON], "engine_answer": answer}
        with self._writing() as connection:
            under_way = _one(deployment).where(deployments.c.state == "deploying")
            if connection.execute(under_way.values(finished_at=self._clock(), **values)).rowcount:
                self._finish_event(connection, deployment.event_id, "failed", reason)

    def finish(self, event_id: str, outcome: Outcome, reason: str) -> None:
        """Finish an event that led to no deployment."""
        with self._writing() as connection:
            self._finish_event(connection, event_id, outcome, reason)

    def live(self, model: ModelName) -> Deployment | None:
        """Return the deployment of a model that counts now, or None."""
        with self._reading() as connection:
            row = connection.execute(
                sa.select(deployments).where(deployments.c.model == model, deployments.c.state == "deployed")
            ).one_or_none()
        return _to_deployment(row) if row is not None else None

    def history(self, model: ModelName, *, limit: int = 100) -> list[Deployment]:
        """
        Return a model's deployments, newest first.

        Raises:
            DeploymentUnknown: There is none.

        """
        with self._reading() as connection:
            found = connection.execute(
                sa.select(deployments)
                .where(deployments.c.model == model)
                .order_by(deployments.c.number.desc())
                .limit(limit)
            ).all()
        if not found:
            raise DeploymentUnknown(f"no deployment of {model!r} is known", hint="keynet models list")
        return [_to_deployment(row) for row in found]

    def newest(self, model: ModelName) -> History:
        """
        Return the newest of a model's deployments, as many as are shown at once.

        Raises:
            DeploymentUnknown: There is none.

        """
        found = self.history(model, limit=SHOWN_DEPLOYMENTS + 1)
        return History(deployments=tuple(found[:SHOWN_DEPLOYMENTS]), is_truncated=len(found) > SHOWN_DEPLOYMENTS)

    def find(self, model: ModelName, number: int) -> Deployment:
        """
        Return one deployment.

        Raises:
            DeploymentUnknown: There is none of that number.

        """
        with self._reading() as connection:
            row = connection.execute(
                sa.select(deployments).where(deployments.c.model == model, deployments.c.number == number)
            ).one_or_none()
        if row is None:
            raise DeploymentUnknown(f"{model} has no deployment {number}", hint=f"keynet models history {model}")
        return _to_deployment(row)

    def models(self) -> list[ModelState]:
        """Return every model that was ever to be deployed, by name."""
        newest = sa.select(deployments.c.model, sa.func.max(deployments.c.number).label("number"))
        last = newest.group_by(deployments.c.model).subquery()
        is_last = sa.and_(deployments.c.model == last.c.model, deployments.c.number == last.c.number)
        query = (
            sa.select(deployments, is_last.label("is_last"))
            .join(last, deployments.c.model == last.c.model)
            .where(sa.or_(deployments.c.state == "deployed", is_last))
            .order_by(deployments.c.model, deployments.c.number)
        )
        with self._reading() as connection:
            rows = connection.execute(query).all()
        live = {row.model: _to_deployment(row) for row in rows if row.state == "deployed"}
        return [
            ModelState(name=ModelName(row.model), live=live.get(row.model), last=_to_deployment(row))
            for row in rows
            if row.is_last
        ]

    def recent(self, *, limit: int = 20) -> list[Deployment]:
        """Return the newest deployments of all models, newest first."""
        with self._reading() as connection:
            found = connection.execute(
                sa.select(deployments).order_by(deployments.c.started_at.desc()).limit(limit)
            ).all()
        return [_to_deployment(row) for row in found]

    def _first_values(self, connection: sa.Connection, request: Request) -> dict[str, Any]:
        highest = sa.select(sa.func.max(deployments.c.number)).where(deployments.c.model == request.model)
        number = (connection.execute(highest).scalar() or 0) + 1
        return {
            "model": request.model,
            "number": number,
            "digest": request.digest,
            "model_version": request.model_version,
            "served_version": str(_choose_version(connection, request, number)),
            "run_id": request.run_id,
            "event_id": request.event_id,
            "restores": request.restores,
            "state": "deploying",
            "requested_by": request.requested_by,
            "why": request.why,
            "started_at": self._clock(),
        }

    def _finish_deployment(self, connection: sa.Connection, deployment: Deployment, **values: object) -> None:
        connection.execute(_one(deployment).values(finished_at=self._clock(), **values))

    def _finish_event(self, connection: sa.Connection, event_id: str, outcome: Outcome, reason: str | None) -> None:
        connection.execute(
            events.update()
            .where(events.c.id == event_id)
            .values(outcome=outcome, reason=reason and reason[:_MAX_REASON], finished_at=self._clock())
        )

    @contextmanager
    def _writing(self) -> Iterator[sa.Connection]:
        with translating(), self._engine.begin() as connection:
            yield connection

    @contextmanager
    def _reading(self) -> Iterator[sa.Connection]:
        with translating(), self._reader.connect() as connection:
            yield connection


def to_version(model_version: str | None) -> int | None:
    """Return the registry's version, when it is a number an engine can carry."""
    if model_version and model_version.isascii() and model_version.isdigit() and 0 < int(model_version) < 2**31:
        return int(model_version)
    return None


def _choose_version(connection: sa.Connection, request: Request, number: int) -> int:
    """Return the version a client asks for: the registry's, unless it named another package, else one never used."""
    of_model = deployments.c.model == request.model
    version = to_version(request.model_version)
    if version is not None:
        others = sa.select(deployments.c.number).where(
            of_model,
            deployments.c.served_version == str(version),
            deployments.c.digest != request.digest,
            deployments.c.state != "failed",
        )
        if connection.execute(others).first() is None:
            return version
    highest = sa.select(sa.func.max(sa.cast(deployments.c.served_version, sa.BigInteger))).where(of_model)
    return max(number, (connection.execute(highest).scalar() or 0) + 1)


def _one(deployment: Deployment) -> sa.Update:
    return deployments.update().where(
        deployments.c.model == deployment.model, deployments.c.number == deployment.number
    )


def _to_event(row: sa.Row[Any]) -> ReceivedEvent:
    return ReceivedEvent(**{name: row._mapping[name] for name in ReceivedEvent.__slots__})  # noqa: SLF001 - the documented way to a row by name


def _to_deployment(row: sa.Row[Any]) -> Deployment:
    return Deployment(**{name: row._mapping[name] for name in Deployment.__slots__})  # noqa: SLF001 - the documented way to a row by name
