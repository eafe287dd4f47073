"""What a caller handed over, for the length of one call."""

from __future__ import annotations

from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

from keynet_inference._errors import OutsideCall

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

_current: ContextVar[Mapping[str, Any] | None] = ContextVar("keynet_user_input", default=None)


class UserInput:
    """
    The parameters of the call that is running: `UserInput.get("threshold", 0.5)`.

    Each call sees its own, in whatever thread or task it runs; the environment is never touched. A thread that the
    function itself starts belongs to no call, unless it is run in `contextvars.copy_context()`, as
    `asyncio.to_thread` does.
    """

    @staticmethod
    def get(name: str, default: Any = None) -> Any:
        """
        Return the parameter `name`, or `default` when the caller did not hand it over.

        A parameter that was handed over as null is None, whatever the default. OpenWhisk's own `__ow_` parameters
        can be read as any other.

        Raises:
            OutsideCall: No function is being called here.

        """
        given = _current.get()
        if given is None:
            raise OutsideCall(
                f"UserInput.get({name!r}) was asked outside a call: parameters exist only while a function runs",
                hint="read it inside the function and hand the value on; run a thread in contextvars.copy_context()",
            )
        return given.get(name, default)


@contextmanager
def user_input(args: Mapping[str, Any]) -> Iterator[None]:
    """Make `args` what `UserInput` reads in this context, until the block ends."""
    token = _current.set(args)
    try:
        yield
    finally:
        _current.reset(token)
