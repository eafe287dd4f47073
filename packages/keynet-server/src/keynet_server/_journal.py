"""The journal: every event received and every deployment made, in order. Rows are added and finished, never removed."""

from __future__ import annotations

from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from keynet_core import EventInvalid, ModelName
from keynet_server import _backlog
from keynet_server._database import is_of_value, translating
from keynet_server._errors import ClaimMissing, DeploymentUnknown, EventUnknown
from keynet_server._records import Backlog, Deployment, History, ModelState, ReceivedEvent
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
        self._in_order = engine.execution_options(keynet_in_order=True)
        self._clock = clock

    def receive(self, event: Event) -> bool:
        """
        Write an event down; return False when it was known, by its id, and nothing was written.

        Raises:
            EventInvalid: No database of this kind can hold it, now or later.

        """
        row = {
            "id": event.id,
            "type": event.type,
            "subject": event.subject,
            "source": event.source,
            "received_at": self._clock(),
            "body": event.to_json().decode(),
        }
        with translating(self._engine):
            try:
                with self._in_order.begin() as connection:
                    connection.execute(events.insert().values(row))
            except sa.exc.IntegrityError:
                return False
            except sa.exc.DBAPIError as error:
                if is_of_value(error):
                    raise EventInvalid(f"event {event.id:.80} cannot be written down: {error.orig}") from error
                raise
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

    def newest_events(self, *, limit: int) -> list[ReceivedEvent]:
        """Return the events that were received last, newest first."""
        with self._reading() as connection:
            found = connection.execute(sa.select(events).order_by(events.c.seq.desc()).limit(limit))
            return [_to_event(row) for row in found]

    def unfinished(self, *, limit: int | None = None) -> list[ReceivedEvent]:
        """Return the events without an outcome, in the order they were received."""
        query = sa.select(events).where(events.c.outcome.is_(None)).order_by(events.c.seq).limit(limit)
        with self._reading() as connection:
            return [_to_event(row) for row in connection.execute(query)]

    def backlogs(self, *, after: int = 0, limit: int) -> list[Backlog]:
        """Return the models that have events without an outcome, by the first of these, when it came after a place."""
        with self._reading() as connection:
            found = connection.execute(_backlog.backlogs(after=after, limit=limit))
            return [Backlog(subject=row.subject, first=row.first, last=row.last) for row in found]

    def waiting(self, subject: str | None, *, limit: int) -> list[ReceivedEvent]:
        """Return the oldest events of a model that have no outcome, in the order they were received."""
        with self._reading() as connection:
            return [_to_event(row) for row in connection.execute(_backlog.waiting(subject, limit=limit))]

    def newest_waiting(self, subject: str | None) -> ReceivedEvent | None:
        """Return the newest event of a model that has no outcome, or None."""
        with self._reading() as connection:
            row = connection.execute(_backlog.waiting(subject, limit=1, newest=True)).one_or_none()
        return _to_event(row) if row is not None else None

    def fail_overtaken(self, subject: str | None, reason: str) -> tuple[int, list[Deployment]]:
        """
        Fail the events of a model that wait although a later one did what it asked for.

        Returns:
            How many there were, and the deployments that had been begun for them.

        """
        ended = {"reason": reason, "finished_at": self._clock()}
        with self._writing() as connection:
            newest: int | None = connection.execute(_backlog.newest_success(subject)).scalar()
            if newest is None:
                return 0, []
            too_late = _backlog.too_late(subject, newest)
            rows = connection.execute(sa.select(deployments).where(_backlog.begun(too_late))).all()
            connection.execute(deployments.update().where(_backlog.begun(too_late)).values(state="failed", **ended))
            count = connection.execute(events.update().where(too_late).values(outcome="failed", **ended)).rowcount
        return count, [_to_deployment(row) for row in rows]

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
        """
        Mark a deployment as live, the one before it as superseded, and its event as finished.

        Raises:
            ClaimMissing: It is not under way any more: another server has finished it.

        """
        values = {"state": "deployed", "reason": None, "engine_answer": answer}
        with self._writing() as connection:
            connection.execute(
                deployments.update()
                .where(deployments.c.model == deployment.model, deployments.c.state == "deployed")
                .values(state="superseded")
            )
            if not self._finish_deployment(connection, deployment, **values):
                raise ClaimMissing(
                    f"deployment {deployment.number} of {deployment.model} was finished by another server"
                )
            self._finish_event(connection, deployment.event_id, "deployed", None)

    def unloaded(self, live: Deployment, event_id: str, *, who: str, why: str | None) -> None:
        """Mark what was live as served no more, and the event that asked for it as finished."""
        reason = f"unloaded by {who}" + (f": {why}" if why else "")
        with self._writing() as connection:
            is_live = _one(live).where(deployments.c.state == "deployed")
            connection.execute(is_live.values(state="unloaded", reason=reason[:_MAX_REASON]))
            self._finish_event(connection, event_id, "unloaded", reason)

    def postponed(self, deployment: Deployment, reason: str) -> None:
        """Write down what a deployment waits for; it stays in state `deploying`."""
        with self._writing() as connection:
            connection.execute(_under_way(deployment).values(reason=reason[:_MAX_REASON]))

    def failed(self, deployment: Deployment, reason: str, answer: str | None) -> None:
        """Mark a deployment that is under way, and its event, as failed; what was live stays live."""
        values = {"state": "failed", "reason": reason[:_MAX_REASON], "engine_answer": answer}
        with self._writing() as connection:
            if self._finish_deployment(connection, deployment, **values):
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

    def events_that_went_live(self, model: ModelName, *, limit: int) -> list[ReceivedEvent]:
        """Return the events whose package was live at some time, the newest deployments first."""
        query = (
            sa.select(events)
            .join(deployments, deployments.c.event_id == events.c.id)
            .where(deployments.c.model == model, deployments.c.state.in_(("deployed", "superseded", "unloaded")))
            .order_by(deployments.c.number.desc())
            .limit(limit)
        )
        with self._reading() as connection:
            return [_to_event(row) for row in connection.execute(query)]

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
        )
        with self._reading() as connection:
            # Sorted here: databases have each an alphabet of their own.
            rows = sorted(connection.execute(query).all(), key=lambda row: (row.model, row.number))
        live = {row.model: _to_deployment(row) for row in rows if row.state == "deployed"}
        return [
            ModelState(name=ModelName(row.model), live=live.get(row.model), last=_to_deployment(row))
            for row in rows
            if row.is_last
        ]

    def recent(self, *, limit: int = 20) -> list[Deployment]:
        """Return the newest deployments of all models, in the order of their events: a clock may have jumped."""
        query = sa.select(deployments).join(events, events.c.id == deployments.c.event_id)
        with self._reading() as connection:
            found = connection.execute(query.order_by(events.c.seq.desc()).limit(limit)).all()
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

    def _finish_deployment(self, connection: sa.Connection, deployment: Deployment, **values: object) -> bool:
        finished = _under_way(deployment).values(finished_at=self._clock(), **values)
        return connection.execute(finished).rowcount > 0

    def _finish_event(self, connection: sa.Connection, event_id: str, outcome: Outcome, reason: str | None) -> None:
        connection.execute(
            events.update()
            .where(events.c.id == event_id, events.c.outcome.is_(None))
            .values(outcome=outcome, reason=reason and reason[:_MAX_REASON], finished_at=self._clock())
        )

    @contextmanager
    def _writing(self) -> Iterator[sa.Connection]:
        with translating(self._engine), self._engine.begin() as connection:
            yield connection

    @contextmanager
    def _reading(self) -> Iterator[sa.Connection]:
        with translating(self._engine), self._reader.connect() as connection:
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


def _under_way(deployment: Deployment) -> sa.Update:
    return _one(deployment).where(deployments.c.state == "deploying")


def _to_event(row: sa.Row[Any]) -> ReceivedEvent:
    return ReceivedEvent(**{name: row._mapping[name] for name in ReceivedEvent.__slots__})  # noqa: SLF001 - the documented way to a row by name


def _to_deployment(row: sa.Row[Any]) -> Deployment:
    return Deployment(**{name: row._mapping[name] for name in Deployment.__slots__})  # noqa: SLF001 - the documented way to a row by name
