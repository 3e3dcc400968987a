"""Pages for the files of the repository that the documentation links to, so that `../configs/demo.py` leads somewhere.

On GitHub such a link opens the file; in the rendered pages it opens a page with its text, or a folder's list of files.
"""

import html
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

from docutils import nodes
from sphinx import addnodes
from sphinx.application import Sphinx

ROOT = Path(__file__).resolve().parents[2]
_IS_OUTPUT = re.compile(r"\.(?!ci|gitignore).*|_build|__pycache__|demo_output|benchmark_output|runs").fullmatch
_LANGUAGES = {".py": "python", ".md": "markdown", ".json": "json", ".jsonl": "text", ".toml": "toml", ".ipynb": "json"}


def tracked_files(root: Path = ROOT) -> list[str]:
    """The repository's files, relative to its root; new ones that git does not ignore included."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    try:
        listed = subprocess.run(command, cwd=root, check=True, capture_output=True, text=True).stdout.splitlines()
    except (OSError, subprocess.CalledProcessError):  # an unpacked archive: everything but environments and output
        paths = [path.relative_to(root) for path in root.rglob("*") if path.is_file()]
        listed = [path.as_posix() for path in paths if not any(map(_IS_OUTPUT, path.parts))]
    return sorted(path for path in listed if (root / path).exists())


def _page_name(path: str) -> str:
    return f"sources/{path}"


def _link_to_pages(app: Sphinx, doctree: nodes.document) -> None:
    """Replaces references to files outside of docs/ by references to their pages."""
    if app.builder.format != "html":
        return
    docname = app.env.docname
    for node in list(doctree.findall(lambda n: isinstance(n, addnodes.download_reference | addnodes.pending_xref))):
        if node.get("reftype") != "myst":
            continue
        target = node["reftarget"].partition("#")[0]
        if node.get("refdomain") == "doc":  # a Markdown file; its ending is gone
            target = f"/{target}.md"
        _, absolute = app.env.relfn2path(target, docname)
        absolute = Path(absolute).resolve()
        if not absolute.is_relative_to(ROOT) or absolute.is_relative_to(app.srcdir) or not absolute.exists():
            continue
        path = absolute.relative_to(ROOT).as_posix()
        app.env.source_pages = getattr(app.env, "source_pages", set()) | {path}
        uri = app.builder.get_relative_uri(docname, _page_name(path))
        node.replace_self(nodes.reference("", "", *node.children, refuri=uri, internal=True))


def _pages(app: Sphinx) -> Iterator[tuple[str, dict[str, str], str]]:
    wanted, done, files = sorted(getattr(app.env, "source_pages", set())), set(), tracked_files()
    while wanted:
        path = wanted.pop()
        if path in done:
            continue
        done.add(path)
        title = html.escape(path)
        if (ROOT / path).is_dir():
            inside = [file for file in files if file.startswith(f"{path}/")]
            wanted += inside
            names = "".join(
                f'<li><a href="{app.builder.get_relative_uri(_page_name(path), _page_name(file))}">'
                f"{html.escape(file.removeprefix(path + '/'))}</a></li>"
                for file in inside
            )
            body = f"<ul>{names}</ul>"
        elif Path(path).suffix in (".png", ".jpg"):
            body = "<p>A picture; see the repository.</p>"
        else:
            language = _LANGUAGES.get(Path(path).suffix, "text")
            body = app.builder.highlighter.highlight_block((ROOT / path).read_text(), language, force=True)
        yield _page_name(path), {"title": title, "body": f"<h1>{title}</h1>{body}"}, "page.html"


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("doctree-read", _link_to_pages, priority=100)  # before files are collected for download
    app.connect("html-collect-pages", _pages)
    return {"parallel_read_safe": False, "parallel_write_safe": True}
