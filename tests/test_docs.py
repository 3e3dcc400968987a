"""The documentation's links have targets, and the commands, keys, files and code that it names exist."""

import argparse
import ast
import functools
import importlib.util
import os
import re
import runpy
import shlex
import sys
import warnings
from collections.abc import Iterator
from unittest import mock

import pytest
from ml_collections import config_dict

from data import catalog
from mv2mae_jax import config as configs
from mv2mae_jax import config_checks
from tests.pages import (
    DOCS,
    PAGE_NAMES,
    ROOT,
    anchors,
    bases,
    fences,
    in_examples,
    inline,
    repository,
    tokens,
    written_in_code,
)

# --- Links ---


@pytest.mark.parametrize("page", PAGE_NAMES)
def test_links_and_pictures_exist(page):
    files, folders = repository()
    assert all(image.content for image in inline(page, "image")), f"{page}: a picture lacks its text"
    targets = [link.attrs["href"] for link in inline(page, "link_open")]
    targets += [image.attrs["src"] for image in inline(page, "image")]
    for target in targets:
        if re.match(r"https?://", target):
            continue  # addresses are not opened
        path, _, anchor = target.partition("#")
        place = os.path.normpath(os.path.join(os.path.dirname(page), path)) if path else page
        assert place in files or place in folders, f"{page} links to {target}, which is not there"
        if anchor:
            assert anchor in anchors(place), f"{page} links to {target}; {place} has {sorted(anchors(place))}"


def test_every_page_is_linked_from_the_index():
    linked = {link.attrs["href"] for link in inline("docs/index.md", "link_open")}
    assert {page.name for page in DOCS.glob("*.md")} - {"index.md"} <= linked


def test_the_readme_links_to_every_page():
    linked = {link.attrs["href"] for link in inline("README.md", "link_open")}
    assert {f"docs/{page.name}" for page in DOCS.glob("*.md")} - {"docs/reference.md"} <= linked


# --- Commands ---

# Programs of others that the pages call. Their options are not checked.
OTHERS = {
    "source",
    "git",
    "cd",
    "sha256sum",
    "find",
    "tensorboard",
    "gcloud",
    "hf",
    "srun",
    "python3",
    "chromium",
    "apt",
}


class _Captured(Exception):
    pass


@functools.cache
def parser_of(program: str) -> argparse.ArgumentParser:
    """The parser that `python -m PROGRAM`, or `python run.py`, makes."""

    def capture(self, *_, **__):
        raise _Captured(self)

    with (
        warnings.catch_warnings(action="ignore"),  # the module may have been imported before
        mock.patch.object(argparse.ArgumentParser, "parse_known_args", capture),
        mock.patch.object(sys, "argv", [program]),
        pytest.raises(_Captured) as caught,
    ):
        if program.endswith(".py"):
            runpy.run_path(str(ROOT / program), run_name="__main__")
        else:
            runpy.run_module(program, run_name="__main__")
    return caught.value.args[0]


def commands(text: str) -> Iterator[list[str]]:
    """The words of each command of a shell block."""
    for line in text.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        while words:
            end = words.index("&&") if "&&" in words else len(words)
            yield words[:end]
            words = words[end + 1 :]


def check_command(words: list[str], where: str, complete: bool = True) -> None:
    """Fails unless program, flags, config, keys and values exist. With `complete`, required options must be there."""
    while words and re.match(r"[A-Z_]+=", words[0]):
        words = words[1:]
    name = re.sub(r"^\.venv[\w-]*/bin/", "", words[0]) if words else ""
    for word in words[1:]:
        if re.search(r"python (-m|run\.py)", word):  # a command for another shell
            for command in commands(re.sub("^--[a-z]+=", "", word)):
                check_command(command, where, complete)
    if name == "srun":
        return check_command(words[1:], where, complete)
    if name == "make":
        known = re.search(r"^\.PHONY: (.*)", (ROOT / "Makefile").read_text(), re.M)[1].split()
        assert not (wrong := [w for w in words[1:] if "=" not in w and w not in known]), f"{where}: make {wrong}"
        return None
    if name == "pip":
        named = [words[i + 1] for i, word in enumerate(words[:-1]) if word == "-r"]
        assert all((ROOT / file).exists() for file in named), f"{where}: {named}"
        return None
    if name != "python":
        assert name in OTHERS or re.fullmatch(r"python3\.\d+", name), (
            f"{where}: {name!r} is no command that is known here"
        )
        return None
    program, arguments = (words[2], words[3:]) if words[1] == "-m" else (words[1], words[2:])
    if program in ("pytest", "sphinx"):
        return None
    assert importlib.util.find_spec(program) if words[1] == "-m" else (ROOT / program).exists(), f"{where}: {program}"
    if program.startswith("docs/"):
        assert not arguments, f"{where}: {program} takes no arguments"
        return None
    overrides = [a.removeprefix("--config.") for a in arguments if a.startswith("--config.")]
    rest = [a for a in arguments if not a.startswith("--config.") and a != "..."]
    parser = parser_of(program)
    if complete:
        try:
            options, unknown = parser.parse_known_args(rest)
        except SystemExit:
            pytest.fail(f"{where}: {program} refuses {rest}")
        assert not unknown, f"{where}: {program} does not know {unknown}"
        if getattr(options, "dataset", None):
            assert options.dataset in {*catalog.NAMES, *in_examples()}, f"{where}: --dataset={options.dataset}"
    else:
        flags = [a.partition("=")[0] for a in rest if a.startswith("--")]
        unknown = set(flags) - parser._option_string_actions.keys()
        assert not unknown, f"{where}: {program} does not know {sorted(unknown)}"
    file = next((a.removeprefix("--config=") for a in rest if a.startswith("--config=")), None)
    check_config(None if file in (None, "...") else file, overrides, where)
    return None


def check_config(file: str | None, overrides: list[str], where: str) -> None:
    """Fails unless the config exists and, with the overrides, is valid for a data set that exists."""
    overrides = [o for o in overrides if o.partition("=")[0].islower() and o.partition("=")[2] != "..."]
    overrides = [o for o in overrides if not {o.partition("=")[0], o.partition("=")[2]} & in_examples()]
    if file is None:  # any task that has these keys
        for task in configs.TASKS:
            try:
                configs.load(str(ROOT / f"configs/{task}_base.py"), overrides)
                return
            except ValueError as error:
                problem = error
        pytest.fail(f"{where}: {problem}")
    assert (ROOT / file.partition(":")[0]).exists(), f"{where}: {file} does not exist"
    check_values(configs.load(str(ROOT / file), overrides), where)


def check_values(config: config_dict.ConfigDict, where: str) -> None:
    """Fails unless the config can be run; a data set need not be there."""
    try:
        config_checks.validate(config)
    except ValueError as error:
        wrong = [line for line in str(error).splitlines()[1:] if "data.dir" not in line]
        assert not wrong, f"{where}: {wrong}"


@pytest.mark.parametrize("page", PAGE_NAMES)
def test_commands_are_understood(page):
    for language, text, line in fences(page):
        if language not in ("", "sh", "bash"):
            continue
        for command in commands(text):
            check_command(command, f"{page}:{line}")
    for code in inline(page, "code_inline"):
        text = code.content
        if re.match(r"(\.venv[\w-]*/bin/)?python (-m |run\.py)|make [a-z]", text):
            check_command(shlex.split(text), f"{page}: {text}", complete=False)
        elif text.startswith("--config."):
            check_config(None, [flag.removeprefix("--config.") for flag in shlex.split(text)], f"{page}: {text}")


# --- Names ---


# Where runs, demos and users keep their files, which the repository does not hold.
ELSEWHERE = re.compile(r"(demo_output|benchmark_output|runs|prepared|exported|WORKDIR|RUN|DIR|OUTPUT|/)\b|.*[A-Z]{3,}/")
SUFFIXES = r"\.(py|md|ipynb|toml|json|jsonl|txt|csv|yml|yaml|parquet|npy|npz|pth|safetensors|html|css|svg|png|jpg)"


@pytest.mark.parametrize("page", PAGE_NAMES)
def test_config_keys_exist(page):
    known = {key for base in bases().values() for key, _ in configs.flatten(base)}
    sections = {key.partition(".")[0] for key in known if "." in key}
    for code in inline(page, "code_inline"):
        matched = re.fullmatch(r"(?:config\.)?((\w+)\.\w+)(?:=\S*)?", code.content)
        if matched and matched[2] in sections and not re.fullmatch(rf".*{SUFFIXES}", code.content):
            key = matched[1]
            module = key.replace(".", "/")  # `data.store` may be a module or a key of the section `data`
            assert key in known | in_examples() or any(f.startswith(module) for f in repository()[0]), (
                f"{page}: there is no key {key}"
            )


@pytest.mark.parametrize("page", PAGE_NAMES)
def test_named_files_exist(page):
    files, folders = repository()
    names = {file.rpartition("/")[2] for file in files}
    for code in inline(page, "code_inline"):
        path = code.content.rstrip("/")
        if not re.fullmatch(rf"[\w./-]+{SUFFIXES}|[\w.-]+(/[\w.-]+)*/", code.content) or ELSEWHERE.match(path):
            continue
        if "/" in path:
            top = path.partition("/")[0]
            if top in {file.partition("/")[0] for file in files}:
                added = f"<!-- file: {path} -->" in (ROOT / page).read_text()  # by a worked example
                assert path in files or path in folders or added, f"{page}: {path} does not exist"
        else:
            known = path in names or path in {folder.rpartition("/")[2] for folder in folders}
            assert known or path in written_in_code(), f"{page}: nothing is called {path}"


# --- Python ---


@pytest.mark.parametrize("page", PAGE_NAMES)
def test_python_compiles(page):
    for language, text, line in fences(page):
        if language == "python":
            tree = ast.parse(text, f"{page}:{line}")
            for node in ast.walk(tree):
                names = []
                if isinstance(node, ast.ImportFrom):
                    names = [(node.module, alias.name) for alias in node.names]
                elif isinstance(node, ast.Import):
                    names = [(alias.name, None) for alias in node.names]
                for module, attribute in names:
                    check_import(module, attribute, f"{page}:{line}")


def check_import(module: str, attribute: str | None, where: str) -> None:
    if module.partition(".")[0] not in ("mv2mae_jax", "data", "configs", "benchmarks", "console", "run"):
        return
    assert importlib.util.find_spec(module), f"{where}: there is no module {module}"
    if attribute:
        found = hasattr(importlib.import_module(module), attribute) or importlib.util.find_spec(f"{module}.{attribute}")
        assert found, f"{where}: {module} has no {attribute}"


@pytest.mark.parametrize("page", PAGE_NAMES)
def test_configs_shown_are_valid(page):
    for language, text, line in fences(page):
        if language == "python" and "def get_config" in text:
            names = {}
            exec(compile(text, f"{page}:{line}", "exec"), names)
            check_values(names["get_config"](), f"{page}:{line}")


def test_code_that_is_marked_runs(capsys):
    marked = 0
    for page in PAGE_NAMES:
        for before, block in zip(tokens(page), tokens(page)[1:], strict=False):
            if before.type == "html_block" and before.content.startswith("<!-- run -->"):
                exec(compile(block.content, f"{page}:{block.map[0]}", "exec"), {})
                marked += 1
    assert marked
    assert capsys.readouterr().out == "(512,) (154,)\n"  # as docs/reference.md says
