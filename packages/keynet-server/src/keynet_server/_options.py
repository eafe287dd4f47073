"""Options that several commands share."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import click

from keynet_core import SettingsInvalid, read_settings
from keynet_server._settings import ServerSettings

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

home_option = click.option(
    "--home",
    type=click.Path(file_okay=False, path_type=Path),
    help="The home to work on.  [default: $KEYNET_HOME, else ./.keynet]",
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


def examples(*lines: str) -> Callable[[Any], Any]:
    """Put examples at the end of a command's help."""

    def add(command: click.Command) -> click.Command:
        command.epilog = "\b\nExamples:\n" + "\n".join(f"  {line}" for line in lines)
        return command

    return add


def settings_for(home: Path | None) -> ServerSettings:
    """
    Return the settings of this process; `--home` before `KEYNET_HOME`.

    A TRITON_URL that a server could not use is a function's, as `grpc://` is, and no reason to refuse a command.
    """
    environ = dict(os.environ)
    try:
        read_settings(ServerSettings, {"TRITON_URL": environ.get("TRITON_URL", "")})
    except SettingsInvalid:
        del environ["TRITON_URL"]
    return read_settings(ServerSettings, environ, home=home.expanduser().absolute() if home else None)
