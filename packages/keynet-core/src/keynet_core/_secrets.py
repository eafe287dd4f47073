"""A value that must not be printed."""

from __future__ import annotations

from typing import Final


class Secret:
    """A password or token: its repr and str are masked, `reveal` is the only way to the text."""

    __slots__ = ("_text",)

    MASK: Final = "********"

    def __init__(self, text: str) -> None:
        self._text = text

    def reveal(self) -> str:
        """Return the text itself."""
        return self._text

    def matches(self, other: str) -> bool:
        """Compare with a text in a time that does not tell how much of it is right."""
        import hmac

        return hmac.compare_digest(_bytes(self._text), _bytes(other))

    def __repr__(self) -> str:
        return f"Secret({self.MASK!r})"

    def __str__(self) -> str:
        return self.MASK

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and self.matches(other._text)

    def __hash__(self) -> int:
        return hash((Secret, self._text))

    def __reduce__(self) -> tuple[object, ...]:
        raise TypeError("a Secret is not pickled: hand the text over where it is needed")


def _bytes(text: str) -> bytes:
    # Environments and headers may hold bytes that are no UTF-8.
    return text.encode("utf-8", "surrogatepass")
