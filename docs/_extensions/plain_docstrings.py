"""Docstrings here are plain text with `code` in it: what reStructuredText would read otherwise is escaped."""

import re

from sphinx.application import Sphinx


def escape(line: str) -> str:
    """`code` becomes a literal; asterisks, bars, underscores and backslashes elsewhere stand for themselves."""
    parts = re.split(r"(`[^`]*`)", line)
    return "".join(f"`{part}`" if part.startswith("`") else re.sub(r"([*|\\]|_\b)", r"\\\1", part) for part in parts)


def _process(app: Sphinx, what: str, name: str, obj: object, options: object, lines: list[str]) -> None:
    del app, what, name, obj, options
    lines[:] = [escape(line) for line in lines]


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("autodoc-process-docstring", _process, priority=400)  # before napoleon reads the sections
    return {"parallel_read_safe": True, "parallel_write_safe": True}
