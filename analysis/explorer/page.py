"""The explorer as one file: no kernel, no model, nothing from elsewhere, and nothing of an answer is ever run."""

from __future__ import annotations

import base64
import hashlib
import html
import json
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from analysis.explorer.data import known_options
from core.atomic import write_atomically
from core.errors import GroundingError


def explorer_page(answers: Sequence[dict[str, Any]], *, title: str = "Where the model looked") -> str:
    """One self-contained HTML page for some answers of `analysis.explorer.data.explorer_data`.

    Its Content-Security-Policy allows the page's own script and style, by their hashes, and pictures in data URIs;
    nothing else, whatever an answer says.

    Raises:
        GroundingError: no answers.
    """
    if not answers:
        raise GroundingError("there is no answer to explore; give at least one")
    script, style = script_of("page.js"), asset("explorer.css")
    policy = (
        f"default-src 'none'; img-src data:; script-src 'sha256-{_hash(script)}'; style-src 'sha256-{_hash(style)}'; "
        "base-uri 'none'; form-action 'none'"
    )
    told = json.dumps({"answers": list(answers), "known": known_options()}, ensure_ascii=True, allow_nan=False)
    for sign, code in (("<", "\\u003c"), (">", "\\u003e"), ("&", "\\u0026")):
        told = told.replace(sign, code)
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{html.escape(policy)}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<title>{html.escape(title)}</title><style>{style}</style></head><body class="explorer-page">'
        f'<div id="explorer"></div><script type="application/json" id="answers">{told}</script>'
        f'<script type="module">{script}</script></body></html>'
    )


def save_html(answers: Sequence[dict[str, Any]], path: str | Path, *, title: str = "Where the model looked") -> Path:
    """Write `explorer_page` to a file, whole or not at all; returns its path."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, explorer_page(answers, title=title).encode())
    return path


def explorer_iframe(answers: Sequence[dict[str, Any]], *, height: int = 760) -> str:
    """The page inside another one, such as an executed notebook: a frame that cannot reach what is around it."""
    page = html.escape(explorer_page(answers), quote=True)
    return (
        f'<div><iframe title="explorer of grounded answers" sandbox="allow-scripts" srcdoc="{page}" '
        f'style="width: 100%; height: {int(height)}px; border: 1px solid #ccc; border-radius: 8px"></iframe></div>'
    )


def script_of(start: str) -> str:
    """The explorer's script: what it computes, what it shows, and the file that starts it."""
    return "".join(asset(name) for name in ("maps.js", "view.js", start))


def asset(name: str) -> str:
    """A file of this package."""
    return (files("analysis") / "explorer" / name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
