"""What `keynet doctor` looks at: small checks, each with a name, a finding and, when something is wrong, a remedy."""

from __future__ import annotations

import os
import shlex
import shutil
from typing import TYPE_CHECKING

from keynet_core import KeynetError, Outbox, open_store
from keynet_server._checks_running import check_broker, check_engines, check_served, check_server
from keynet_server._findings import error, ok, onward, warning
from keynet_server._running import UP, find_running

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from keynet_server._findings import Finding
    from keynet_server._running import Running
    from keynet_server._settings import ServerSettings

_LOW_DISK_BYTES = 1 << 30
_NO_DISK_BYTES = 64 << 20


def check_all(settings: ServerSettings) -> Iterator[Finding]:
    """Yield the findings, cheap ones first; nothing is changed."""
    running = find_running(settings)
    yield from check_home(settings, running)
    has_home = settings.state_directory.is_dir()
    if not has_home and running.server is None:
        return
    if has_home:
        yield from check_store(settings)
        yield from check_journal(settings, running)
    yield from check_server(settings, running)
    yield from check_engines(running)
    if has_home:
        yield from check_outbox(settings.state_directory)
    yield from check_broker(settings, running)
    if has_home:
        yield from check_links(settings)
    yield from check_served(settings, running)


def check_home(settings: ServerSettings, running: Running) -> Iterator[Finding]:
    """Look at the home: there, writable, with room."""
    home = settings.state_directory
    if not home.is_dir():
        yield warning("home", f"{home} does not exist yet", running.start)
        return
    if not os.access(home, os.W_OK | os.X_OK):
        yield error("home", f"{home} cannot be written", f"chmod u+rwx {home}")
    else:
        yield ok("home", f"{home} can be written")
    free = shutil.disk_usage(home).free
    told = f"{free / 2**30:.1f} GiB free in {home}"
    if free < _NO_DISK_BYTES:
        yield error("disk", told, f"df -h {home}")
    elif free < _LOW_DISK_BYTES:
        yield warning("disk", told, f"df -h {home}")
    else:
        yield ok("disk", told)


def check_store(settings: ServerSettings) -> Iterator[Finding]:
    """Look at the package store."""
    try:
        open_store(settings.store_url).stat("packages/doctor/none/manifest.json")
    except KeynetError as trouble:
        yield error("store", trouble.message, onward(trouble.hint, "set KEYNET_STORE to where packages are"))
    else:
        yield ok("store", f"{settings.store_url} answers")


def check_journal(settings: ServerSettings, running: Running) -> Iterator[Finding]:
    """Look at the journal's database and its migrations."""
    from keynet_server._database import newest_revision, open_database, revision_of
    from keynet_server._reading import has_journal

    if not has_journal(settings):
        yield warning("journal", "there is no journal yet", running.start)
        return
    try:
        database = open_database(settings.journal_url)
        try:
            found = revision_of(database)
        finally:
            database.dispose()
    except KeynetError as trouble:
        remedy = onward(trouble.hint, "set KEYNET_DATABASE_URL to a database that answers")
        yield error("journal", trouble.message, running.start if remedy == UP else remedy)
        return
    if found != newest_revision():
        remedy = f"{running.start} brings it up to date; when it is newer: pip install --upgrade keynet-server"
        yield error("journal", f"its tables are at {found}, this keynet knows {newest_revision()}", remedy)
    else:
        yield ok("journal", f"its tables are up to date ({found})")


def check_outbox(home: Path) -> Iterator[Finding]:
    """Look at what waits to be announced, and at what was refused."""
    outbox = Outbox(home / "outbox")
    waiting, refused = outbox.entries("ready"), outbox.entries("refused")
    readable = {entry.directory for entry in (*waiting, *refused)}
    present = [path for state in ("ready", "refused") for path in sorted((outbox.root / state).glob("*"))]
    unreadable = [path for path in present if path not in readable]
    for directory in unreadable:
        yield error("outbox", f"the entry {directory} cannot be read", f"ls {directory}")
    for entry in waiting:
        told = entry.last_error() or {"message": "not tried yet"}
        yield warning("outbox", f"{entry.event.subject} waits: {told['message']}", _of_outbox(home, "flush"))
    for entry in refused:
        told = entry.last_error() or {"message": "no reason was kept"}
        remedy = _of_outbox(home, "show", entry.id)
        yield error("outbox", f"{entry.event.subject} was refused: {told['message']}", remedy)
    if not waiting and not refused and not unreadable:
        yield ok("outbox", "nothing waits")


def _of_outbox(home: Path, *words: str) -> str:
    """Return the command of those who train, which says what stands in the way when it cannot help."""
    return shlex.join(["keynet-train", "outbox", *words, "--home", str(home)])


def check_links(settings: ServerSettings) -> Iterator[Finding]:
    """Look for links of the serving repository that point nowhere."""
    from keynet_server._repository import open_repository

    try:
        broken = open_repository(settings.serving_url, settings.serving_root / "staging").broken()
    except KeynetError as trouble:
        yield error("links", trouble.message, onward(trouble.hint, "look at KEYNET_SERVING_REPOSITORY"))
        return
    for name in broken:
        remedy = "restart the server: it fetches the package again"
        yield error("links", f"what {name} is served from is not whole", remedy)
    if not broken:
        yield ok("links", "what every linked model is served from is whole")
