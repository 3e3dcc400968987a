"""Sphinx reads this: `make docs` renders docs/*.md into docs/_build/html, without network, every warning an error."""

import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "docs" / "_extensions")]

project = "mv2mae-jax"
author = "the authors of mv2mae-jax"
copyright = "Apache-2.0"

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "config_tables",
    "hidden_directives",
    "source_pages",
    "mathml",
    "plain_docstrings",
]
exclude_patterns = ["_build"]

myst_enable_extensions = ["dollarmath", "attrs_block"]
myst_heading_anchors = 3  # the anchors that GitHub makes
autodoc_member_order = "bysource"
autodoc_typehints = "none"  # docstrings give shapes, which say more
napoleon_use_ivar = True
toc_object_entries = False

highlight_language = "sh"  # of blocks without a language, which are commands

html_theme = "furo"
html_title = "mv2mae-jax"
html_static_path = ["_static"]
html_css_files = ["custom.css"]
html_copy_source = False
smartquotes = False
html_show_copyright = False
html_math_renderer = "mathml"
pygments_style = "friendly"
pygments_dark_style = "github-dark"
