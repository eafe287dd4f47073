"""The queues of the broker and their dead letters: from the broker itself, or from the server that listens to it."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from keynet_server._broker import Broker
from keynet_server._client import ServerClient, find_server
from keynet_server._dead_letters import LOOKED_AT, look
from keynet_server._errors import ServerRefused

if TYPE_CHECKING:
    from keynet_core import Endpoints
    from keynet_server._settings import ServerSettings

PATIENCE_S = 90.0
"""Longer than the server's own patience with the broker."""

_NOT_FOUND = 404


def read_queues(
    settings: ServerSettings,
    running: Endpoints | None,
    *,
    limit: int = LOOKED_AT,
    timeout_s: float = PATIENCE_S,
) -> dict[str, Any] | None:
    """
    Return what waits and what is dead; None when no broker is known, here or to the server.

    Args:
        settings: What names the broker, else the server.
        running: What `keynet up` runs.
        limit: How many dead letters are read.
        timeout_s: How long the server may take to answer.

    Raises:
        BrokerUnavailable: The broker does not answer.
        MissingDependency: aio-pika is not installed here.
        ServerRefused: The server cannot tell.
        ServerUnreachable: The server does not answer.

    """
    broker = Broker.of(settings)
    if broker is not None:
        return asyncio.run(look(broker, limit=limit)).to_dict()
    client = ServerClient(url=running.server) if running is not None else find_server(settings)
    if client is None:
        return None
    try:
        return replace(client, timeout_s=timeout_s).get(f"/v1/events/dead?limit={limit}")
    except ServerRefused as error:
        if error.status == _NOT_FOUND:
            return None
        raise


def tell_dead(queues: dict[str, Any]) -> str:
    """Return, in one sentence, how many dead letters there are, and the newest of those that were read."""
    head, letters = f"{queues['dead']} dead letters", queues["letters"]
    if not letters:
        return f"{head}; somebody looks at them"
    # A queue is read from its oldest end, and to read all of a long one would hide it from others for long.
    which = "newest" if len(letters) >= queues["dead"] else f"newest of the oldest {len(letters)}"
    return f"{head}; the {which} is {letters[-1]['id']}: {letters[-1]['reason']}"
