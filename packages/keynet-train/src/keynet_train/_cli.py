"""`keynet-train`: the command of those who train; nothing of MLflow or torch is imported for it."""

from __future__ import annotations

import sys

import click

from keynet_core import KeynetError
from keynet_train._cli_outbox import outbox
from keynet_train._output import FAILED, INTERRUPTED, exit_code_of, print_error


@click.group(
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Exit codes: 0 done, 1 failed or refused, 2 usage, 4 not found, 5 another process is at it, "
    "6 still waits or unavailable, 130 interrupted.",
)
@click.version_option(package_name="keynet-train", prog_name="keynet-train")
def keynet_train() -> None:
    """Look after what was trained here: what waits to be published, and handing it over."""


keynet_train.add_command(outbox)


def main() -> None:
    """Run the command; the one place where an error becomes a sentence and an exit code."""
    as_json = "--json" in sys.argv
    try:
        sys.exit(keynet_train(prog_name="keynet-train", standalone_mode=False))
    except KeynetError as error:
        print_error(error, as_json=as_json)
        sys.exit(exit_code_of(error))
    except OSError as error:
        told = KeynetError(f"{error.filename or 'the system'}: {error.strerror or error}", hint="df -h .")
        print_error(told, as_json=as_json)
        sys.exit(FAILED)
    except (click.Abort, KeyboardInterrupt):
        sys.exit(INTERRUPTED)
    except click.ClickException as refused:
        refused.show()
        sys.exit(refused.exit_code)
