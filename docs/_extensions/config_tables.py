"""Directives that write tables from configs/: every key, the paper's choices and ours, the configs, the ablations."""

import importlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any, ClassVar

from docutils import nodes
from docutils.statemachine import StringList
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from configs.ablations import ABLATIONS
from mv2mae_jax import config as configs

CONFIGS = Path(configs.CONFIGS)


def keys_table(base: str) -> list[str]:
    """Markdown: a table for each section of a base config, with every key, its value, origin and reason."""
    config = configs.load(str(CONFIGS / f"{base}.py"))
    values, sections = dict(configs.flatten(config)), {}
    for key, reason in configs.reasons_of(config).items():
        sections.setdefault(key.rpartition(".")[0], []).append((f"`{key}`", _value(values[key]), *reason))
    lines = []
    for section, rows in sections.items():
        lines += ["", f"**{section or 'The run itself'}**", "", *_table(("key", "value", "origin", "reason"), rows)]
    return lines


def origins_table(base: str, tag: str, sections: Iterable[str]) -> list[str]:
    """Markdown: the keys of some sections that have one origin; '' is the section of the keys without one."""
    path = CONFIGS / f"{base}.py"
    values, documented = dict(configs.flatten(configs.load(str(path)))), configs.documented_keys(str(path))
    rows = [
        (f"`{key}`", _value(values[key]), reason)
        for key, (origin, reason) in documented.items()
        if origin == tag and key.rpartition(".")[0] in sections
    ]
    return _table(("key", "value", "reason"), rows)


def files_table() -> list[str]:
    """Markdown: the configs that can be run, by their docstrings."""
    rows = []
    for path in sorted(CONFIGS.glob("*.py")):
        name = path.stem
        if name == "__init__" or name.endswith("_base"):
            continue
        text = importlib.import_module(f"configs.{name}").__doc__.partition("\n\n")[0].replace("\n", " ")
        rows.append((f"[`configs/{path.name}`](../configs/{path.name})", text))
    return _table(("config", "what it is"), rows)


def ablations_table() -> list[str]:
    """Markdown: the variants of configs/ablations.py, with what the paper found."""
    rows = []
    for name, ablation in ABLATIONS.items():
        variants = "; ".join(
            f"`{name}={variant}`: " + ", ".join(f"`{key}={value}`" for key, value in changes.items())
            for variant, changes in ablation.variants.items()
        )
        rows.append((ablation.paper, variants))
    return _table(("the paper", "variants"), rows)


def _table(titles: Iterable[str], rows: Iterable[Iterable[str]]) -> list[str]:
    def line(cells: Iterable[str]) -> str:
        return "| " + " | ".join(cell.replace("|", r"\|") for cell in cells) + " |"

    titles = tuple(titles)
    return [line(titles), line("---" for _ in titles), *map(line, rows)]


def _value(value: Any) -> str:
    return "not set" if value is None else f"`{value!r}`"


class _MarkdownDirective(SphinxDirective):
    """Writes Markdown in its place."""

    def parse(self, lines: list[str]) -> list[nodes.Node]:
        container = nodes.container(classes=["generated"])
        for path in CONFIGS.glob("*.py"):
            self.env.note_dependency(str(path))
        self.state.nested_parse(StringList(lines, source="configs"), self.content_offset, container)
        return [container]


class ConfigKeys(_MarkdownDirective):
    """```{config-keys} pretrain_base```: see `keys_table`."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        return self.parse(keys_table(self.arguments[0]))


class ConfigOrigins(_MarkdownDirective):
    """```{config-origins} paper```: the pre-training keys of one origin, but for those that only concern machines."""

    required_arguments = 1
    sections: ClassVar = ("", "data", "model", "masking", "loss", "optimizer")

    def run(self) -> list[nodes.Node]:
        return self.parse(origins_table("pretrain_base", self.arguments[0], self.sections))


class ConfigFiles(_MarkdownDirective):
    """```{config-files}```: see `files_table`."""

    def run(self) -> list[nodes.Node]:
        return self.parse(files_table())


class ConfigAblations(_MarkdownDirective):
    """```{config-ablations}```: see `ablations_table`."""

    def run(self) -> list[nodes.Node]:
        return self.parse(ablations_table())


def setup(app: Sphinx) -> dict[str, bool]:
    app.add_directive("config-keys", ConfigKeys)
    app.add_directive("config-origins", ConfigOrigins)
    app.add_directive("config-files", ConfigFiles)
    app.add_directive("config-ablations", ConfigAblations)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
