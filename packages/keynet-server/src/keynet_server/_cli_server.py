"""`keynet server`."""

from __future__ import annotations

import click

from keynet_server._options import examples


@examples("keynet server", "keynet server --host 0.0.0.0 --mlflow-url https://mlflow.example.com")
@click.command()
@click.option("--host", default="127.0.0.1", show_default=True, help="The address to listen on.")
@click.option("--port", type=click.IntRange(1, 65535), default=8700, show_default=True, help="The port to listen on.")
@click.option("--mlflow-url", help="Where people find MLflow; the landing page shows it.")
def server(host: str, port: int, mlflow_url: str | None) -> None:
    """
    Run the keynet server alone, until it is stopped: MLflow, the model server and the rest run elsewhere.

    Where they are is read from the environment: TRITON_URL, KEYNET_STORE, KEYNET_DATABASE_URL and the others of
    the settings page. KEYNET_TOKEN must be set. It answers for loopback, and for the names in KEYNET_ALLOWED_HOSTS.
    """
    from keynet_server._serve import serve

    serve(host, port, tracking=mlflow_url)
