"""The server's HTTP routes: parse, call the domain, render."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request  # noqa: TC002 - FastAPI reads annotations while the program runs
from starlette.responses import HTMLResponse, JSONResponse, Response  # noqa: TC002 - the same

from keynet_core import KeynetError, to_model_name
from keynet_server._errors import BodyInvalid
from keynet_server._event_routes import route_events
from keynet_server._http import LOOPBACK_HOSTS, Guard, problem, read_body, require_token, to_problem
from keynet_server._pages import render_landing

if TYPE_CHECKING:
    from collections.abc import Collection

    from keynet_core import Secret
    from keynet_server._broker import Broker
    from keynet_server._consumer import Consumer
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
    consumer: Consumer | None = None
    """What takes events from a broker, when there is one."""

    @property
    def broker(self) -> Broker | None:
        """The broker that events come from."""
        return self.consumer.broker if self.consumer is not None else None


def create_app(services: Services) -> FastAPI:
    """Return the application; it holds no state of its own."""
    app = FastAPI(title="keynet", docs_url=None, redoc_url=None, openapi_url="/v1/openapi.json")
    app.add_middleware(Guard, hosts=services.hosts)
    _handle_errors(app)
    route_events(app, services)
    _route_models(app, services)
    _route_health(app, services)
    return app


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

    @app.post("/v1/models/{name}/unload")
    async def unload(name: str, request: Request) -> Response:
        """Ask that a model is served no more: `{"why": "...", "who": "..."}`; the event tells what came of it."""
        require_token(request, services.token)
        body = await read_body(request, content_type="application/json", max_bytes=_MAX_REQUEST_BYTES)
        asked = _to_request(body, ("why", "who"))
        event = await run_in_threadpool(services.deployer.request_unload, to_model_name(name), **asked)
        services.worker.wake()
        return JSONResponse({"id": event.id, "model": name}, status_code=202)


def _route_health(app: FastAPI, services: Services) -> None:
    journal = services.deployer.journal

    @app.get("/healthz")
    def health() -> dict[str, str]:
        """Say that the process takes requests."""
        return {"status": "ok"}

    @app.get("/readyz")
    def ready() -> Response:
        """
        Say whether events are acted on: journal, worker and model server.

        A broker that is away is told, and no reason to send nobody here: going back is asked for over HTTP.
        """
        journal.unfinished(limit=1)
        parts = {"worker": services.worker.is_alive(), "engine": services.deployer.is_engine_live()}
        also = {"broker": services.consumer.status.is_listening} if services.consumer is not None else {}
        told = {"status": "ok" if all({**parts, **also}.values()) else "degraded", "journal": True, **parts, **also}
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

    @app.exception_handler(RequestValidationError)
    async def refuse_query(request: Request, error: RequestValidationError) -> Response:
        told = "; ".join(f"{each['loc'][-1]}: {each['msg']}" for each in error.errors())
        return problem(422, f"the request cannot be read: {told}", request.state.request_id, code="request.invalid")

    @app.exception_handler(HTTPException)
    async def refuse_route(request: Request, error: HTTPException) -> Response:
        return problem(error.status_code, error.detail, request.state.request_id, code="request.no_route")


def _to_request(body: bytes, keys: Collection[str]) -> dict[str, Any]:
    """Return what an operator asks for: who and why, and the other keys, as they are told."""
    try:
        told = json.loads(body or b"{}")
    except (ValueError, RecursionError) as error:
        raise BodyInvalid(f"the body is no JSON: {error}") from error
    if not isinstance(told, dict) or set(told) - set(keys):
        raise BodyInvalid(f"the body must be a JSON object with {_named(keys)}, each optional")
    who, why = told.get("who") or "unknown", told.get("why")
    if not (isinstance(who, str) and len(who) <= 200 and (why is None or (isinstance(why, str) and len(why) <= 2000))):
        raise BodyInvalid("'who' and 'why' must be text, of at most 200 and 2000 characters")
    return told | {"who": who, "why": why}


def _to_rollback(body: bytes) -> dict[str, Any]:
    asked = _to_request(body, ("to", "why", "who"))
    to = asked.get("to")
    if not (to is None or (type(to) is int and to > 0)):
        raise BodyInvalid(f"'to' must be the number of a deployment, got {to!r:.80}")
    return asked | {"to": to}


def _named(keys: Collection[str]) -> str:
    *first, last = (f"'{key}'" for key in keys)
    return f"{', '.join(first)} and {last}"
