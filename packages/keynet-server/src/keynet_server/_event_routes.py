"""The routes about events: taken, listed, shown, sent once more; and the dead letters of the broker."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Annotated, Any

from fastapi import Query
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request  # noqa: TC002 - FastAPI reads annotations while the program runs
from starlette.responses import JSONResponse, Response  # noqa: TC002 - the same

from keynet_core import CONTENT_TYPE, MAX_EVENT_BYTES, Event
from keynet_server._errors import BrokerMissing, EventConflict, EventUnknown
from keynet_server._http import read_body, require_token
from keynet_server._replay import replay_failed

if TYPE_CHECKING:
    from fastapi import FastAPI

    from keynet_server._app import Services
    from keynet_server._broker import Broker

MAX_LISTED = 1000


def route_events(app: FastAPI, services: Services) -> None:
    """Add the routes."""
    journal = services.deployer.journal
    one_looks = asyncio.Lock()  # who looks at dead letters hides them from others meanwhile

    @app.post("/v1/events")
    async def receive(request: Request) -> Response:
        """Take a CloudEvent: 202 when it is written down, 200 when it was already."""
        require_token(request, services.token)
        event = Event.from_json(await read_body(request, content_type=CONTENT_TYPE, max_bytes=MAX_EVENT_BYTES))
        fresh = await run_in_threadpool(services.deployer.receive, event)
        services.worker.wake()
        told = {"id": event.id, "received": "now" if fresh else "before"}
        return JSONResponse(told, status_code=202 if fresh else 200)

    @app.get("/v1/events")
    def list_events(limit: Annotated[int, Query(ge=1, le=MAX_LISTED)] = 50) -> dict[str, Any]:
        """Return the events that were received last, newest first, and what became of each."""
        return {"events": [each.to_dict() for each in journal.newest_events(limit=limit)]}

    @app.get("/v1/events/dead")
    async def list_dead(limit: Annotated[int, Query(ge=0, le=MAX_LISTED)] = 20) -> dict[str, Any]:
        """Return the oldest dead letters of the broker and how many there are; nothing is removed."""
        from keynet_server._dead_letters import look

        broker = _require_broker(services)
        async with one_looks:
            return (await look(broker, limit=limit)).to_dict()

    @app.get("/v1/events/{event_id:path}")
    def show_event(event_id: str) -> dict[str, Any]:
        """Return an event, whole, and what became of it."""
        return journal.event(event_id).to_whole()

    @app.post("/v1/events/{event_id:path}/replay")
    async def replay_event(event_id: str, request: Request) -> Response:
        """Act on a failed event once more, under a new id; or send a dead letter to the topic once more."""
        require_token(request, services.token)
        try:
            event = await run_in_threadpool(replay_failed, services.deployer, event_id)
        except (EventUnknown, EventConflict):
            if services.broker is None:
                raise
            async with one_looks:
                if not await _replay_dead(services.broker, event_id):
                    raise
            return JSONResponse({"id": event_id, "replayed": "dead letter"}, status_code=202)
        services.worker.wake()
        return JSONResponse({"id": event.id, "replayed": "event"}, status_code=202)


async def _replay_dead(broker: Broker, letter_id: str) -> bool:
    from keynet_server._dead_letters import replay

    return await replay(broker, letter_id) > 0


def _require_broker(services: Services) -> Broker:
    if services.broker is None:
        raise BrokerMissing(
            "this server takes events over HTTP alone: it has no broker, and no dead letters",
            hint="set RABBIT_ENDPOINT_URL where the server runs",
        )
    return services.broker
