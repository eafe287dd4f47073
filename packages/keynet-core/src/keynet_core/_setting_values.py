"""How the text of a variable is read: yes or no, seconds, one of a few words."""

from __future__ import annotations

from keynet_core._errors import SettingsInvalid

_TRUE, _FALSE = {"1", "true", "yes", "on"}, {"0", "false", "no", "off"}


def to_bool(text: str) -> bool:
    """
    Read a yes or a no.

    Raises:
        SettingsInvalid: It is neither.

    """
    if (lowered := text.lower()) in _TRUE | _FALSE:
        return lowered in _TRUE
    raise SettingsInvalid(f"{text!r} is neither true nor false")


def to_seconds(text: str) -> float:
    """
    Read a time in seconds.

    Raises:
        SettingsInvalid: It is no number from 0.1 to 3600.

    """
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0.1 <= seconds <= 3600.0:
        raise SettingsInvalid(f"{text!r} is no number of seconds from 0.1 to 3600")
    return seconds


def to_addressing_style(text: str) -> str:
    """
    Read how a bucket is named in a URL.

    Raises:
        SettingsInvalid: It is not one of the three ways.

    """
    if text not in {"auto", "path", "virtual"}:
        raise SettingsInvalid(f"{text!r} is none of auto, path, virtual")
    return text
