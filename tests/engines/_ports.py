"""Ports on loopback that nobody else has, and that no other test run takes meanwhile."""

from __future__ import annotations

import random
import socket

from engines._errors import EngineFailed

# Below the range from which the kernel takes the ports of outgoing connections.
LOWEST, HIGHEST = 12000, 32000
TRIES = 200


class Ports:
    """
    A block of neighbouring ports, reserved among test runs until closed.

    The reservation is a socket in Linux's abstract namespace, one per port: it ends with this process, however it ends.
    """

    def __init__(self, count: int) -> None:
        for _ in range(TRIES):
            first = random.randrange(LOWEST, HIGHEST - count)  # noqa: S311 - no secret
            held = [_hold(port) for port in range(first, first + count)]
            self._held = [each for each in held if each is not None]
            if len(self._held) == count:
                self.first = first
                return
            self.close()
        raise EngineFailed(f"no {count} free neighbouring ports were found between {LOWEST} and {HIGHEST}")

    def close(self) -> None:
        """Let others have the ports."""
        for each in self._held:
            each.close()


def _hold(port: int) -> socket.socket | None:
    lock = socket.socket(socket.AF_UNIX)
    try:
        lock.bind(f"\0keynet-engines-port-{port}")
        with socket.socket() as probe:
            # As the servers do it: what is left of closed connections does not matter.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(("127.0.0.1", port))
    except OSError:
        lock.close()
        return None
    return lock


def is_open(port: int) -> bool:
    """Tell whether something accepts connections at a port of loopback."""
    try:
        socket.create_connection(("127.0.0.1", port), 1).close()
    except OSError:
        return False
    return True
