"""The keynet server as commands ask it: JSON over one bounded HTTP request, never through a proxy."""

from __future__ import annotations

import http.client
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from keynet_core import Secret
from keynet_server._errors import ServerRefused, ServerUnreachable
from keynet_server._running import UP, find_running

if TYPE_CHECKING:
    from collections.abc import Mapping

    from keynet_server._settings import ServerSettings

_MAX_ANSWER_BYTES = 32 * 1024 * 1024


@dataclass(frozen=True, kw_only=True)
class ServerClient:
    """Asks one server."""

    url: str
    token: Secret | None = None
    timeout_s: float = 10.0
    start: str = UP
    """The command that starts it."""

    def get(self, path: str) -> dict[str, Any]:
        """Return what stands at a path."""
        return self._ask("GET", path, None)

    def post(self, path: str, told: Mapping[str, object]) -> dict[str, Any]:
        """Send JSON to a path, with the token, and return the answer."""
        return self._ask("POST", path, json.dumps(told).encode())

    def _ask(self, method: str, path: str, body: bytes | None) -> dict[str, Any]:
        headers = {"Content-Type": "application/json"} if body is not None else {}
        if body is not None and self.token is not None:
            headers["Authorization"] = f"Bearer {self.token.reveal()}"
        connection = self._connect()
        try:
            connection.request(method, urlsplit(self.url).path + path, body, headers)
            answer = connection.getresponse()
            text = answer.read(_MAX_ANSWER_BYTES)
        except (OSError, http.client.HTTPException) as error:
            raise ServerUnreachable(
                f"the keynet server at {self.url} does not answer: {error or type(error).__name__}", hint=self.start
            ) from error
        finally:
            connection.close()
        return self._read(answer.status, text)

    def _connect(self) -> http.client.HTTPConnection:
        parts = urlsplit(self.url)
        if parts.scheme == "https":
            import ssl

            context = ssl.create_default_context()
            return http.client.HTTPSConnection(
                str(parts.hostname), parts.port or 443, timeout=self.timeout_s, context=context
            )
        return http.client.HTTPConnection(str(parts.hostname), parts.port or 80, timeout=self.timeout_s)

    def _read(self, status: int, text: bytes) -> dict[str, Any]:
        try:
            told = json.loads(text)
        except ValueError:
            told = None
        if not isinstance(told, dict):
            raise ServerRefused(f"what answers at {self.url} is no keynet server", hint="keynet doctor", status=502)
        if status >= 400:
            detail = str(told.get("detail") or f"the server answered {status}")
            raise ServerRefused(detail, hint=told.get("hint"), status=status, problem_code=told.get("code"))
        return told


def find_server(settings: ServerSettings) -> ServerClient | None:
    """Return the server to ask: `KEYNET_URL`, else the one that runs on the home, else None."""
    running = find_running(settings)
    url = settings.url or running.server
    if url is None:
        return None
    token = settings.token
    if token is None and running.up is not None and url == running.up.server:
        token = _token_of_home(settings)
    return ServerClient(url=url, token=token, start=running.start)


def require_server(settings: ServerSettings) -> ServerClient:
    """
    Return the server to ask.

    Raises:
        ServerUnreachable: None is known.

    """
    client = find_server(settings)
    if client is None:
        raise ServerUnreachable(
            f"no keynet server is known: nothing runs on {settings.state_directory}, and KEYNET_URL is not set",
            hint=find_running(settings).start,
        )
    return client


def _token_of_home(settings: ServerSettings) -> Secret | None:
    try:
        return Secret((settings.state_directory / "run" / "token").read_text().strip())
    except OSError:
        return None
