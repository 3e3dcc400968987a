"""Directives in HTML comments, so that GitHub, which knows none, shows a page without them.

    <!-- {literalinclude} ../mv2mae_jax/objectives/losses.py
    :pyobject: motion_weights -->

stands for the fenced block with this content.
"""

import re

from sphinx.application import Sphinx

HIDDEN = re.compile(r"<!-- (\{[\w-]+\}.*?) -->", re.DOTALL)


def _show(app: Sphinx, docname: str, content: list[str]) -> None:
    del app, docname
    content[0] = HIDDEN.sub(r"```\1\n```", content[0])


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("source-read", _show)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
