"""What is deployed, from the running server, or, when nothing runs, from the journal of the home."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import quote

from keynet_core import to_model_name
from keynet_server._client import find_server, require_server

if TYPE_CHECKING:
    from collections.abc import Iterator

    from keynet_server._client import ServerClient
    from keynet_server._journal import Journal
    from keynet_server._settings import ServerSettings


class Reader(Protocol):
    """Answers with the plain values that the server's JSON has."""

    def models(self) -> list[dict[str, Any]]:
        """Return every model: `name`, `live`, `last`."""

    def model(self, name: str) -> dict[str, Any]:
        """Return one model."""

    def history(self, name: str) -> dict[str, Any]:
        """Return a model's `deployments`, newest first, and whether the list is `truncated`."""

    def events(self, limit: int) -> list[dict[str, Any]]:
        """Return the events that were received last, newest first."""

    def event(self, event_id: str) -> dict[str, Any]:
        """Return one event, whole, and what became of it."""


class ServerReader:
    """Reads from a server."""

    def __init__(self, client: ServerClient) -> None:
        self._client = client

    def models(self) -> list[dict[str, Any]]:
        """Return every model."""
        found: list[dict[str, Any]] = self._client.get("/v1/models")["models"]
        return found

    def model(self, name: str) -> dict[str, Any]:
        """Return one model."""
        return self._client.get(f"/v1/models/{quote(to_model_name(name))}")

    def history(self, name: str) -> dict[str, Any]:
        """Return a model's deployments."""
        return self._client.get(f"/v1/models/{quote(to_model_name(name))}/history")

    def events(self, limit: int) -> list[dict[str, Any]]:
        """Return the newest events."""
        found: list[dict[str, Any]] = self._client.get(f"/v1/events?limit={limit}")["events"]
        return found

    def event(self, event_id: str) -> dict[str, Any]:
        """Return one event."""
        return self._client.get(f"/v1/events/{quote(event_id)}")


class JournalReader:
    """Reads from a journal."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal

    def models(self) -> list[dict[str, Any]]:
        """Return every model."""
        return [each.to_dict() for each in self._journal.models()]

    def model(self, name: str) -> dict[str, Any]:
        """Return one model."""
        model = to_model_name(name)
        last = self._journal.history(model, limit=1)[0]
        live = self._journal.live(model)
        return {"name": model, "live": live.to_dict() if live else None, "last": last.to_dict()}

    def history(self, name: str) -> dict[str, Any]:
        """Return a model's deployments."""
        return self._journal.newest(to_model_name(name)).to_dict()

    def events(self, limit: int) -> list[dict[str, Any]]:
        """Return the newest events."""
        return [each.to_dict() for each in self._journal.newest_events(limit=limit)]

    def event(self, event_id: str) -> dict[str, Any]:
        """Return one event."""
        return self._journal.event(event_id).to_whole()


@contextmanager
def open_reader(settings: ServerSettings) -> Iterator[tuple[Reader, bool]]:
    """
    Yield what answers, and whether that is a running server.

    Raises:
        ServerUnreachable: No server is known, and the home has no journal either.

    """
    client = find_server(settings)
    if client is not None or not has_journal(settings):
        yield ServerReader(client or require_server(settings)), True
        return
    from keynet_server._database import open_database
    from keynet_server._journal import Journal

    database = open_database(settings.journal_url)
    try:
        yield JournalReader(Journal(database)), False
    finally:
        database.dispose()


def has_journal(settings: ServerSettings) -> bool:
    """Return whether there is a journal to read without a server; to look does not create one."""
    if settings.database_url is None:
        return (settings.state_directory / "keynet.db").exists()
    from keynet_server._database import sqlite_file

    file = sqlite_file(settings.journal_url)
    return file is None or file.exists()
