"""The server's HTTP routes: parse, call the domain, render."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request  # noqa: TC002 - FastAPI reads annotations while the program runs
from starlette.responses import HTMLResponse, JSONResponse, Response  # noqa: TC002 - the same

from keynet_core import CONTENT_TYPE, MAX_EVENT_BYTES, Event, KeynetError, to_model_name
from keynet_server._errors import BodyInvalid
from keynet_server._http import LOOPBACK_HOSTS, Guard, problem, read_body, require_token, to_problem
from keynet_server._pages import render_landing

if TYPE_CHECKING:
    from collections.abc import Collection

    from keynet_core import Secret
    from keynet_server._deployer import Deployer
    from keynet_server._pages import Links
    from keynet_server._worker import Worker

_MAX_REQUEST_BYTES = 16 * 1024


@dataclass(frozen=True, kw_only=True)
class Services:
    """What the routes call."""

    deployer: Deployer
    worker: Worker
    token: Secret
    links: Links
    hosts: Collection[str] = LOOPBACK_HOSTS


def create_app(services: Services) -> FastAPI:
    """Return the application; it holds no state of its own."""
    app = FastAPI(title="keynet", docs_url=None, redoc_url=None, openapi_url="/v1/openapi.json")
    app.add_middleware(Guard, hosts=services.hosts)
    _handle_errors(app)
    _route_events(app, services)
    _route_models(app, services)
    _route_health(app, services)
    return app


def _route_events(app: FastAPI, services: Services) -> None:
    journal = services.deployer.journal

    @app.post("/v1/events")
    async def receive(request: Request) -> Response:
        """Take a CloudEvent: 202 when it is written down, 200 when it was already."""
        require_token(request, services.token)
        event = Event.from_json(await read_body(request, content_type=CONTENT_TYPE, max_bytes=MAX_EVENT_BYTES))
        fresh = await run_in_threadpool(services.deployer.receive, event)
        services.worker.wake()
        told = {"id": event.id, "received": "now" if fresh else "before"}
        return JSONResponse(told, status_code=202 if fresh else 200)

    @app.get("/v1/events/{event_id:path}")
    def show_event(event_id: str) -> dict[str, Any]:
        """Return what became of an event."""
        return journal.event(event_id).to_dict()


def _route_models(app: FastAPI, services: Services) -> None:
    journal = services.deployer.journal

    @app.get("/v1/models")
    def list_models() -> dict[str, Any]:
        """Return every model with what is live and what was tried last."""
        return {"models": [each.to_dict() for each in journal.models()]}

    @app.get("/v1/models/{name}")
    def show_model(name: str) -> dict[str, Any]:
        """Return what is live of one model and what was tried last."""
        model = to_model_name(name)
        last = journal.history(model, limit=1)[0]
        live = journal.live(model)
        return {"name": model, "live": live.to_dict() if live else None, "last": last.to_dict()}

    @app.get("/v1/models/{name}/history")
    def show_history(name: str) -> dict[str, Any]:
        """Return a model's newest deployments, newest first, and whether there are older ones."""
        return journal.newest(to_model_name(name)).to_dict()

    @app.post("/v1/models/{name}/rollback")
    async def roll_back(name: str, request: Request) -> Response:
        """Ask for an older package: `{"to": 3, "why": "...", "who": "..."}`; the event tells what came of it."""
        require_token(request, services.token)
        body = await read_body(request, content_type="application/json", max_bytes=_MAX_REQUEST_BYTES)
        asked = _to_rollback(body)
        event = await run_in_threadpool(services.deployer.request_rollback, to_model_name(name), **asked)
        services.worker.wake()
        told = {"id": event.id, "model": name, "restores": event.data["restores"], "digest": event.data["digest"]}
        return JSONResponse(told, status_code=202)


def _route_health(app: FastAPI, services: Services) -> None:
    journal = services.deployer.journal

    @app.get("/healthz")
    def health() -> dict[str, str]:
        """Say that the process takes requests."""
        return {"status": "ok"}

    @app.get("/readyz")
    def ready() -> Response:
        """Say whether events are acted on: journal, worker and model server."""
        journal.unfinished()
        parts = {"worker": services.worker.is_alive(), "engine": services.deployer.is_engine_live()}
        told = {"status": "ok" if all(parts.values()) else "degraded", "journal": True, **parts}
        return JSONResponse(told, status_code=200 if all(parts.values()) else 503)

    @app.get("/", response_class=HTMLResponse)
    def landing() -> str:
        """Show what is live, what failed, and where everything else is."""
        return render_landing(journal.models(), journal.recent(), services.links)


def _handle_errors(app: FastAPI) -> None:
    @app.exception_handler(KeynetError)
    async def refuse(request: Request, error: KeynetError) -> Response:
        return to_problem(error, request.state.request_id)

    @app.exception_handler(Exception)
    async def apologise(request: Request, _error: Exception) -> Response:
        detail = "the server met an error nobody foresaw; its log has the details"
        return problem(500, detail, request.state.request_id, code="server.internal", hint="keynet doctor")

    @app.exception_handler(HTTPException)
    async def refuse_route(request: Request, error: HTTPException) -> Response:
        return problem(error.status_code, error.detail, request.state.request_id, code="request.no_route")


def _to_rollback(body: bytes) -> dict[str, Any]:
    try:
        told = json.loads(body or b"{}")
    except (ValueError, RecursionError) as error:
        raise BodyInvalid(f"the body is no JSON: {error}") from error
    if not isinstance(told, dict) or set(told) - {"to", "why", "who"}:
        raise BodyInvalid("the body must be a JSON object with 'to', 'why' and 'who', each optional")
    to, why, who = told.get("to"), told.get("why"), told.get("who") or "unknown"
    if not (to is None or (type(to) is int and to > 0)):
        raise BodyInvalid(f"'to' must be the number of a deployment, got {to!r:.80}")
    if not (isinstance(who, str) and len(who) <= 200 and (why is None or (isinstance(why, str) and len(why) <= 2000))):
        raise BodyInvalid("'who' and 'why' must be text, of at most 200 and 2000 characters")
    return {"to": to, "who": who, "why": why}
