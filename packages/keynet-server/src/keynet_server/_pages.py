"""The landing page: what failed first, then what is live, then what was done last. Plain HTML, nothing to load."""

from __future__ import annotations

from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from keynet_server._records import Deployment, ModelState

_STYLE = """
body{font:15px/1.5 system-ui,sans-serif;margin:2rem auto;max-width:62rem;padding:0 1rem;color:#1c1e21}
table{border-collapse:collapse;width:100%;margin:.5rem 0 2rem}td,th{text-align:left;padding:.3rem .8rem .3rem 0;
border-bottom:1px solid #e2e4e8;vertical-align:top}.failed{color:#b00020}.deploying{color:#8a5a00}
code{font-size:13px}h1{font-size:1.4rem}h2{font-size:1.1rem}
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Links:
    """Where a browser finds the other engines; None for one that is not known."""

    tracking: str | None = None
    serving: str | None = None


def render_landing(models: Sequence[ModelState], recent: Sequence[Deployment], links: Links) -> str:
    """Return the page."""
    troubled = [each.last for each in models if each.last.state in {"failed", "deploying"}]
    live = [each.live for each in models if each.live]
    parts = [
        "<!doctype html><html lang=en><meta charset=utf-8><title>keynet</title>",
        f"<style>{_STYLE}</style><h1>keynet</h1>",
        _links(links),
        _table("Not as it should be", troubled) if troubled else "",
        _table("Live", live) if live else "<h2>Live</h2><p>Nothing is deployed yet.</p>",
        _table("Last deployments", recent) if recent else "",
        "</html>",
    ]
    return "".join(parts)


def _links(links: Links) -> str:
    named = (("MLflow", links.tracking), ("model server", links.serving))
    known = [f'<a href="{escape(url)}">{name}</a>' for name, url in named if url]
    known.append('<a href="/v1/models">models as JSON</a>')
    return f"<p>{' · '.join(known)}</p>"


def _table(title: str, rows: Iterable[Deployment]) -> str:
    head = "".join(f"<th>{name}" for name in ("model", "number", "version", "state", "package", "who", "when"))
    return f"<h2>{escape(title)}</h2><table><tr>{head}{''.join(map(_row, rows))}</table>"


def _row(each: Deployment) -> str:
    when = (each.finished_at or each.started_at).strftime("%Y-%m-%d %H:%M:%S UTC")
    why = f"<br>{escape(each.reason)}" if each.reason else ""
    history = f'<a href="/v1/models/{escape(each.model)}/history">{escape(each.model)}</a>'
    cells = (
        history,
        str(each.number),
        escape(each.served_version),
        f'<span class="{each.state}">{each.state}</span>{why}',
        f"<code>{escape(each.digest.removeprefix('sha256:')[:12])}</code>",
        escape(each.requested_by),
        when,
    )
    return "<tr>" + "".join(f"<td>{cell}" for cell in cells)
