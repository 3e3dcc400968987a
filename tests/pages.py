"""The pages of the documentation as Markdown, for the tests that read them."""

import functools
import re
from collections.abc import Iterator
from pathlib import Path

from markdown_it import MarkdownIt
from markdown_it.token import Token
from source_pages import tracked_files

from mv2mae_jax import config as configs

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
NOTES = ROOT / "benchmarks/results"
PAGES = sorted([*ROOT.glob("*.md"), ROOT / "data/README.md", *DOCS.glob("*.md"), *NOTES.glob("*.md")])
PAGE_NAMES = [page.relative_to(ROOT).as_posix() for page in PAGES]


@functools.cache
def tokens(page: str) -> list[Token]:
    return MarkdownIt("commonmark").enable("table").parse((ROOT / page).read_text())


def inline(page: str, kind: str) -> Iterator[Token]:
    """The elements of one type in running text: 'link_open', 'image', 'code_inline'."""
    for token in tokens(page):
        yield from (child for child in token.children or () if child.type == kind)


def fences(page: str) -> Iterator[tuple[str, str, int]]:
    """(language, text, line) of every fenced block."""
    for token in tokens(page):
        if token.type == "fence":
            yield token.info.strip(), token.content, token.map[0] + 1


def anchors(page: str) -> set[str]:
    """The anchors of the headings, as GitHub and myst-parser make them."""
    found = []
    for heading, text in zip(tokens(page), tokens(page)[1:], strict=False):
        if heading.type == "heading_open":
            plain = "".join(c.content for c in text.children if c.type in ("text", "code_inline"))
            slug = re.sub(r"[^\w\- ]", "", plain.lower()).replace(" ", "-")
            found.append(f"{slug}-{found.count(slug)}" if slug in found else slug)
    return set(found)


@functools.cache
def repository() -> tuple[set[str], set[str]]:
    """The repository's files and its folders."""
    files = set(tracked_files())
    return files, {parent.as_posix() for file in files for parent in Path(file).parents}


@functools.cache
def in_examples() -> set[str]:
    """Keys, names and values that worked examples add. The code has them only in tests/test_docs_examples.py."""
    pages = ("docs/extending.md", "CONTRIBUTING.md")
    patches = "".join(text for page in pages for language, text, _ in fences(page) if language == "diff")
    added = "".join(re.findall(r"^\+.*\n", patches, re.M))
    return set(re.findall(r'^\+ +"([\w.]+)": ', added, re.M)) | set(re.findall(r'"(\w+)"[,)]', added))


@functools.cache
def written_in_code() -> str:
    """All Python files, one after the other."""
    return "\n".join((ROOT / file).read_text() for file in repository()[0] if file.endswith(".py"))


@functools.cache
def bases() -> dict[str, object]:
    """The base config of each task."""
    return {task: configs.load(str(ROOT / f"configs/{task}_base.py")) for task in configs.TASKS}
