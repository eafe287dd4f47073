"""Which port each engine gets, and who listens on one: what `keynet up` must not leave to luck."""

from __future__ import annotations

import errno
import os
import secrets
import socket
import stat
import tempfile
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from keynet_core import LockTimeout, SettingsInvalid, locked, make_private_directory
from keynet_server._errors import PortTaken

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

HOST = "127.0.0.1"
DEFAULT_PORTS = {"port": 8700, "mlflow-port": 5000, "serving-port": 8000, "grpc-port": 8001}
_FIRST_PORT, _PORTS = 20_000, 12_000
_LISTEN = "0A"


@dataclass(frozen=True, slots=True, kw_only=True)
class Ports:
    """A port for each engine."""

    server: int
    mlflow: int
    serving: int
    grpc: int


@contextmanager
def reserved_ports(
    asked: Mapping[str, int | None], environ: Mapping[str, str], say: Callable[[str], None]
) -> Iterator[Ports]:
    """
    Yield a free port per engine: the one asked for, else the usual one, else any, which is said.

    An engine binds its port seconds later, so until the block ends no other `keynet up` of this user is given it.

    Raises:
        PortTaken: A port that was asked for is in use.

    """
    locks = _lock_directory(environ)
    with ExitStack() as held:
        server, mlflow, serving, grpc = (
            _choose(option, asked.get(option), usual, lambda port: _take(port, locks, held), say)
            for option, usual in DEFAULT_PORTS.items()
        )
        yield Ports(server=server, mlflow=mlflow, serving=serving, grpc=grpc)


def require_free(host: str, port: int) -> None:
    """
    Check that a server can listen on an address, before it begins anything.

    Raises:
        PortTaken: Another program does.
        SettingsInvalid: It is no address of this machine, or none that this user may have.

    """
    where = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    try:
        found = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError) as error:  # the latter for a name with a part of over 63 letters
        raise _no_address(where, error) from error
    refusals = [_refusal(family, address) for family, _, _, _, address in found]
    if any(refusal and refusal.errno == errno.EADDRINUSE for refusal in refusals):
        raise PortTaken(f"{where} is in use", hint=f"ss -ltnp 'sport = :{port}' names who listens; or give --port")
    if refusals[0] and all(refusals):  # a name may have an address of a family that this machine does not speak
        raise _no_address(where, refusals[0])


def listens(port: int, ancestor: int) -> bool | None:
    """
    Return whether a process, or one that it started, listens on a port of this machine; None when nobody can tell.

    Args:
        port: The TCP port.
        ancestor: The process id.

    """
    try:
        wanted = _listening(port)
        # Without a listener in the table, though one answered, the table is not to be relied on.
        return any(_sockets_of(pid) & wanted for pid in _family(ancestor)) if wanted else None
    except OSError:
        return None


def _refusal(family: int, address: Any) -> OSError | None:
    """Return why an address cannot be listened on, or None."""
    try:
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as error:
        return error
    return None


def _no_address(where: str, error: Exception) -> SettingsInvalid:
    told = f"the server cannot listen on {where}: {getattr(error, 'strerror', None) or error}"
    return SettingsInvalid(told, hint="give it another --host or --port")


def _choose(option: str, asked: int | None, usual: int, take: Callable[[int], bool], say: Callable[[str], None]) -> int:
    wanted = usual if asked is None else asked
    if wanted and take(wanted):
        return wanted
    if asked:
        raise PortTaken(f"port {asked} is in use, asked for with --{option}", hint=f"keynet up --{option} 0")
    free = _take_any(take)
    if asked is None:
        say(f"port {usual} is in use; --{option} is {free} this time")
    return free


def _take_any(take: Callable[[int], bool]) -> int:
    # From below those the system gives to outgoing connections, so that it stays free.
    while True:
        port = _FIRST_PORT + secrets.randbelow(_PORTS)
        if take(port):
            return port


def _take(port: int, locks: Path, held: ExitStack) -> bool:
    with ExitStack() as taking:
        try:
            taking.enter_context(locked(locks / str(port), timeout_s=0.0))
        except LockTimeout:
            return False
        if not _is_free(port):
            return False
        held.enter_context(taking.pop_all())
        return True


def _lock_directory(environ: Mapping[str, str]) -> Path:
    """Return the directory that all `keynet up` of this user share, closed to others."""
    runtime = Path(environ.get("XDG_RUNTIME_DIR", ""))
    # After a change of user the variable may still name the directory of the one before.
    is_usable = runtime.is_absolute() and os.access(runtime, os.W_OK | os.X_OK)
    directory = (runtime if is_usable else Path(tempfile.gettempdir())) / f"keynet-ports-{os.getuid()}"
    make_private_directory(directory)
    found = directory.lstat()
    # The temporary directory is everybody's: what another user put there is not written into.
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
        raise PermissionError(errno.EPERM, "it is not a directory of this user", str(directory))
    directory.chmod(0o700)
    return directory


def _is_free(port: int) -> bool:
    return _refusal(socket.AF_INET, (HOST, port)) is None


def _listening(port: int) -> set[str]:
    """Return the sockets that listen on a port, as /proc names them."""
    found = set()
    for table in (Path("/proc/net/tcp"), Path("/proc/net/tcp6")):
        if not table.exists():
            continue
        for line in table.read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == _LISTEN and int(fields[1].rpartition(":")[2], 16) == port:
                found.add(f"socket:[{fields[9]}]")
    return found


def _sockets_of(pid: int) -> set[str]:
    found = set()
    for each in _names(Path(f"/proc/{pid}/fd")):
        try:
            found.add(os.readlink(each))  # noqa: PTH115 - the text of a link that leads to no file
        except (FileNotFoundError, ProcessLookupError):  # closed meanwhile
            continue
    return found


def _family(pid: int) -> Iterator[int]:
    """Yield a process and all that descend from it; what ends meanwhile is left out."""
    yield pid
    for task in _names(Path(f"/proc/{pid}/task")):
        try:
            children = (task / "children").read_text().split()
        except (FileNotFoundError, ProcessLookupError):
            # A kernel without this file cannot say who descends from whom.
            if task.exists():
                raise
            continue
        for child in children:
            yield from _family(int(child))


def _names(directory: Path) -> list[Path]:
    try:
        return list(directory.iterdir())
    except (FileNotFoundError, ProcessLookupError):  # it ended
        return []
