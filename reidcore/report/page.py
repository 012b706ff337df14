"""A page in one file, that needs no network."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import Any

from reidcore.checkpoint import write_text


def write_page(file: Path, data: Mapping[str, Any]) -> Path:
    """Write a page that shows `data`, see page.js, and return its file. Raises RunError when that fails."""
    from plotly.offline import get_plotlyjs

    template, style, script = (
        (files("reidcore.report") / f"page.{suffix}").read_text("utf-8") for suffix in ("html", "css", "js")
    )
    # a text in a script must not end it; JSON may write any character as its number
    text = json.dumps(data, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")
    parts = {"title": escape(data["title"]), "style": style, "plotly": get_plotlyjs(), "data": text, "script": script}
    page = re.sub(r"@(\w+)@", lambda mark: parts[mark[1]], template)
    write_text(file, page)
    return file
