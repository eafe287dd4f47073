"""`keynet`: the operator's command. Each group is imported when it is called for."""

from __future__ import annotations

import sys
from importlib import import_module
from typing import ClassVar

import click

from keynet_core import KeynetError

_EPILOG = "Exit codes: 0 done, 1 failed, 2 usage, 3 forbidden, 4 not found, 5 conflict, 6 unavailable, 130 interrupted."


class LazyGroup(click.Group):
    """A group whose commands are imported by name, when one of them is called or shown in detail."""

    commands_by_name: ClassVar[dict[str, tuple[str, str]]] = {
        "up": ("keynet_server._cli_up:up", "Start everything embedded, and keep it running."),
        "server": ("keynet_server._cli_server:server", "Run the keynet server alone, as a cluster does."),
        "models": ("keynet_server._cli_models:models", "Show what is deployed and its history, and go back."),
        "events": ("keynet_server._cli_events:events", "Show what was announced, what failed, and act on it again."),
        "doctor": ("keynet_server._cli_doctor:doctor", "Check the home and everything that runs on it."),
    }

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - Click's signature
        """Return the names, in the order of the table."""
        return list(self.commands_by_name)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002 - Click's signature
        """Import a command."""
        if cmd_name not in self.commands_by_name:
            return None
        module, name = self.commands_by_name[cmd_name][0].split(":")
        command: click.Command = getattr(import_module(module), name)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002 - Click's signature
        """List the commands without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, told) for name, (_, told) in self.commands_by_name.items()])


@click.command(cls=LazyGroup, epilog=_EPILOG, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="keynet-server", prog_name="keynet")
def keynet() -> None:
    """From a training function to a served function: run it here, see what is live, go back."""


def main() -> None:
    """Run the command; the one place where an error becomes a sentence and an exit code."""
    try:
        keynet(standalone_mode=False)
    except (KeynetError, OSError) as error:
        from keynet_server._output import report

        sys.exit(report(error, as_json="--json" in sys.argv))
    except click.exceptions.Exit as done:
        sys.exit(done.exit_code)
    except (click.Abort, KeyboardInterrupt):
        sys.exit(130)
    except click.ClickException as refused:
        refused.show()
        sys.exit(refused.exit_code)
